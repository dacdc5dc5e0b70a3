"""Networks of Haiku, held to their own modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt_jax as tbptt
from tbptt_jax.adapters import from_haiku
from tests.adapters.reference import CLASSES, FEATURES, HIDDEN, LOSS, MARKS, B, Peer, batch, check

hk = pytest.importorskip("haiku", reason="only with [adapters]")


class Learnt(hk.GRU):
    """A GRU with a learnt initial state."""

    def initial_state(self, batch_size):
        start = hk.get_parameter("start", [self.hidden_size], init=hk.initializers.RandomNormal())
        return jnp.broadcast_to(start, (batch_size, self.hidden_size))


CORES = {
    "lstm": lambda: hk.LSTM(HIDDEN),
    "gru": lambda: hk.GRU(HIDDEN),
    "vanilla": lambda: hk.VanillaRNN(HIDDEN),
    "deep": lambda: hk.DeepRNN([hk.LSTM(HIDDEN), jnp.tanh, hk.GRU(HIDDEN)]),
    "learnt": lambda: Learnt(HIDDEN),
}


def encoder():
    return hk.Sequential([hk.Linear(FEATURES), jnp.tanh])


def readout():
    return hk.Linear(CLASSES)


def made(core, **parts):
    model, params = from_haiku(core, readout=readout, inputs=batch().inputs, **parts)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda p: np.asarray(p, np.float64) + 0.1 * rng.normal(size=p.shape), params
    )


def peer(core):
    encode, read = hk.transform(lambda x: encoder()(x)), hk.transform(lambda y: readout()(y))
    initial = hk.transform(lambda: core().initial_state(B))
    one = hk.transform(lambda x, state: core()(x, state))

    def step(params, carry, x):
        x = encode.apply(params["encoder"], None, x)
        y, carry = one.apply(params["core"], None, x, carry)
        return carry, read.apply(params["readout"], None, y)

    def start(params):
        carry = initial.apply(params["core"], None)
        return jax.tree.map(lambda c: c.astype(jnp.float64), carry)

    return Peer(start, step)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", CORES)
def test_values_gradient_and_update_are_haiku_s(kind, marks):
    model, params = made(CORES[kind], encoder=encoder)
    given = model.initialize_carry
    # Haiku's zeros are float32 whatever the parameters are.
    model = model._replace(
        initialize_carry=lambda *a: jax.tree.map(lambda c: c.astype(jnp.float64), given(*a))
    )
    check(model, params, peer(CORES[kind]), marks)


def test_parameters_have_haiku_s_layout_and_may_be_given():
    b = batch()
    _, params = made(CORES["lstm"])
    state = hk.transform(lambda: hk.LSTM(HIDDEN).initial_state(B)).apply({}, None)
    own = hk.transform(lambda x, s: hk.LSTM(HIDDEN)(x, s)).init(
        jax.random.key(0), b.inputs[:, 0], state
    )
    assert jax.tree.map(jnp.shape, params["core"]) == jax.tree.map(jnp.shape, own)
    _, same = from_haiku(CORES["lstm"], readout=readout, params=params)
    assert same is params


class Noisy(hk.RNNCore):
    """A core whose noise is on in training."""

    def __call__(self, x, state, is_training=False):
        h = jnp.tanh(hk.Linear(HIDDEN)(jnp.concatenate([state, x], axis=-1)))
        return h, hk.dropout(hk.next_rng_key(), 0.5, h) if is_training else h

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, HIDDEN))


class Dropped(hk.Module):
    """A layer with a mode argument."""

    def __call__(self, x, is_training):
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


@pytest.mark.parametrize(("core", "encode"), [(CORES["gru"], Dropped), (Noisy, None)])
def test_random_numbers_of_haiku_are_of_the_training_alone(core, encode):
    b = batch()
    model, params = from_haiku(
        core, encoder=encode, readout=readout, inputs=b.inputs.astype(np.float32)
    )
    window = tbptt.Window(jnp.asarray(b.inputs, jnp.float32), b.targets)

    def value(rng):
        return tbptt.window_value_and_grad(model, LOSS, params, None, window, rng=rng)[0].loss

    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(None) == value(None) != value(jax.random.key(0))


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(TypeError, match="from_haiku: params or inputs must be given, got neither"):
        from_haiku(CORES["gru"])
    with pytest.raises(ValueError, match="hk.transform_with_state"):
        made(CORES["gru"], encoder=lambda: lambda x: hk.BatchNorm(True, True, 0.9)(x, True))
