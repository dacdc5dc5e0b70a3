"""Networks of Equinox, held to their own modules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tbptt_jax.adapters import from_equinox
from tests.adapters.reference import CLASSES, FEATURES, HIDDEN, LOSS, MARKS, B, Peer, batch, check

eqx = pytest.importorskip("equinox", reason="only with [adapters]")

KEYS = jax.random.split(jax.random.key(0), 4)


class Custom(eqx.Module):
    """A cell of a user's, with noise in training."""

    linear: Any
    dropout: Any

    def __init__(self, key, rate=0.0):
        self.linear = eqx.nn.Linear(FEATURES + HIDDEN, HIDDEN, key=key)
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x, carry, *, key=None):
        h = jnp.tanh(self.linear(jnp.concatenate([x, carry["h"]])))
        return {"h": self.dropout(h, key=key)}


CELLS = {
    "lstm": eqx.nn.LSTMCell(FEATURES, HIDDEN, key=KEYS[0]),
    "lstm without biases": eqx.nn.LSTMCell(FEATURES, HIDDEN, use_bias=False, key=KEYS[0]),
    "gru": eqx.nn.GRUCell(FEATURES, HIDDEN, key=KEYS[0]),
    "custom": Custom(KEYS[0]),
}
ENCODER = eqx.nn.MLP(FEATURES, FEATURES, 7, 1, key=KEYS[1])
READOUT = eqx.nn.Linear(HIDDEN, CLASSES, key=KEYS[2])
MORE = {"custom": {"initial": {"h": np.full(HIDDEN, 0.5)}, "output": lambda carry: carry["h"]}}


def made(kind):
    return from_equinox(CELLS[kind], encoder=ENCODER, readout=READOUT, **MORE.get(kind, {}))


def peer(kind):
    def whole(params, name, module):
        return eqx.combine(params[name], eqx.filter(module, eqx.is_inexact_array, inverse=True))

    def initial(params):
        if kind == "custom":
            return {"h": jnp.full((B, HIDDEN), 0.5)}
        zero = jnp.zeros((B, HIDDEN))
        return zero if kind == "gru" else (zero, zero)

    def step(params, carry, x):
        x = jax.vmap(whole(params, "encoder", ENCODER))(x)
        cell = eqx.nn.inference_mode(whole(params, "core", CELLS[kind]))
        carry = jax.vmap(cell)(x, carry)
        y = {"gru": lambda: carry, "custom": lambda: carry["h"]}.get(kind, lambda: carry[0])()
        return carry, jax.vmap(whole(params, "readout", READOUT))(y)

    return Peer(initial, step)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", CELLS)
def test_values_gradient_and_update_are_equinox_s(kind, marks):
    model, params = made(kind)
    assert (model.unroll is not None) == (kind != "custom")
    check(model, params, peer(kind), marks)


def test_parameters_are_the_modules_and_go_back():
    _, params = made("lstm")
    again = eqx.combine(
        params["core"], eqx.filter(CELLS["lstm"], eqx.is_inexact_array, inverse=True)
    )
    assert eqx.tree_equal(again, CELLS["lstm"])


def test_an_output_of_one_s_own_is_that_of_every_step():
    b = batch()
    model, params = from_equinox(CELLS["lstm"], output=lambda carry: carry[1])
    state = tbptt.TrainState.create(model, optax.sgd(1), LOSS, params=params)
    carry, found = (jnp.zeros((B, HIDDEN)),) * 2, []
    for t in range(b.inputs.shape[1]):
        carry = jax.vmap(CELLS["lstm"])(b.inputs[:, t], carry)
        found.append(carry[1])
    np.testing.assert_allclose(tbptt.predict(state, b), np.stack(found, 1), atol=1e-12)


NOISY = eqx.nn.Sequential([eqx.nn.Linear(FEATURES, FEATURES, key=KEYS[3]), eqx.nn.Dropout(0.5)])


@pytest.mark.parametrize("parts", [{"encoder": NOISY}, {}])
def test_random_numbers_of_equinox_are_of_the_training_alone(parts):
    b = batch()
    cell, more = (CELLS["gru"], {}) if parts else (Custom(KEYS[0], 0.5), MORE["custom"])
    model, params = from_equinox(cell, readout=READOUT, **parts, **more)
    window = tbptt.Window(b.inputs, b.targets)

    def value(rng):
        return tbptt.window_value_and_grad(model, LOSS, params, None, window, rng=rng)[0].loss

    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(None) == value(None) != value(jax.random.key(0))


def test_a_carry_that_is_not_known_must_be_given():
    with pytest.raises(TypeError, match="initial must be given for a Custom"):
        from_equinox(CELLS["custom"])
