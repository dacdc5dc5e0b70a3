"""What does not count cannot matter, in value, derivative or metric, whatever stands there.

Each part of a network is singular at zero, or at any input but those of the steps that count.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.cells import scan
from tests.networks import F64, LOSSES, as_numpy, assert_close, make_batch

ROWS, LENGTH, FEATURES = 3, 6, 3
OPTIMIZER = optax.sgd(0.1)  # one, so that states share what is compiled


def normed(x: Any) -> Any:
    """Its derivative at zero is 0 / 0."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Normed(nnx.Linear):
    def __call__(self, inputs: Any) -> Any:  # pyright: ignore
        return super().__call__(normed(inputs))


class Rooted(nnx.Linear):
    """Takes inputs above zero alone."""

    def __call__(self, inputs: Any) -> Any:  # pyright: ignore
        return super().__call__(jnp.sqrt(inputs))


class Countdown(nnx.Module):
    """A cell that works for as many steps as exist and not for one more."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.linspace(-0.7, 0.9, FEATURES**2).reshape(FEATURES, FEATURES))

    def initialize_carry(self, input_shape: Any, rngs: Any = None) -> Any:
        del rngs
        return jnp.zeros(input_shape), jnp.full((input_shape[0], 1), LENGTH + 0.5)

    def __call__(self, carry: Any, x: Any) -> Any:
        h, left = carry
        h = jnp.tanh(h @ self.kernel + x) * jnp.sqrt(left)
        return (h, left - jnp.linalg.norm(x, axis=-1, keepdims=True) ** 2), h


class UnitInputs(nnx.Module):
    def __call__(self, inputs: Any) -> Any:
        return normed(inputs)


def cosine(outputs: Any, targets: Any) -> Any:
    return 1 - (normed(outputs) * normed(targets)).sum(-1)


def divergence(outputs: Any, targets: Any) -> Any:
    """KL against stored probabilities."""
    p = targets / targets.sum(-1, keepdims=True)
    return (p * (jnp.log(p) - jax.nn.log_softmax(outputs))).sum(-1)


def distance(outputs: Any, targets: Any) -> Any:
    return jnp.linalg.norm(outputs - targets, axis=-1)


def make(loss: Any, encoder: Any = None, core: Any = None, readout: Any = None) -> tbptt.TrainState:
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        encoder or nnx.Linear(FEATURES, FEATURES, rngs=rngs, **F64),
        core or nnx.SimpleCell(FEATURES, FEATURES, rngs=rngs, **F64),
        readout or nnx.Linear(FEATURES, 2, rngs=rngs, **F64),
    )
    return tbptt.TrainState.create(model, OPTIMIZER, loss)


def linear(kind: type[nnx.Linear], outputs: int) -> nnx.Linear:
    return kind(FEATURES, outputs, rngs=nnx.Rngs(3), **F64)


NETWORKS = {
    "cosine": lambda: make(cosine),
    "divergence": lambda: make(divergence),
    "distance": lambda: make(distance),
    "norm in the encoder": lambda: make(LOSSES["mse"], encoder=linear(Normed, FEATURES)),
    "root in the encoder": lambda: make(LOSSES["mse"], encoder=linear(Rooted, FEATURES)),
    "norm in the readout": lambda: make(LOSSES["mse"], readout=linear(Normed, 2)),
    "counting cell": lambda: make(LOSSES["mse"], encoder=UnitInputs(), core=Countdown()),
    "counting cell in a stack": lambda: make(
        LOSSES["mse"],
        encoder=UnitInputs(),
        core=tbptt.Stack([Countdown(), nnx.SimpleCell(3, 3, rngs=nnx.Rngs(5), **F64)]),
    ),
    "lstm": lambda: make(cosine, core=tbptt.LSTM(3, 3, rngs=nnx.Rngs(5), **F64)),
}


def make_batch_of(kind: str) -> tuple[tbptt.Batch, tbptt.Batch]:
    """A batch in which nothing is special where nothing counts, and one in which all is."""
    rng = np.random.default_rng(1)
    inputs = rng.uniform(0.5, 1.5, (ROWS, LENGTH, FEATURES))
    targets = rng.uniform(0.5, 1.5, (ROWS, LENGTH, 2))
    mask = np.ones((ROWS, LENGTH), bool)
    weights = np.ones((ROWS, LENGTH))
    if "masked" in kind:
        mask[0, :2] = mask[1, 3:] = mask[2, 1] = False  # at the left, at the right, between
    if "unscored" in kind:
        weights[:, :3] = weights[1] = 0
        weights[1, 2] = 0.5
    if "lost row" in kind:
        mask[2] = False
    scored = mask & (weights > 0)
    reset = np.zeros((ROWS, LENGTH), bool)
    reset[:, 0] = reset[1, 2] = reset[0, 1] = True
    batch = tbptt.Batch(
        inputs,
        targets,
        mask if "mask" in kind or "lost" in kind else None,
        reset if "stream" in kind else None,
        weights if "unscored" in kind else None,
    )
    odd_inputs, odd_targets = inputs.copy(), targets.copy()
    odd_inputs[~mask] = rng.choice([0.0, np.nan, np.inf, -1.0], odd_inputs[~mask].shape)
    odd_targets[~scored] = rng.choice([0.0, np.nan, -np.inf, -1.0], odd_targets[~scored].shape)
    odd = batch._replace(inputs=odd_inputs, targets=odd_targets)
    differs = not np.array_equal(odd.inputs, inputs) or not np.array_equal(odd.targets, targets)
    assert differs == (not scored.all())
    return batch, odd


def train(state: tbptt.TrainState, batch: tbptt.Batch, plan: tbptt.Truncation) -> Any:
    """A step of training; the inputs that a stream keeps are those that it was given."""
    state, metrics = tbptt.train_step(state, batch, plan)
    stream = state.stream
    if stream is not None and stream.lookback is not None:
        lookback = stream.lookback._replace(inputs=None)
        state = dataclasses.replace(state, stream=stream._replace(lookback=lookback))
    return state, metrics


CASES = {
    "masked": [tbptt.Truncation(6, 6), tbptt.Truncation(6, 3, "loss", block=2)],
    "unscored": [tbptt.Truncation(2, 2), tbptt.Truncation(6, 2, "loss")],
    "masked unscored stream": [tbptt.Truncation(2, 4), tbptt.Truncation(2, 3, "loss")],
    "lost row unscored": [tbptt.Truncation(3, 1), tbptt.Truncation(3, 3)],
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (i + j) % 4 == 0 else pytest.mark.slow)
        for i, name in enumerate(NETWORKS)
        for j, kind in enumerate(CASES)
    ],
)
def test_what_stands_where_nothing_counts_changes_no_bit(name, kind):
    usual, odd = make_batch_of(kind)
    for plan in CASES[kind]:
        found = [train(NETWORKS[name](), batch, plan) for batch in (usual, odd)]
        assert found[0][1].finite.all()
        assert int(found[0][0].step) > 0
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        grads = [as_numpy(tbptt.gradient(NETWORKS[name](), b, plan)) for b in (usual, odd)]
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert_close(*grads, tolerance=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_the_sequence_without_it(name):
    """Steps that are masked at the end are as if they were not there, for every part's gradient."""
    plan = tbptt.Truncation(LENGTH, LENGTH)
    batch, _ = make_batch_of("")
    short = jax.tree.map(lambda a: a[:, :4], batch)
    mask = np.broadcast_to(np.arange(LENGTH) < 4, (ROWS, LENGTH))
    padded = batch._replace(mask=mask, inputs=np.where(mask[..., None], batch.inputs, np.nan))
    expected = tbptt.gradient(NETWORKS[name](), short, tbptt.Truncation(4, 4))
    for p in (plan, tbptt.Truncation(LENGTH, LENGTH, "loss")):
        assert_close(tbptt.gradient(NETWORKS[name](), padded, p), expected, tolerance=1e-12)
    state = NETWORKS[name]()
    assert tbptt.evaluate(state, padded)["loss"] == pytest.approx(
        tbptt.evaluate(state, short)["loss"], rel=1e-12
    )
    lags = [tbptt.credit_by_lag(state, b, max_lag=3) for b in (padded, short)]
    assert_close(*lags, tolerance=1e-12)


@pytest.mark.parametrize(("reset_at", "value"), [(None, 4.0), (0, 7.0), (1, 7.0), (2, 4.0)])
def test_masked_steps_see_the_carry_that_the_earliest_existing_step_starts_with(reset_at, value):
    """Row 1 exists from step 1 on, row 0 later: a reset counts up to that step, and in that row."""
    mask = np.array([[False, False, True], [False, True, True]])
    reset = np.zeros((2, 3), bool)
    reset[0, 0] = True
    if reset_at is not None:
        reset[1, reset_at] = True
    carry, initial = jnp.array([[3.0], [4.0]]), jnp.array([[7.0], [7.0]])
    found = scan.known_carry(carry, mask, reset, initial)
    np.testing.assert_array_equal(found, [[value], [value]])


@pytest.mark.parametrize("reach", [None, 2])
def test_a_window_without_any_weight_has_no_gradient(reach):
    state = make(cosine, encoder=linear(Normed, FEATURES))
    nothing = np.zeros((ROWS, LENGTH, FEATURES))
    window = tbptt.Window(nothing, nothing[..., :2], mask=np.zeros((ROWS, LENGTH), bool))
    value, grads = tbptt.window_value_and_grad(
        state.functions, state.loss, state.params, None, window, reach=reach
    )
    assert (float(value.loss), float(value.weight)) == (0, 0)
    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("anchor", ["update", "loss"])
def test_a_stream_starts_as_whole_sequences_do(anchor):
    """Its windows reach back before its first step, where no input stands that a norm divides."""
    batch, plan = make_batch(LENGTH, loss="mse", rows=ROWS), tbptt.Truncation(2, 4, anchor)
    stream = batch._replace(reset=np.zeros((ROWS, LENGTH), bool))
    found, expected = (
        tbptt.train_step(make(LOSSES["mse"], encoder=linear(Normed, FEATURES)), b, plan)
        for b in (stream, batch)
    )
    assert found[1].finite.all()
    assert_close(found[0].params, expected[0].params, tolerance=1e-12)
    assert_close(found[1], expected[1], tolerance=1e-12)


def test_losses_marked_at_the_end_train_through_a_loss_that_is_singular_elsewhere():
    """A cosine distance with targets everywhere, of which the last alone counts."""
    batch = tbptt.data.mark_losses(make_batch(LENGTH, loss="mse"))
    state, metrics = tbptt.train_step(make(cosine), batch, tbptt.Truncation(LENGTH, LENGTH))
    assert int(state.step) == 1
    assert float(metrics.grad_norm[0]) > 0


def test_a_window_scores_what_a_batch_scores():
    state, batch = make(LOSSES["mse"]), make_batch(4, "m", loss="mse")
    mask = np.array([[True, True, False, True], [True, False, False, True]])
    batch = batch._replace(mask=mask)
    _, metrics = tbptt.train_step(state.copy(), batch, tbptt.Truncation(4, 4))
    window = tbptt.Window(batch.inputs, batch.targets, mask=mask)
    value, grads = tbptt.window_value_and_grad(
        state.functions, state.loss, state.params, None, window
    )
    assert float(value.weight) == float(metrics.weight[0]) == 5
    np.testing.assert_allclose(value.loss / value.weight, metrics.loss[0], rtol=1e-12)
    expected = tbptt.gradient(state, batch, tbptt.Truncation(4, 4))
    assert_close(jax.tree.map(lambda g: g / 5, grads), expected, tolerance=1e-12)
    # The same weights, given: those of masked steps count nothing.
    given = window._replace(weights=np.ones((2, 4)))
    again, _ = tbptt.window_value_and_grad(state.functions, state.loss, state.params, None, given)
    assert float(again.weight) == 5
