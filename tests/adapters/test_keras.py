"""Keras' models, held to Keras itself on its JAX backend."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tbptt_jax.adapters import from_keras, to_keras
from tests.adapters.reference import ATOL32 as ATOL
from tests.adapters.reference import (
    CLASSES,
    FEATURES,
    HIDDEN,
    LOSS,
    MARKS,
    B,
    Peer,
    T,
    batch,
    check,
)

os.environ["KERAS_BACKEND"] = "jax"  # read where keras is imported
keras = pytest.importorskip("keras", reason="only with [adapters]")
kinds: Any = keras.layers
WORDS = 11


@pytest.fixture(autouse=True)
def _as_keras_runs():
    keras.utils.set_random_seed(0)
    with jax.numpy_rank_promotion("allow"):  # Keras' own code needs it
        yield


RECURRENT = {
    "lstm": lambda **more: [kinds.LSTM(HIDDEN, **more)],
    "gru": lambda **more: [kinds.GRU(HIDDEN, **more)],
    "gru, reset before": lambda **more: [kinds.GRU(HIDDEN, reset_after=False, **more)],
    "simple": lambda **more: [kinds.SimpleRNN(HIDDEN, **more)],
    "relu": lambda **more: [kinds.LSTM(HIDDEN, activation="relu", use_bias=False, **more)],
    "stacked": lambda **more: [
        kinds.LSTM(HIDDEN, return_sequences=True),
        kinds.Dense(3, activation="tanh"),
        kinds.GRU(HIDDEN, **more),
    ],
}


def made(kind, sequences=True, encoder=(), **more):
    layers = RECURRENT[kind](return_sequences=sequences, **more)
    encoder = encoder or [keras.Input((None, FEATURES)), kinds.Dense(FEATURES, activation="tanh")]
    model = keras.Sequential([*encoder, *layers, kinds.Dense(7, "relu"), kinds.Dense(CLASSES)])
    # Keras' biases are zeros and ones at first.
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    return model


def arrays_of(params, layer):
    """A layer's arrays in Keras' order; a pytree is in that of the names."""
    names = [v.path.split(f"{layer.name}/", 1)[1] for v in layer.trainable_variables]
    return [params[layer.name][name] for name in names]


def peer(model):
    """The layers' own calls, one step after the other."""

    def own(layer, params, x, *states):
        values = arrays_of(params, layer)
        one = layer.cell if states else layer
        others = [v.value for v in one.non_trainable_variables]
        return one.stateless_call(values, others, x, *states)[0]

    def zeros(layer):
        return [jnp.zeros((B, HIDDEN), np.float32)] * (2 if isinstance(layer, kinds.LSTM) else 1)

    def step(params, carry, x):
        carry = iter(carry)
        after = []
        for layer in model.layers:
            if hasattr(layer, "cell"):
                x, states = own(layer, params, x, next(carry))
                after.append(list(states))
            else:
                x = own(layer, params, x)
        return after, x

    return Peer(lambda params: [zeros(one) for one in model.layers if hasattr(one, "cell")], step)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_values_gradient_and_update_are_those_of_keras_layers(kind, marks):
    model = made(kind)
    check(*from_keras(model), peer(model), marks, np.float32)


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("kind", RECURRENT)
def test_outputs_are_those_of_the_model(kind, sequences):
    model, b = made(kind, sequences), batch(dtype=np.float32)
    functions, params = from_keras(model)
    state = tbptt.TrainState.create(functions, optax.sgd(0.1), LOSS, params=params)
    ours, theirs = tbptt.predict(state, b), np.asarray(model(b.inputs))
    np.testing.assert_allclose(ours if sequences else ours[:, -1], theirs, atol=ATOL)


def masked_batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, WORDS, (B, T))
    ids[0, :2] = 0  # padding before
    ids[1, 3:] = 0  # behind
    ids[2, 2] = 0  # in the midst
    return ids, rng.integers(0, CLASSES, (B, T))


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru, reset before", "simple", "stacked"])
def test_a_masked_embedding_holds_carry_and_output_as_in_keras(kind, sequences):
    encoder = [keras.Input((None,), dtype="int32"), kinds.Embedding(WORDS, 4, mask_zero=True)]
    model, (ids, targets) = made(kind, sequences, encoder), masked_batch(dtype=np.float32)
    functions, params = from_keras(model)
    assert functions.vocabulary == WORDS
    plain = made(kind, sequences, [encoder[0], kinds.Embedding(WORDS, 4)])
    for a, b in zip(plain.trainable_variables, model.trainable_variables, strict=True):
        a.assign(b)
    assert np.abs(np.asarray(plain(ids)) - np.asarray(model(ids))).max() > 1e-3
    weights = (
        np.ones((B, T), np.float32) if sequences else np.eye(T, dtype=np.float32)[-1:].repeat(B, 0)
    )
    b = tbptt.Batch(ids, targets, weights=weights)
    state = tbptt.TrainState.create(functions, optax.sgd(1.0), LOSS, params=params)
    found = tbptt.predict(state, b)
    shown = found if sequences else found[:, -1]
    np.testing.assert_allclose(shown, np.asarray(model(ids)), atol=ATOL)

    def loss(values):
        others = [v.value for v in model.non_trainable_variables]
        outputs, _ = model.stateless_call(values, others, ids)
        return LOSS(outputs, targets if sequences else targets[:, -1]).mean()

    expected = jax.grad(loss)([v.value for v in model.trainable_variables])
    gradient = tbptt.gradient(state, b, tbptt.Truncation(T, T))
    found = [g for layer in model.layers for g in arrays_of(gradient, layer)]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 1e-6
        np.testing.assert_allclose(ours, theirs, atol=ATOL)
    # In windows too, by a stepped model and with a mask of the batch besides.
    whole = tbptt.gradient(state, b._replace(mask=np.ones((B, T), bool)), tbptt.Truncation(T, T))
    jax.tree.map(lambda a, c: np.testing.assert_allclose(a, c, atol=ATOL), whole, gradient)
    each = tbptt.gradient(state, b, tbptt.Truncation(T, T, anchor="loss"))
    jax.tree.map(lambda a, c: np.testing.assert_allclose(a, c, atol=ATOL), each, gradient)
    short = tbptt.gradient(state, b, tbptt.Truncation(T, 3, anchor="loss"))
    stepped = tbptt.TrainState.create(
        functions._replace(unroll=None), optax.sgd(1.0), LOSS, params=params
    )
    other = tbptt.gradient(stepped, b, tbptt.Truncation(T, 3, anchor="loss"))
    jax.tree.map(lambda a, c: np.testing.assert_allclose(a, c, atol=ATOL), short, other)


def test_masking_of_values():
    encoder = [keras.Input((None, FEATURES)), kinds.Masking(0.0)]
    model, b = made("lstm", encoder=encoder), batch(dtype=np.float32)
    b.inputs[0, :3] = 0
    functions, params = from_keras(model)
    state = tbptt.TrainState.create(functions, optax.sgd(0.1), LOSS, params=params)
    np.testing.assert_allclose(tbptt.predict(state, b), np.asarray(model(b.inputs)), atol=ATOL)


def test_adam_moves_as_keras_does():
    # Keras adds epsilon before the bias of the second moment is corrected, optax behind it.
    eps = 1e-3 / (1 - 0.999) ** 0.5
    model, b = made("stacked"), batch(dtype=np.float32)
    functions, params = from_keras(model)
    state = tbptt.TrainState.create(functions, optax.adam(1e-2, eps=eps), LOSS, params=params)
    state, _ = tbptt.train_step(state, b, tbptt.Truncation(T, T))
    model.compile(
        keras.optimizers.Adam(1e-2, epsilon=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.train_on_batch(b.inputs, b.targets)
    for layer in model.layers:
        ours = arrays_of(state.params, layer)
        for a, variable in zip(ours, layer.trainable_variables, strict=True):
            np.testing.assert_allclose(a, np.asarray(variable.value), atol=ATOL)


def test_trained_weights_go_back():
    model, b = made("stacked"), batch(dtype=np.float32)
    functions, params = from_keras(model)
    state = tbptt.TrainState.create(functions, optax.sgd(0.5), LOSS, params=params)
    before = np.asarray(model(b.inputs))
    state, _ = tbptt.train_step(state, b, tbptt.Truncation(3, 3))
    np.testing.assert_array_equal(before, np.asarray(model(b.inputs)))  # they were copies
    to_keras(state.params, model)
    assert np.abs(before - np.asarray(model(b.inputs))).max() > 1e-3
    np.testing.assert_allclose(tbptt.predict(state, b), np.asarray(model(b.inputs)), atol=ATOL)
    name = model.layers[0].name
    with pytest.raises(ValueError, match=f"of this model, with {name}: .* got .none."):
        to_keras({**state.params, name: {}}, model)


def test_a_frozen_layer_is_a_constant():
    model, b = made("lstm"), batch(dtype=np.float32)
    model.layers[0].trainable = False
    functions, params = from_keras(model)
    assert model.layers[0].name not in params
    state = tbptt.TrainState.create(functions, optax.sgd(0.5), LOSS, params=params)
    np.testing.assert_allclose(tbptt.predict(state, b), np.asarray(model(b.inputs)), atol=ATOL)


def test_dropout_is_keras_own_and_of_the_training_alone():
    layers = [
        keras.Input((None, FEATURES)),
        kinds.Dropout(0.5),
        kinds.LSTM(HIDDEN, return_sequences=True, dropout=0.25),
        kinds.SpatialDropout1D(0.5),
        kinds.Dropout(0.2),
        kinds.GRU(HIDDEN, dropout=0.4),
        kinds.Dropout(0.5),
        kinds.Dense(CLASSES),
    ]
    model, b = keras.Sequential(layers), batch(dtype=np.float32)
    functions, params = from_keras(model)
    window = tbptt.Window(b.inputs, b.targets)

    def value(rng):
        found, _ = tbptt.window_value_and_grad(functions, LOSS, params, None, window, rng=rng)
        return found.loss

    assert value(jax.random.key(0)) == value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(None) == value(None) != value(jax.random.key(0))
    encoded = functions.encode(params, b.inputs, jax.random.key(3))
    first, second = map(np.asarray, encoded.factors)
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1], first.shape))
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.75], rtol=1e-6)
    # One factor for the window, one for each step.
    np.testing.assert_allclose(np.unique(second.round(4)), [0, 1 / 0.5 / 0.8 / 0.6], rtol=1e-4)
    assert (second != second[:, :1]).any()
    assert (second == 0).all(axis=1).any()
    dropped = np.asarray(encoded.x)
    np.testing.assert_allclose(np.unique((dropped / b.inputs).round(4)), [0, 2])
    np.testing.assert_array_equal(functions.encode(params, b.inputs, None).x, b.inputs)


class Subclass(keras.Model):
    """A model of its own call."""

    def call(self, x):
        return x


def two_inputs():
    a, c = keras.Input((None, 4)), keras.Input((None, 4))
    return keras.Model([a, c], kinds.LSTM(3)(kinds.Add()([a, c])))


def chain(*layers, shape=(None, FEATURES)):
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Subclass, TypeError, "model must be a built Sequential or functional"),
        (two_inputs, TypeError, "must be a chain of layers"),
        (lambda: chain(kinds.Dense(3)), TypeError, "must have an LSTM, GRU or SimpleRNN"),
        (lambda: chain(kinds.LSTM(3, go_backwards=True)), ValueError, "go_backwards=False"),
        (
            lambda: chain(kinds.LSTM(3, recurrent_dropout=0.5)),
            ValueError,
            r"layer 'lstm.*' must have recurrent_dropout=0.0, got 0.5",
        ),
        (
            lambda: chain(kinds.LSTM(3, kernel_regularizer="l2")),
            ValueError,
            "must have no regularizer and no constraint",
        ),
        (
            lambda: chain(kinds.BatchNormalization(), kinds.LSTM(3)),
            TypeError,
            "is a BatchNormalization, whose running statistics",
        ),
        (
            lambda: chain(kinds.LSTM(3, return_sequences=True), kinds.Conv1D(3, 3), kinds.LSTM(3)),
            TypeError,
            "between recurrent layers a layer must be Dense, LayerNormalization.*got Conv1D",
        ),
        (
            lambda: chain(kinds.LSTM(3, dtype="mixed_bfloat16")),
            ValueError,
            "must compute in the dtype of its weights, float32, got bfloat16",
        ),
    ],
)
def test_what_is_not_supported_is_named(make, error, message):
    with pytest.raises(error, match=message):
        from_keras(make())
