"""Random numbers in a core: a key for each step of each window while training, none elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tests.networks import ENCODED, F64, HIDDEN, LOSSES, assert_close, make_batch, make_model

SGD = optax.sgd(0.0)  # the parameters stay, so that what is drawn shows in the losses


class Zoneout(nnx.Module):
    """A cell that keeps half of its units at each step; in evaluation, their mean."""

    def __init__(self, rngs: nnx.Rngs):
        self.cell = nnx.GRUCell(ENCODED, HIDDEN, rngs=rngs, **F64)
        self.rngs = nnx.Rngs(zoneout=5)
        self.deterministic = False

    def initialize_carry(self, input_shape: Any, rngs: Any) -> Any:
        return self.cell.initialize_carry(input_shape, rngs=rngs)

    def __call__(self, carry: Any, x: Any) -> Any:
        new, _ = self.cell(carry, x)
        kept: Any = 0.5
        if not self.deterministic:
            kept = jax.random.bernoulli(self.rngs.zoneout(), 0.5, new.shape)
        new = kept * carry + (1 - kept) * new
        return new, new


class Dropping(nnx.Module):
    """Dropout on the hidden state that goes into the step."""

    def __init__(self, rngs: nnx.Rngs):
        self.cell = nnx.SimpleCell(ENCODED, HIDDEN, rngs=rngs, **F64)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(7))

    def initialize_carry(self, input_shape: Any, rngs: Any) -> Any:
        return self.cell.initialize_carry(input_shape, rngs=rngs)

    def __call__(self, carry: Any, x: Any) -> Any:
        return self.cell(self.dropout(carry), x)


class Coins(nnx.Module):
    """Its output at each step is a row of coins, and says how many were drawn."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))
        self.rngs = nnx.Rngs(coins=1)
        self.deterministic = False

    def initialize_carry(self, input_shape: Any, rngs: Any) -> Any:
        del rngs
        return jnp.zeros(input_shape[0])

    def __call__(self, carry: Any, x: Any) -> Any:
        coins = jnp.zeros((*carry.shape, 8))
        if not self.deterministic:
            coins = jax.random.bernoulli(self.rngs.coins(), 0.5, coins.shape).astype(float)
        return carry + 1, self.weight * coins


CORES = {"zoneout": Zoneout, "dropout": Dropping}


def make(core: str) -> tbptt.TrainState:
    model = make_model("rnn")
    model.core = CORES[core](nnx.Rngs(0))
    return tbptt.TrainState.create(model, SGD, LOSSES["xent"], seed=3)


def coins_of(batch: tbptt.Batch, plan: tbptt.Truncation, seed: int = 0) -> np.ndarray:
    """The coins of the last step of each window, as one number, told apart by the loss."""
    powers = 2.0 ** np.arange(8)[None, None]
    state = tbptt.TrainState.create(
        tbptt.SequenceModel(core=Coins()), SGD, lambda y, t: (y * powers).sum(-1), seed=seed
    )
    _, metrics = tbptt.train_step(state, batch, plan)
    return np.asarray(metrics.loss)


@pytest.mark.slow
def test_every_step_of_every_window_draws_anew():
    batch = tbptt.Batch(np.zeros((1, 24, 1)), np.zeros((1, 24)))
    one_by_one = coins_of(batch, tbptt.Truncation(1, 1))
    assert len(set(one_by_one.tolist())) > 18  # of 24 numbers below 256
    last = np.zeros((1, 24))
    values = set()
    for step in range(24):  # of one window, step by step
        weights = last.copy()
        weights[0, step] = 1
        values.add(float(coins_of(batch._replace(weights=weights), tbptt.Truncation(24, 24))[0]))
    assert len(values) > 18
    again = coins_of(batch, tbptt.Truncation(1, 1))
    np.testing.assert_array_equal(again, one_by_one)
    assert not np.array_equal(coins_of(batch, tbptt.Truncation(1, 1), seed=1), one_by_one)


def test_padding_does_not_change_what_other_rows_draw():
    """A masked row has the number of another step, which must not become everyone's."""
    batch = tbptt.Batch(np.zeros((2, 6, 1)), np.zeros((2, 6)), weights=np.ones((2, 6)))
    batch.weights[0] = 0
    mask = np.ones((2, 6), bool)
    mask[0, 2:] = False
    for plan in (tbptt.Truncation(6, 6), tbptt.Truncation(3, 2, "loss")):
        found = coins_of(batch._replace(mask=mask), plan)
        np.testing.assert_array_equal(found, coins_of(batch, plan))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("reach", [None, 2])
def test_the_gradient_is_that_of_the_numbers_drawn(core, reach):
    """By finite differences of the loss with one key; with `reach`, of the readout alone."""
    state, batch, key = make(core), make_batch(5, "mw"), jax.random.key(4)
    window = tbptt.Window(batch.inputs, batch.targets, batch.weights, mask=batch.mask)

    def loss(params):
        value, grads = tbptt.window_value_and_grad(
            state.functions, state.loss, params, None, window, key, reach=reach
        )
        return float(value.loss), grads

    _, grads = loss(state.params)
    part = "core" if reach is None else "readout"
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), state.params[part])

    def moved(by):
        new = jax.tree.map(lambda p, d: p + by * d, state.params[part], direction)
        return loss({**state.params, part: new})[0]

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    pairs = zip(jax.tree.leaves(grads[part]), jax.tree.leaves(direction), strict=True)
    np.testing.assert_allclose(sum(np.vdot(g, d) for g, d in pairs), slope, rtol=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("block", [None, 2])
def test_windows_of_each_loss_draw_what_a_reverse_pass_draws(core, block):
    """A reset leaves one pair of steps beyond the reach, so that both gradients are equal."""
    state, (inputs, targets, *_) = make(core), make_batch(6)
    reset = np.zeros((2, 6), bool)
    reset[:, 3] = True
    window, key = tbptt.Window(inputs, targets, reset=reset), jax.random.key(3)
    terms = state.functions, state.loss, state.params, None, window, key
    whole = tbptt.window_value_and_grad(*terms)
    assert_close(tbptt.window_value_and_grad(*terms, reach=5, block=block), whole, 1e-12)
    other = tbptt.window_value_and_grad(*terms[:-1], jax.random.key(8))
    assert float(other[0].loss) != float(whole[0].loss)


@pytest.mark.parametrize("core", CORES)
def test_nothing_is_drawn_in_evaluation(core):
    state, batch = make(core), make_batch(6, "m")
    outputs = tbptt.predict(state, batch)
    model: Any = state.model()
    carry = model.core.initialize_carry((2, ENCODED), rngs=nnx.Rngs(0))
    for t in range(6):
        new, y = model.core(carry, model.encoder(jnp.asarray(batch.inputs[:, t])))
        carry = jnp.where(batch.mask[:, t, None], new, carry)
        np.testing.assert_allclose(
            np.asarray(outputs)[batch.mask[:, t], t],
            np.asarray(model.readout(y))[batch.mask[:, t]],
            rtol=1e-12,
        )
    means = [tbptt.evaluate(state, batch) for _ in range(2)]
    assert means[0] == means[1]
    gradients = [tbptt.gradient(state, batch, tbptt.Truncation(2, 3)) for _ in range(2)]
    assert_close(*gradients, tolerance=0)


class AlwaysDraws(Zoneout):
    def __call__(self, carry: Any, x: Any) -> Any:
        new, _ = self.cell(carry, x)
        return new * jax.random.bernoulli(self.rngs.zoneout(), 0.5, new.shape), new


def test_a_core_that_draws_in_evaluation_is_refused():
    model = make_model("rnn")
    model.core = AlwaysDraws(nnx.Rngs(0))
    state = tbptt.TrainState.create(model, SGD, LOSSES["xent"])
    for function in (tbptt.predict, tbptt.evaluate):
        with pytest.raises(ValueError, match="core draws .* in evaluation"):
            function(state, make_batch(4))


def test_a_stack_may_hold_a_cell_that_draws():
    model = make_model("rnn")
    model.core = tbptt.Stack([Dropping(nnx.Rngs(0)), tbptt.LSTM(3, 3, rngs=nnx.Rngs(1), **F64)])
    state = tbptt.TrainState.create(model, optax.sgd(0.1), LOSSES["xent"])
    after, metrics = tbptt.train_step(state.copy(), make_batch(6, "mr"), tbptt.Truncation(2, 4))
    assert metrics.finite.all()
    first, second = (tbptt.predict(s, make_batch(6)) for s in (state, after))
    assert not np.allclose(first, second)


def test_plain_functions_get_a_key_for_each_step():
    """x + noise, with keys told apart: every step of a window is given another."""
    model = tbptt.Model(
        initialize_carry=lambda params, shape: jnp.zeros(shape[0]),
        encode=lambda params, inputs, rng: inputs,
        step=lambda params, carry, x: (carry, params * x[:, 0]),
        readout=lambda params, ys, rng: ys,
        random_step=lambda params, carry, x, rng: (
            carry,
            params * jnp.broadcast_to(jax.random.uniform(rng), carry.shape),
        ),
    )
    inputs = np.full((1, 8, 1), 3.0)
    window = tbptt.Window(inputs, np.zeros((1, 8)))
    _, ys, _ = tbptt.forward(model, jnp.ones(()), None, window, jax.random.key(0))
    assert len(set(np.asarray(ys)[0].tolist())) == 8
    assert np.all(np.asarray(ys) < 1)
    _, ys, _ = tbptt.forward(model, jnp.ones(()), None, window)
    np.testing.assert_array_equal(ys, np.full((1, 8), 3.0))


@pytest.mark.parametrize("reach", [None, 2])
def test_encoder_and_readout_draw_from_keys_of_their_own(reach):
    """Noise is added before the core and taken away after it; one key for both would leave none."""

    def noise(like: Any, rng: Any) -> Any:
        return 0.0 if rng is None else jax.random.uniform(rng, like.shape)

    model = tbptt.Model(
        initialize_carry=lambda params, shape: jnp.zeros(shape[0]),
        encode=lambda params, inputs, rng: inputs + noise(inputs, rng),
        step=lambda params, carry, x: (carry, params * x),
        readout=lambda params, ys, rng: ys - noise(ys, rng),
    )
    window = tbptt.Window(np.zeros((1, 8, 1)), np.zeros((1, 8)))
    value, grad = tbptt.window_value_and_grad(
        model,
        lambda y, t: jnp.abs(y[..., 0]),
        jnp.ones(()),
        None,
        window,
        jax.random.key(0),
        reach=reach,
    )
    assert float(value.loss) > 1  # of eight differences of uniform numbers: 8 / 3 on average
    assert float(grad) != 0


def test_random_streams_of_a_model_draw_apart():
    """Two dropouts, each with a stream of its own, do not drop the same units."""
    encoder = nnx.Sequential(*(nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=i)) for i in range(2)))
    model = tbptt.SequenceModel(encoder, nnx.SimpleCell(1, 1, rngs=nnx.Rngs(0)))
    functions, params = tbptt.functional(model)
    xs = np.asarray(functions.encode(params, jnp.ones((1, 1000, 1)), jax.random.key(0)))
    assert set(np.unique(xs)) == {0, 4}
    assert 0.2 < np.mean(xs != 0) < 0.3  # half of a half; half of all if they drew alike
