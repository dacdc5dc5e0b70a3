"""Networks of flax.linen, held to their own modules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tbptt_jax.adapters import from_linen
from tests.adapters.reference import (
    CLASSES,
    FEATURES,
    HIDDEN,
    LOSS,
    MARKS,
    B,
    Peer,
    batch,
    check,
)

F64 = {"param_dtype": jnp.float64}


class Custom(nn.RNNCellBase):
    """A cell of a user's, with a learnt initial carry and two parts of unlike shapes."""

    @nn.compact
    def __call__(self, carry, x):
        h, count = carry
        h = jnp.tanh(nn.Dense(HIDDEN, **F64)(x) + nn.Dense(HIDDEN, use_bias=False, **F64)(h))
        return (h, count + 1), {"h": h * jnp.cos(count)}["h"]

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        rows = input_shape[0]
        return jnp.ones((rows, HIDDEN)), jnp.zeros((rows, 1))

    @property
    def num_feature_axes(self):
        return 1


CELLS = {
    "lstm": nn.LSTMCell(HIDDEN, **F64),
    "optimized": nn.OptimizedLSTMCell(HIDDEN, **F64),
    "gru": nn.GRUCell(HIDDEN, **F64),
    "relu": nn.GRUCell(HIDDEN, activation_fn=nn.relu, **F64),
    "minimal": nn.MGUCell(HIDDEN, **F64),
    "simple": nn.SimpleCell(HIDDEN, **F64),
    "custom": Custom(),
}
ENCODER = nn.Sequential([nn.Dense(FEATURES, **F64), nn.tanh])
READOUT = nn.Dense(CLASSES, **F64)


def made(cell, **parts):
    b = batch()
    model, params = from_linen(cell, readout=READOUT, inputs=b.inputs, **parts)
    # Biases are zero at first, and a gradient of one by the other would not show.
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)


def peer(cell, encoder=None):
    def step(params, carry, x):
        x = x if encoder is None else encoder.apply({"params": params["encoder"]}, x)
        carry, y = cell.apply({"params": params["core"]}, carry, x)
        return carry, READOUT.apply({"params": params["readout"]}, y)

    return Peer(
        lambda params: cell.initialize_carry(jax.random.key(0), (B, FEATURES)),
        step,
    )


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", CELLS)
def test_values_gradient_and_update_are_linen_s(kind, marks):
    model, params = made(CELLS[kind], encoder=ENCODER)
    assert (model.unroll is not None) == (kind in ("lstm", "optimized", "gru"))
    check(model, params, peer(CELLS[kind], ENCODER), marks)


def test_parameters_have_linen_s_layout_and_linen_s_rnn_takes_them():
    cell, b = CELLS["lstm"], batch()
    model, params = made(cell)
    own = cell.init(jax.random.key(0), (jnp.zeros((B, HIDDEN)),) * 2, b.inputs[:, 0])["params"]
    assert jax.tree.map(jnp.shape, params["core"]) == jax.tree.map(jnp.shape, own)
    ys: Any = nn.RNN(cell).apply({"params": {"cell": params["core"]}}, b.inputs)
    outputs = READOUT.apply({"params": params["readout"]}, ys)
    state = tbptt.TrainState.create(model, optax.sgd(1), LOSS, params=params)
    np.testing.assert_allclose(tbptt.predict(state, b), np.asarray(outputs), atol=1e-12)


def test_given_parameters_are_taken_and_a_part_without_them_may_be_a_function():
    cell, b = CELLS["gru"], batch()
    _, params = made(cell)
    model, same = from_linen(cell, encoder=lambda x: 2 * x, readout=READOUT, params=params)
    assert same is params
    state = tbptt.TrainState.create(model, optax.sgd(1), LOSS, params=params)
    other, _ = made(cell)
    expected = tbptt.TrainState.create(other, optax.sgd(1), LOSS, params=params)
    np.testing.assert_allclose(
        tbptt.predict(state, b), tbptt.predict(expected, b._replace(inputs=2 * b.inputs))
    )


class Dropped(nn.Module):
    """A layer with a mode argument."""

    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class Noisy(nn.RNNCellBase):
    """A cell whose noise is on in training."""

    @nn.compact
    def __call__(self, carry, x, train=False):
        h = jnp.tanh(nn.Dense(HIDDEN, **F64)(jnp.concatenate([carry, x], axis=-1)))
        return nn.Dropout(0.5)(h, deterministic=not train), h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((input_shape[0], HIDDEN))

    @property
    def num_feature_axes(self):
        return 1


@pytest.mark.parametrize(("cell", "encoder"), [(CELLS["gru"], Dropped()), (Noisy(), None)])
def test_random_numbers_of_linen_are_of_the_training_alone(cell, encoder):
    b = batch()
    model, params = from_linen(cell, encoder=encoder, readout=READOUT, inputs=b.inputs)
    window = tbptt.Window(b.inputs, b.targets)

    def value(rng):
        return tbptt.window_value_and_grad(model, LOSS, params, None, window, rng=rng)[0].loss

    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(None) == value(None) != value(jax.random.key(0))


class Normalized(nn.Module):
    """A layer with running statistics."""

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(TypeError, match="encoder holds variables of the collections batch_stats"):
        made(CELLS["gru"], encoder=Normalized())
    with pytest.raises(TypeError, match="from_linen: params or inputs must be given, got neither"):
        from_linen(CELLS["gru"])
