"""A cell whose layers a user changed keeps the numbers of its own step, whichever way it runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.cells import dispatch, gated, layers, scan
from tests import oracle
from tests.networks import (
    ENCODED,
    F64,
    HIDDEN,
    LOSSES,
    as_numpy,
    assert_close,
    make_batch,
    make_model,
    make_state,
)

B, T, FEATURES = 2, 9, 3
KINDS = {
    "LSTM": (tbptt.LSTM, 4),
    "OptimizedLSTMCell": (nnx.OptimizedLSTMCell, 4),
    "GRUCell": (nnx.GRUCell, 3),
}


def quantised(x, kernel, dimensions, **options):
    """A product that rounds its inputs, on a grid set by the largest of each row."""
    grid = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-3) / 7
    rounded = x + jax.lax.stop_gradient(jnp.round(x / grid) * grid - x)
    return jax.lax.dot_general(rounded, kernel, dimensions, **options)


def halved(arrays, *, dtype=None, **options):
    return tuple(None if a is None else a / 2 for a in arrays)


class Adapter(nnx.Linear):
    """A layer with a low-rank addition to its product: a subclass with the same attributes."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.down = nnx.Param(jnp.ones((self.in_features, 1), jnp.float64))

    def __call__(self, inputs, out_sharding=None):
        return super().__call__(inputs) + (inputs @ self.down[...])


class Frozen(nnx.Param):
    """A parameter of another type."""


class Doubled(nnx.Param):
    """A parameter that reads as something else than it holds."""

    def __getitem__(self, key):
        return 2 * super().__getitem__(key)


def set_attribute(name: str, value: Any) -> Callable[[nnx.Linear], nnx.Linear]:
    def change(layer):
        setattr(layer, name, value)
        return layer

    return change


def with_kernel(kind: type) -> Callable[[nnx.Linear], nnx.Linear]:
    def change(layer):
        layer.kernel = kind(layer.kernel[...])
        return layer

    return change


def linear(bias: bool, kind: Any = nnx.Linear) -> Callable[[nnx.Linear], nnx.Linear]:
    return lambda old: kind(
        old.in_features, old.out_features, use_bias=bias, rngs=nnx.Rngs(1), **F64
    )


PLAIN = {
    "as it is": lambda layer: layer,
    "with a bias": linear(True),
    "without a bias": linear(False),
}
CHANGED = {
    "dot_general": set_attribute("dot_general", quantised),
    "precision": set_attribute("precision", jax.lax.Precision.HIGHEST),
    "promote_dtype": set_attribute("promote_dtype", halved),
    "preferred_element_type": set_attribute("preferred_element_type", jnp.float64),
    "another attribute": set_attribute("scale", 2.0),
    "another parameter": set_attribute("extra", nnx.Param(jnp.ones(2))),
    "adapter": linear(False, Adapter),
    "adapter with a bias": linear(True, Adapter),
    "frozen": with_kernel(Frozen),
    "doubled": with_kernel(Doubled),
    "a bias of one number": set_attribute("bias", nnx.Param(jnp.ones(1))),
}
LAYERS = PLAIN | CHANGED


def make(kind: str, inner: str, hidden: str) -> Any:
    cell = KINDS[kind][0](FEATURES, HIDDEN, rngs=nnx.Rngs(0), **F64)
    for name, change in (("dense_i", inner), ("dense_h", hidden)):
        layer = getattr(cell, name)
        if change == "a bias of one number":
            layer = linear(True)(layer)
        setattr(cell, name, LAYERS[change](layer))
    return cell


def normal(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def scanned(graph, mask, reset, params, carry, xs):
    """The cell's own step, by JAX's own scan."""
    cell = nnx.merge(graph, params)
    initial = cell.initialize_carry((B, FEATURES), rngs=nnx.Rngs(0))

    def step(carry, given):
        x, exists, restarts = given
        carry = carry if reset is None else where(restarts, initial, carry)
        new, y = cell(carry, x)
        carry = new if mask is None else where(exists, new, carry)
        return carry, (y, carry)

    steps = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (xs, mask, reset))
    carry, (ys, carries) = jax.lax.scan(step, carry, steps)
    return carry, jnp.swapaxes(ys, 0, 1), carries


def where(flags, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(flags[:, None], a, b), yes, no)


def unrolled(graph, mask, reset, params, carry, xs):
    return dispatch.unroll(nnx.merge(graph, params), carry, xs, mask, reset)


def assert_same_as_scanned(cell: Any, marks: str = "mr", seed: int = 0) -> None:
    """Values, and the gradient of everything with respect to everything."""
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(rng.random((B, T)) > 0.3) if "m" in marks else None
    reset = jnp.asarray(rng.random((B, T)) < 0.3) if "r" in marks else None
    graph, params = nnx.split(cell, nnx.Param)
    params = normal(params, seed)
    carry = normal(cell.initialize_carry((B, FEATURES), rngs=nnx.Rngs(0)), seed + 1)
    given = params, carry, normal(jnp.zeros((B, T, FEATURES)), seed + 2)

    def results(run, *given):
        end, ys, carries = run(graph, mask, reset, *given)
        # What a masked step puts out means nothing.
        return end, ys if mask is None else jnp.where(mask[..., None], ys, 0), carries

    expected, pull = jax.vjp(jax.jit(functools.partial(results, scanned)), *given)
    found, pull_found = jax.vjp(jax.jit(functools.partial(results, unrolled)), *given)
    assert_close(as_numpy(found), as_numpy(expected), tolerance=1e-12)
    cotangent = normal(expected, seed + 3)
    assert_close(as_numpy(pull_found(cotangent)), as_numpy(pull(cotangent)), tolerance=1e-11)


@pytest.mark.parametrize("hidden", PLAIN)
@pytest.mark.parametrize("inner", PLAIN)
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_biases_on_either_side_belong_to_the_fused_cells(kind, inner, hidden, monkeypatch):
    monkeypatch.setattr(scan, "unroll_existing", None)  # a cell that is scanned agrees with itself
    assert_same_as_scanned(make(kind, inner, hidden))


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        *((change, "dense_h") for change in CHANGED),
        *(pytest.param(change, "dense_i", marks=pytest.mark.slow) for change in CHANGED),
        ("dot_general", "dense_i"),
    ],
)
def test_a_changed_layer_is_not_fused(change, layer, monkeypatch):
    monkeypatch.setattr(gated, "unroll", None)
    layered = {"dense_i": "as it is", "dense_h": "as it is"} | {layer: change}
    assert_same_as_scanned(make("GRUCell", layered["dense_i"], layered["dense_h"]))


# Which layer, which change, which marks: drawn, and each draw the same on every machine.
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 60))]
)
def test_layers_swapped_at_random(seed):
    rng = np.random.default_rng(seed)
    kind = rng.choice(list(KINDS))
    inner, hidden = rng.choice(list(LAYERS), 2)
    cell = make(str(kind), str(inner), str(hidden))
    if rng.random() < 0.2:
        cell.activation_fn = nnx.relu
    if rng.random() < 0.2:
        cell.gate_fn = nnx.hard_sigmoid
    assert_same_as_scanned(cell, str(rng.choice(["", "m", "r", "mr"])), seed)


def test_a_gru_with_a_bias_on_the_hidden_product_is_that_of_pytorch():
    """n = tanh(W x + b_in + r * (U h + b_hn)), which is also `reset_after` in Keras."""
    cell = make("GRUCell", "with a bias", "with a bias")
    graph, params = nnx.split(cell, nnx.Param)
    cell = nnx.merge(graph, normal(params, 1))
    xs = np.random.default_rng(2).normal(size=(B, T, FEATURES))
    h, expected = np.zeros((B, HIDDEN)), []
    inner, hidden = (
        (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...]))
        for layer in (cell.dense_i, cell.dense_h)
    )
    for t in range(T):
        x_r, x_z, x_n = np.split(xs[:, t] @ inner[0] + inner[1], 3, axis=1)
        h_r, h_z, h_n = np.split(h @ hidden[0] + hidden[1], 3, axis=1)
        r, z = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
        h = (1 - z) * np.tanh(x_n + r * h_n) + z * h
        expected.append(h)
    carry = cell.initialize_carry((B, FEATURES), rngs=nnx.Rngs(0))
    ys = dispatch.unroll(cell, carry, jnp.asarray(xs), None, None)[1]
    np.testing.assert_allclose(ys, np.stack(expected, 1), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ys, nnx.RNN(cell)(jnp.asarray(xs)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("hidden", ["with a bias", "without a bias"])
@pytest.mark.parametrize(("kind", "name"), [("LSTM", "lstm"), ("GRUCell", "gru")])
def test_its_gradient_is_the_oracles(kind, name, hidden):
    cell = KINDS[kind][0](ENCODED, HIDDEN, rngs=nnx.Rngs(0), **F64)
    cell.dense_i, cell.dense_h = linear(True)(cell.dense_i), LAYERS[hidden](cell.dense_h)
    state, batch = make_state(cell, "mse"), make_batch(T, "mw", "mse")
    for k1, k2 in ((3, 3), (2, 5)):
        expected, _ = oracle.gradient(name, "mse", as_numpy(state.params), batch, k1, k2)
        found = tbptt.gradient(state, batch, tbptt.Truncation(k1, k2))
        assert_close(as_numpy(found), expected)
        assert np.any(found["core"]["dense_i"]["bias"])


def test_a_layer_as_flax_makes_it_is_plain_whatever_its_arguments():
    for bias in (True, False):
        for dtype in (None, jnp.bfloat16, np.dtype("float64"), "float32"):
            layer = nnx.Linear(3, 4, use_bias=bias, dtype=dtype, rngs=nnx.Rngs(0))
            assert layers.is_plain_linear(layer)
            assert layers.is_plain_linear(nnx.merge(*nnx.split(layer)))
    for change in CHANGED.values():
        assert not layers.is_plain_linear(change(nnx.Linear(3, 4, rngs=nnx.Rngs(0), **F64)))


@pytest.mark.parametrize("kept", [("c",), ("h",), ("c", "h")])
def test_a_loss_of_one_leaf_of_the_carries_has_its_gradient(kept):
    cell = make("LSTM", "as it is", "as it is")
    graph, params = nnx.split(cell, nnx.Param)
    params = normal(params, 1)
    carry = normal(cell.initialize_carry((B, FEATURES), rngs=nnx.Rngs(0)), 2)
    xs = normal(jnp.zeros((B, T, FEATURES)), 3)

    def loss(run, params):
        carries = dict(zip("ch", run(graph, None, None, params, carry, xs)[2], strict=True))
        return sum(jnp.sum(jnp.sin(carries[name])) for name in kept)

    expected, found = (jax.grad(functools.partial(loss, r))(params) for r in (scanned, unrolled))
    assert_close(as_numpy(found), as_numpy(expected), tolerance=1e-12)


def test_examples_may_have_more_than_one_axis():
    cell = make("GRUCell", "as it is", "as it is")
    carry, xs = normal(jnp.zeros((B, 2, HIDDEN)), 1), normal(jnp.zeros((B, T, 2, FEATURES)), 2)
    mask = jnp.asarray(np.random.default_rng(0).random((B, T)) > 0.3)
    _, ys, carries = dispatch.unroll(cell, carry, xs, mask, None)
    for i in range(2):
        one = dispatch.unroll(cell, carry[:, i], xs[:, :, i], mask, None)
        assert_close(as_numpy((ys[:, :, i], carries[:, :, i])), as_numpy(one[1:]), tolerance=1e-12)


class Total(nnx.Module):
    """Adds up its inputs, as many as it is given."""

    def initialize_carry(self, input_shape, rngs):
        del rngs
        return jnp.zeros(input_shape)

    def __call__(self, carry, x):
        return (carry + x,) * 2


def test_a_cell_of_a_stack_is_given_the_shape_of_its_own_inputs():
    cell = nnx.GRUCell(FEATURES, 5, rngs=nnx.Rngs(0), **F64)
    stack, xs = tbptt.Stack([cell, Total()]), normal(jnp.zeros((B, T, FEATURES)), 2)
    carry = stack.initialize_carry((B, FEATURES), nnx.Rngs(0))
    (_, total), ys, _ = stack.unroll(carry, xs)
    _, below, _ = dispatch.unroll(cell, jnp.zeros((B, 5)), xs, None, None)
    assert_close(as_numpy(ys), np.cumsum(below, axis=1), tolerance=1e-12)
    assert_close(as_numpy(total), as_numpy(ys[:, -1]), tolerance=0)


class TwiceAsMuch(tbptt.Stack):
    """A stack with a step of its own, whose unroll is that of the stack below it."""

    def __call__(self, carry, x):
        carry, y = super().__call__(carry, x)
        return carry, 2 * y


class Numbered(nnx.SimpleCell):
    """A cell with an attribute that is called like the method."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.unroll = 4


@pytest.mark.parametrize("name", ["stack", "attribute"])
def test_an_unroll_that_is_not_of_this_step_is_not_used(name):
    if name == "stack":
        core: Any = TwiceAsMuch([nnx.SimpleCell(ENCODED, HIDDEN, rngs=nnx.Rngs(0), **F64)])
    else:
        core = Numbered(ENCODED, HIDDEN, rngs=nnx.Rngs(0), **F64)
    state, batch = (
        tbptt.TrainState.create(make_model(core), optax.sgd(0.1), LOSSES["xent"]),
        make_batch(T),
    )
    model: Any = state.model()
    carry = jax.tree.map(jnp.asarray, model.core.initialize_carry((B, ENCODED), nnx.Rngs(0)))
    expected = []
    for t in range(T):
        carry, y = model.core(carry, model.encoder(jnp.asarray(batch.inputs[:, t])))
        expected.append(model.readout(y))
    assert_close(np.asarray(tbptt.predict(state, batch)), np.stack(expected, 1))


def test_ids_of_an_exchanged_table_are_those_of_the_new_one():
    encoder = nnx.Embed(5, ENCODED, rngs=nnx.Rngs(0), **F64)
    encoder.embedding = nnx.Embed(8, ENCODED, rngs=nnx.Rngs(0), **F64).embedding
    core = nnx.GRUCell(ENCODED, HIDDEN, rngs=nnx.Rngs(0), **F64)
    functions, params = tbptt.functional(tbptt.SequenceModel(encoder, core))
    assert functions.vocabulary == 8
    assert np.isfinite(functions.encode(params, np.array([[7]]), None)).all()
