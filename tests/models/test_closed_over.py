"""What a model holds is trained, tied weights too; what it reaches past that is refused by name."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.models.closed_over import LOSS_ADVICE, check_closed_over
from tbptt_jax.models.functional import check_functions
from tests.networks import F64, HIDDEN, LOSSES, as_numpy, assert_close, randomize

B, T, IDS = 2, 6, 5
XENT = LOSSES["xent"]
RNGS = nnx.Rngs(0)
LINEAR = nnx.Linear(HIDDEN, HIDDEN, rngs=RNGS, **F64)
SCALE = nnx.Param(jnp.ones(()))
linear_of_this_file = LINEAR


def embed() -> nnx.Embed:
    return nnx.Embed(IDS, HIDDEN, rngs=nnx.Rngs(1), **F64)


def core() -> nnx.GRUCell:
    return nnx.GRUCell(HIDDEN, HIDDEN, rngs=nnx.Rngs(2), **F64)


def tied_state() -> tbptt.TrainState:
    layer = embed()
    model = tbptt.SequenceModel(layer, core(), layer.attend)
    return tbptt.TrainState.create(model, optax.sgd(0.1), XENT)


def batch() -> tbptt.Batch:
    ids = np.random.default_rng(0).integers(0, IDS, (2, B, T))
    return tbptt.Batch(ids[0], ids[1])


def test_a_bound_method_is_trained_with_its_layer():
    """The gradient of the one table is the sum of those of its two uses."""
    state, data = tied_state(), batch()
    assert set(state.params) == {"encoder", "core"}
    state = randomize(state)
    graph, _ = nnx.split(core(), nnx.Param)

    def loss(table_in, table_out, cell_params):
        cell, h, total = nnx.merge(graph, cell_params), jnp.zeros((B, HIDDEN)), 0.0
        for t in range(T):
            h, _ = cell(h, table_in[data.inputs[:, t]])
            total += XENT(h @ table_out.T, data.targets[:, t]).sum()
        return total / (B * T)

    table = state.params["encoder"]["embedding"]
    inner, outer, of_cell = jax.grad(loss, argnums=(0, 1, 2))(table, table, state.params["core"])
    assert np.any(inner)
    assert np.any(outer)
    found = tbptt.gradient(state, data, tbptt.Truncation(T, T))
    expected = {"encoder": {"embedding": inner + outer}, "core": of_cell}
    assert_close(as_numpy(found), as_numpy(expected))


def test_an_update_moves_both_uses():
    state, before = tied_state(), embed().embedding[...]
    state, _ = tbptt.train_step(state, batch(), tbptt.Truncation(T, T))
    model: Any = state.model()
    table = state.params["encoder"]["embedding"]
    assert np.max(np.abs(table - before)) > 1e-4
    h = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, HIDDEN)))
    np.testing.assert_array_equal(model.readout(h), h @ table.T)
    np.testing.assert_array_equal(model.encoder(batch().inputs), table[batch().inputs])


def test_models_with_a_bound_method_share_their_compiled_code():
    assert tied_state().functions is tied_state().functions


# --------------------------------------------------------------------------------- what is refused


def of_a_global(h):
    return linear_of_this_file(h)


def of_a_default(h, layer=LINEAR):
    return layer(h)


class Net:
    """A plain object with a layer, and one with a layer in a list."""

    def __init__(self):
        self.layer, self.layers, self.factor = LINEAR, [LINEAR], 2.0

    def __call__(self, h):
        return self.layers[0](h)

    def inner(self, h):
        return self.layer(h)

    def outer(self, h):
        return self.inner(h)

    def harmless(self, h):
        return self.factor * h


class Slotted:
    __slots__ = ("layer",)

    def __init__(self):
        self.layer = LINEAR

    def __call__(self, h):
        return self.layer(h)


class Reaches(nnx.Module):
    """A module whose method uses a layer that it does not hold."""

    def __call__(self, h):
        return linear_of_this_file(h)


class ByProperty(nnx.Module):
    @property
    def layer(self):
        return linear_of_this_file

    def __call__(self, h):
        return self.layer(h)


def apply(net, h):
    return net.layer(h)


def closing(value: Any, function: Any) -> Any:
    return lambda h: function(value, h)


REFUSED = {
    "lambda": (lambda: closing(LINEAR, lambda f, h: f(h)), "`value`, a Linear"),
    "global": (lambda: of_a_global, "`linear_of_this_file`, a Linear"),
    "function that calls one": (lambda: lambda h: of_a_global(h), "`linear_of_this_file`"),
    "comprehension": (lambda: lambda h: sum(LINEAR(x) for x in [h]), "`LINEAR`, a Linear"),
    "lambda in a lambda": (lambda: lambda h: (lambda x: LINEAR(x))(h), "`LINEAR`, a Linear"),
    "default": (lambda: of_a_default, "a default argument, a Linear"),
    "keyword default": (lambda: lambda h, *, f=LINEAR: f(h), "a default argument, a Linear"),
    "parameter": (lambda: lambda h: h * SCALE[...], "`SCALE`, a Param"),
    "partial": (lambda: functools.partial(lambda f, h: f(h), LINEAR), "an argument of a partial"),
    "partial by keyword": (
        lambda: functools.partial(lambda h, f: f(h), f=LINEAR),
        "an argument of a partial",
    ),
    "partial of a method": (lambda: functools.partial(nnx.Embed.attend, embed()), "an Embed"),
    "jax.jit": (lambda: jax.jit(of_a_global), "`linear_of_this_file`"),
    "nnx.jit": (lambda: nnx.jit(of_a_global), "`linear_of_this_file`"),
    "nnx.remat": (lambda: nnx.remat(of_a_global), "`linear_of_this_file`"),
    "jax.checkpoint": (lambda: jax.checkpoint(of_a_global), "`linear_of_this_file`"),
    "jax.vmap": (lambda: jax.vmap(of_a_global), "`linear_of_this_file`"),
    "custom_vjp": (lambda: jax.custom_vjp(of_a_global), "`linear_of_this_file`"),
    "object": (Net, "`layers`, a Linear"),
    "object with slots": (Slotted, "`layer`, a Linear"),
    "method of an object": (lambda: Net().outer, "`layer`, a Linear"),
    "object that a function uses": (lambda: closing(Net(), apply), "`layer`, a Linear"),
    "dict": (lambda: closing({"a": LINEAR}, lambda d, h: d["a"](h)), "`value`, a Linear"),
    "module's method": (Reaches, "`linear_of_this_file`, a Linear"),
    "module's property": (ByProperty, "`linear_of_this_file`, a Linear"),
    "state": (
        lambda: closing(nnx.split(LINEAR), lambda s, h: nnx.merge(*s)(h)),
        "`value`, a State",
    ),
}


@pytest.mark.parametrize("place", ["encoder", "readout", "inside"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_a_layer_is_refused_by_name(name, place):
    make, names = REFUSED[name]
    parts = {"encoder": None, "core": core(), "readout": None, place: make()}
    where = f"SequenceModel.{place}"
    if place == "inside":
        parts = {"encoder": None, "core": core(), "readout": nnx.Sequential(LINEAR, make())}
        where = r"SequenceModel\.readout\.layers\.1"
    with pytest.raises(TypeError, match=f"^{where} uses .*{re.escape(names)}"):
        tbptt.SequenceModel(**parts)


class PlainCore:
    def __init__(self):
        self.cell = core()

    def __call__(self, carry, x):
        return self.cell(carry, x)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape, rngs)


def test_a_core_that_hides_its_cell_is_refused():
    message = r"^SequenceModel\.core{} uses `cell`, a GRUCell"
    with pytest.raises(TypeError, match=message.format("")):
        tbptt.SequenceModel(None, PlainCore())
    with pytest.raises(TypeError, match=message.format(r"\.cells\.0")):
        tbptt.SequenceModel(None, tbptt.Stack([PlainCore()]))
    cell = core()
    cell.dense_h.dot_general = lambda *a, **k: jax.lax.dot_general(*a, **k) * SCALE[...]
    with pytest.raises(TypeError, match=r"core\.dense_h\.dot_general uses `SCALE`, a Param"):
        tbptt.SequenceModel(None, cell)


def test_a_part_that_is_changed_later_is_seen_when_it_is_used():
    model = tbptt.SequenceModel(LINEAR, core())
    model.readout = of_a_global
    with pytest.raises(TypeError, match=r"^SequenceModel\.readout uses `linear_of_this_file`"):
        tbptt.functional(model)


HARMLESS = {
    "function": lambda: lambda h: jnp.tanh(h) * 2,
    "constant": lambda: closing(jnp.ones(HIDDEN), lambda a, h: h * a),
    "arrays of a module": lambda: closing(
        (nnx.split(LINEAR)[0], nnx.to_pure_dict(nnx.state(LINEAR))),
        lambda s, h: nnx.merge(*s)(h),
    ),
    "method beside a layer": lambda: Net().harmless,
    "attribute called like a global": lambda: lambda h: getattr(h, "x", h) if h is None else h.T.T,
    "class": lambda: closing(nnx.Linear, lambda kind, h: h),
    "activation": lambda: nnx.relu,
    "jitted": lambda: jax.jit(lambda h: h * 2),
    "module": lambda: LINEAR,
    "module of modules": lambda: nnx.Sequential(LINEAR, nnx.relu, nnx.LayerNorm(3, rngs=RNGS)),
    "dropout": lambda: nnx.Sequential(LINEAR, nnx.Dropout(0.5, rngs=nnx.Rngs(0))),
    "layers in a tuple": lambda: InATuple(),
    "a function of itself": lambda: loops(),
    "module without parameters": lambda: closing(nnx.Sequential(nnx.relu), lambda f, h: f(h)),
}


class InATuple(nnx.Module):
    def __init__(self):
        self.layers = nnx.data((LINEAR, jnp.tanh))

    def __call__(self, h):
        return self.layers[1](self.layers[0](h))


def loops() -> Any:
    box: dict[str, Any] = {}

    def function(h):
        return h if box else function(h)

    box["function"], box["box"] = function, box
    return function


@pytest.mark.parametrize("name", HARMLESS)
def test_what_holds_no_layer_out_of_sight_is_taken(name):
    readout = HARMLESS[name]()
    model = tbptt.SequenceModel(None, core(), readout)
    functions, _ = tbptt.functional(model)
    check_functions(functions)
    if not isinstance(readout, nnx.Module):
        check_closed_over("loss", lambda y, t: readout(y), "")


def test_an_attribute_is_not_the_global_of_its_name():
    check_closed_over("loss", lambda y, t: y.LINEAR, "")


def test_a_loss_or_a_function_of_a_model_is_refused_likewise():
    message = f"^loss uses `LINEAR`, a Linear .*{re.escape(LOSS_ADVICE)}"
    with pytest.raises(TypeError, match=message):
        check_closed_over("loss", lambda y, t: LINEAR(y), LOSS_ADVICE)
    with pytest.raises(TypeError, match="^loss uses its own parameters, a Linear"):
        check_closed_over("loss", LINEAR, LOSS_ADVICE)
    functions, _ = tbptt.functional(tbptt.SequenceModel(None, core()))
    functions = functions._replace(readout=lambda params, ys, rng: LINEAR(ys))
    with pytest.raises(TypeError, match=r"^Model: readout uses `LINEAR`, .*`params`"):
        check_functions(functions)
