"""A scheme that the library does not know: one file, no change anywhere else.

Real-time recurrent learning (Williams & Zipser, 1989) on a clock of its own. It carries the
influence of all parameters on the carry forward, so that each loss reaches back to the start of
its stream, and no window starts before its interval.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import tbptt_jax as tbptt

ROWS, RATE = 3, 0.05


class Influence(NamedTuple):
    """The derivatives of the carry by all parameters, leaves [B, ..., P]."""

    by_params: Any


def init(model, params, carry):
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Influence(jax.tree.map(lambda c: jnp.zeros((*c.shape, count), c.dtype), carry))


def push(function, params, carry, influence):
    """The result of `(params, carry) -> tree` and its total derivatives, parameters last."""
    flat, unravel = ravel_pytree(params)

    def along(direction, d_carry):
        return jax.jvp(
            lambda flat, carry: function(unravel(flat), carry), (flat, carry), (direction, d_carry)
        )

    axes = (0, jax.tree.map(lambda _: -1, carry))
    return jax.vmap(along, axes, out_axes=(None, -1))(jnp.eye(flat.size), influence), unravel


def value_and_grad(losses, params, aux):
    def run(params, carry):
        return losses._replace(carry=carry).at(params)

    found, unravel = push(run, params, losses.carry, aux.by_params)
    (total, (carry, carries)), (grads, (influence, _)) = found
    return tbptt.WindowGradient(total, carry, carries, unravel(grads), Influence(influence))


def advance(model, params, carry, window, rng, aux):
    def run(params, carry):
        end, _, carries = tbptt.forward(model, params, carry, window, rng)
        return end, carries

    ((end, carries), (influence, _)), _ = push(run, params, carry, aux.by_params)
    return end, carries, Influence(influence)


@dataclasses.dataclass(frozen=True)
class RealTime:
    """Updates after so many steps each, in turn."""

    every: tuple[int, ...]

    @property
    def estimator(self):
        return tbptt.Estimator(init, value_and_grad, advance)

    @property
    def lookback_size(self):
        return tbptt.LookbackSize(steps=0, carries=0)

    def intervals(self, length):
        clock, end, sizes = [], 0, itertools.cycle(self.every)
        while end < length:
            start, end = end, min(end + next(sizes), length)
            clock.append(tbptt.Interval(start, end, scored=start))
        return clock

    def placement(self, length, stream):
        clock = self.intervals(length)
        return tbptt.Placement([tbptt.WindowPlace(i, i.start, i.end - i.start) for i in clock])

    def credit_matrix(self, length):
        return np.tril(np.ones((length, length)))


PLAN = RealTime(every=(2, 1, 1))

# A linear cell h <- a h + x + b with the output c h, and the loss (y - target)^2.
MODEL = tbptt.Model(
    initialize_carry=lambda params, shape: jnp.zeros(shape),
    encode=lambda params, inputs, rng: inputs,
    step=lambda params, h, x: (params["a"] * h + x + params["b"],) * 2,
    readout=lambda params, ys, rng: (params["c"] * ys)[..., 0],
)
PARAMS = {"a": np.array(0.7), "b": np.array(0.1), "c": np.array(-1.3)}
OPTIMIZER = optax.sgd(RATE)


def make() -> tbptt.TrainState:
    return tbptt.TrainState.create(MODEL, OPTIMIZER, optax.squared_error, params=PARAMS)


def make_batch(length: int, marks: str = "", seed: int = 0) -> tbptt.Batch:
    """Numbers, with a mask, resets and weights as `marks` has m, r and w."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(ROWS, length, 1)), rng.normal(size=(ROWS, length))
    mask, reset = rng.random((2, ROWS, length)) < np.array([0.7, 0.2])[:, None, None]
    weights = rng.random((ROWS, length)) * (rng.random((ROWS, length)) < 0.6)
    weights[:, -1] = 1.0
    return tbptt.Batch(
        inputs,
        targets,
        mask=mask if "m" in marks else None,
        reset=reset if "r" in marks else None,
        weights=weights if "w" in marks else None,
    )


def by_hand(batches, plan):
    """RTRL in NumPy, an example and a step at a time; the parameters, carry and losses."""
    params = np.array([PARAMS["a"], PARAMS["b"], PARAMS["c"]], np.float64)
    h, influence, losses = np.zeros(ROWS), np.zeros((ROWS, 3)), []
    for number, batch in enumerate(batches):
        shape = batch.targets.shape
        mask = np.ones(shape, bool) if batch.mask is None else batch.mask
        weights = mask * (1.0 if batch.weights is None else batch.weights)
        reset = np.zeros(shape, bool) if batch.reset is None else batch.reset.copy()
        if batch.reset is None or number == 0:
            reset[:, 0] = True
        for interval in plan.intervals(shape[1]):
            a, b, c = params
            grads, total, weight = np.zeros(3), 0.0, 0.0
            for t, row in itertools.product(range(interval.start, interval.end), range(ROWS)):
                if reset[row, t]:
                    h[row], influence[row] = 0, 0
                if mask[row, t]:
                    influence[row] = a * influence[row] + np.array([h[row], 1, 0])
                    h[row] = a * h[row] + batch.inputs[row, t, 0] + b
                error, w = c * h[row] - batch.targets[row, t], weights[row, t]
                grads += w * 2 * error * (c * influence[row] + np.array([0, 0, h[row]]))
                total, weight = total + w * error**2, weight + w
            losses.append(total / weight if weight else 0.0)
            params = params - RATE * grads / (weight or 1)
    return params, h, losses


def as_vector(params: Any) -> np.ndarray:
    return np.array([params["a"], params["b"], params["c"]])


def train(state, batches, plan=PLAN):
    losses = []
    for batch in batches:
        state, metrics = tbptt.train_step(state, batch, plan)
        losses += metrics.loss.tolist()
    return state, losses


# ------------------------------------------------------------------------------- its gradient


@pytest.mark.parametrize("marks", ["", "mw", "mrw"])
def test_its_gradient_at_fixed_parameters_is_that_of_full_bptt(marks):
    batch = make_batch(7, marks)
    found = tbptt.gradient(make(), batch, PLAN)
    expected = tbptt.gradient(make(), batch, tbptt.Truncation(7, 7))
    np.testing.assert_allclose(as_vector(found), as_vector(expected), rtol=1e-12)
    np.testing.assert_array_equal(
        tbptt.credit_matrix(PLAN, 7), tbptt.credit_matrix(tbptt.Truncation(7, 7), 7)
    )


def test_its_bias_is_reported():
    bias = tbptt.gradient_bias(make(), make_batch(7, "mw"), PLAN)["all"]
    assert bias.relative < 1e-12
    draws = tbptt.gradient_bias(make(), make_batch(7), [PLAN, tbptt.Truncation(1, 1)])["all"]
    assert draws.variance > 1e-3


def test_its_clock_is_public():
    ends = [interval.end for interval in tbptt.intervals(PLAN, 7)]
    assert ends == [2, 3, 4, 6, 7]


# ------------------------------------------------------------------------------- its training


@pytest.mark.parametrize("marks", ["", "mw", "r", "mrw"])
def test_it_trains_online_as_by_hand(marks):
    batches = [make_batch(7, marks, seed) for seed in range(2)]
    state, losses = train(make(), batches)
    params, carry, expected = by_hand(batches, PLAN)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(as_vector(state.params), params, rtol=1e-10)
    assert state.stream is not None
    np.testing.assert_allclose(np.ravel(state.stream.carry), carry, rtol=1e-10)


def test_its_aux_passes_through_windows_without_losses():
    """The loss at the end of a stream's second batch reaches the first batch."""
    batches = [make_batch(4, "r", seed) for seed in range(2)]
    weights = np.zeros((2, ROWS, 4))
    weights[1, :, -1] = 1
    batches = [b._replace(weights=w) for b, w in zip(batches, weights, strict=True)]
    with pytest.warns(UserWarning, match="no step is scored"):
        state, losses = train(make(), batches)
    params, _, expected = by_hand(batches, PLAN)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(as_vector(state.params), params, rtol=1e-10)
    assert int(state.step) == 1


def test_a_stream_in_pieces_trains_as_a_whole():
    whole = make_batch(8, "mrw")
    pieces = [jax.tree.map(lambda a, t=t: a[:, t : t + 4], whole) for t in (0, 4)]
    found, expected = train(make(), pieces)[0], train(make(), [whole])[0]
    np.testing.assert_allclose(as_vector(found.params), as_vector(expected.params), rtol=1e-12)
    assert found.stream is not None
    assert expected.stream is not None
    influences = found.stream.aux.by_params, expected.stream.aux.by_params
    np.testing.assert_allclose(*influences, rtol=1e-12)
    assert np.abs(influences[0]).max() > 0.1


@pytest.mark.parametrize("how", ["restart", "plan", "sequences"])
def test_its_aux_restarts_with_a_stream(how):
    batch = make_batch(4, "r")
    batch = batch._replace(reset=np.zeros((ROWS, 4), bool))
    state, _ = train(make(), [batch])
    if how == "restart":
        state = state.restart()
    elif how == "plan":  # of which the lookback has the size of this one's, but no aux
        state, _ = tbptt.train_step(state, batch, NoLookback(every=(4,)))
    else:
        state, _ = train(state, [batch._replace(reset=None)])
    assert state.stream is None or state.stream.aux == ()
    alone = state.copy()
    if alone.stream is not None:
        alone = dataclasses.replace(alone, stream=tbptt.Stream(alone.stream.carry))
    found, expected = train(state, [batch])[0], train(alone, [batch])[0]
    np.testing.assert_array_equal(as_vector(found.params), as_vector(expected.params))


@dataclasses.dataclass(frozen=True)
class NoLookback(RealTime):
    """The same windows, each with the credit of its own steps."""

    @property
    def estimator(self):
        return tbptt.Truncation(1, 1).estimator


def test_a_row_that_is_lost_restarts_with_its_aux():
    batch = make_batch(4, "r")
    batch = batch._replace(reset=np.zeros((ROWS, 4), bool))
    inputs = np.array(batch.inputs)
    inputs[1, 2:] = 1.5e308  # the carry overflows in the last window
    state, metrics = tbptt.train_step(make(), batch._replace(inputs=inputs), RealTime((2,)))
    assert metrics.finite.tolist() == [True, False]
    assert state.stream is not None
    influence = np.asarray(state.stream.aux.by_params)
    np.testing.assert_array_equal(influence[1], 0)
    assert np.all(influence[[0, 2], ..., 1] != 0)
    assert np.isfinite(influence).all()


# ------------------------------------------------------------------------------- all else


def test_evaluating_takes_no_part_in_it():
    batches = [make_batch(4, "mrw", seed) for seed in range(2)]
    state, _ = train(make(), batches[:1])
    before = jax.tree.map(np.array, state.stream)
    assert tbptt.evaluate(state, batches)["loss"] > 0
    assert tbptt.predict(state, batches[0]).shape == (ROWS, 4)
    jax.tree.map(np.testing.assert_array_equal, state.stream, before)


def test_it_resumes_from_a_checkpoint_with_the_same_bits(tmp_path):
    batches = [make_batch(4, "mrw", seed) for seed in range(3)]
    expected, _ = train(make(), batches)
    with tbptt.Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(train(make(), batches[:2])[0], {})
    step = functools.partial(tbptt.train_step, truncation=PLAN)
    like, _ = jax.eval_shape(step, make(), batches[0])
    with tbptt.Checkpoints(tmp_path, {}) as checkpoints:
        saved = checkpoints.restore(like)
    assert saved is not None
    state, _ = train(saved.tree, batches[2:])
    for found, value in ((state.params, expected.params), (state.stream, expected.stream)):
        jax.tree.map(np.testing.assert_array_equal, found, value)


def test_it_compiles_once_and_can_be_mapped():
    lowered = tbptt.lower(make(), make_batch(4), PLAN)
    assert lowered.compile().cost_analysis()
    batch, step = make_batch(4, "r"), functools.partial(tbptt.train_step, truncation=PLAN)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), make(), make())
    states, _ = jax.jit(jax.vmap(step, (0, None)))(states, batch)
    expected, _ = train(make(), [batch])
    for i in range(2):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        np.testing.assert_allclose(as_vector(alone.params), as_vector(expected.params))


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("wrong", [None, (30, 30), RealTime, tbptt.Truncation])
def test_what_is_no_plan_is_refused(wrong):
    for call in (
        lambda: tbptt.train_step(make(), make_batch(4), wrong),
        lambda: tbptt.gradient(make(), make_batch(4), wrong),
        lambda: tbptt.credit_matrix(wrong, 4),
        lambda: tbptt.intervals(wrong, 4),
    ):
        with pytest.raises(
            TypeError, match=r"truncation must be a tbptt_jax.Truncation, or .*Plan"
        ):
            call()


def test_a_plan_that_has_no_hash_is_refused():
    class Listed(RealTime):
        __hash__ = None  # pyright: ignore[reportAssignmentType]

    with pytest.raises(TypeError, match="another hashable tbptt_jax.Plan, got Listed"):
        tbptt.train_step(make(), make_batch(4), Listed((1,)))


def test_an_aux_without_the_examples_first_is_refused():
    class Misplaced(RealTime):
        @property
        def estimator(self):
            return tbptt.Estimator(lambda *_: jnp.zeros(()), value_and_grad, advance)

    for marks in ("", "r"):
        with pytest.raises(ValueError, match=r"Estimator.init must return shape \[B, ...\]"):
            tbptt.train_step(make(), make_batch(4, marks), Misplaced((1,)))
