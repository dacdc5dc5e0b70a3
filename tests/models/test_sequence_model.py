"""Every kind of model gives the gradient of its own plain loop; unrolls are their steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.cells import scan
from tests import oracle
from tests.networks import (
    CLASSES,
    ENCODED,
    F64,
    FEATURES,
    HIDDEN,
    LOSSES,
    LearntLSTM,
    as_numpy,
    assert_close,
    make_batch,
    make_model,
    randomize,
)

B, T = 2, 8  # long enough for a window with lookback to start at a carry within another
XENT = LOSSES["xent"]


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def linear(features: int, outputs: int) -> nnx.Linear:
    return nnx.Linear(features, outputs, rngs=rngs(), **F64)


def cell(kind: Any, features: int = ENCODED) -> Any:
    return kind(features, HIDDEN, rngs=rngs(), **F64)


class Counting(nnx.Module):
    """A leaky cell of our own: it counts its steps, takes no rngs, and learns where it begins."""

    def __init__(self):
        self.dense = linear(ENCODED + HIDDEN, HIDDEN)
        self.start = nnx.Param(jnp.zeros(HIDDEN, jnp.float64))

    def initialize_carry(self, input_shape):
        h = jnp.broadcast_to(self.start[...], (input_shape[0], HIDDEN))
        return {"h": h, "count": jnp.zeros(input_shape[:1], jnp.int32)}

    def __call__(self, carry, x):
        rate = 1.0 / (2.0 + carry["count"][:, None])  # so the count is seen in every number
        new = jnp.tanh(self.dense(jnp.concatenate([carry["h"], x], axis=-1)))
        h = (1 - rate) * carry["h"] + rate * new
        return {"h": h, "count": carry["count"] + 1}, h


def mixed() -> list[Any]:
    """Three cells with three ways to unroll."""
    return [cell(tbptt.LSTM), cell(nnx.GRUCell, HIDDEN), cell(LearntLSTM, HIDDEN)]


class Tied(nnx.Module):
    """The readout of a language model that shares its embedding."""

    def __init__(self, embed: nnx.Embed):
        self.embed = embed

    def __call__(self, ys):
        return self.embed.attend(ys)


def tied() -> tbptt.SequenceModel:
    embed = nnx.Embed(5, HIDDEN, rngs=rngs(), **F64)
    return tbptt.SequenceModel(embed, cell(nnx.GRUCell, HIDDEN), Tied(embed))


def plain_model() -> tuple[tbptt.Model, Any]:
    """Pure functions with a learnt carry and a parameter used by both encoder and readout."""

    def step(params, carry, x):
        h = jnp.tanh(x @ params["in"] + carry[0] @ params["rec"])
        return [h], (h, x)

    functions = tbptt.Model(
        initialize_carry=lambda params, shape: [jnp.tile(params["start"][None], (shape[0], 1))],
        encode=lambda params, inputs, rng: inputs * params["scale"],
        step=step,
        readout=lambda params, ys, rng: ys[0] @ params["out"] + params["scale"] * ys[1][..., :2],
    )
    shapes = {
        "in": (FEATURES, HIDDEN),
        "rec": (HIDDEN, HIDDEN),
        "out": (HIDDEN, CLASSES),
        "start": (HIDDEN,),
        "scale": (),
    }
    return functions, {name: jnp.zeros(shape) for name, shape in shapes.items()}


def with_core(core: Any) -> tbptt.SequenceModel:
    return tbptt.SequenceModel(linear(FEATURES, ENCODED), core, linear(HIDDEN, CLASSES))


MODELS = {
    "LSTMCell": lambda: with_core(cell(nnx.LSTMCell)),
    "OptimizedLSTMCell": lambda: with_core(cell(nnx.OptimizedLSTMCell)),
    "GRUCell": lambda: with_core(cell(nnx.GRUCell)),
    "SimpleCell": lambda: with_core(cell(nnx.SimpleCell)),
    "own cell": lambda: with_core(Counting()),
    "stack of two": lambda: with_core(
        tbptt.Stack([cell(nnx.SimpleCell), cell(tbptt.LSTM, HIDDEN)])
    ),
    "stack of three": lambda: with_core(tbptt.Stack(mixed())),
    "no encoder": lambda: tbptt.SequenceModel(
        core=cell(tbptt.LSTM, FEATURES), readout=linear(HIDDEN, CLASSES)
    ),
    "no readout": lambda: tbptt.SequenceModel(linear(FEATURES, ENCODED), cell(nnx.GRUCell)),
    "tied embedding": tied,
}


def parts_of_plain_jax(functions: tbptt.Model) -> tuple[Any, Any]:
    def call(params, carry, x):
        carry, y = functions.step(params, carry, functions.encode(params, x, None))
        return carry, functions.readout(params, y, None)

    return call, lambda params: [jnp.tile(params["start"][None], (B, 1))]


def parts_of_module(name: str) -> tuple[Any, Any]:
    """One step and the initial carry, by flax alone."""
    graph, _, rest = nnx.split(MODELS[name](), nnx.Param, ...)

    def call(params, carry, x):
        model: Any = nnx.merge(graph, params, rest)
        carry, y = model.core(carry, x if model.encoder is None else model.encoder(x))
        return carry, y if model.readout is None else model.readout(y)

    def begin(params):
        core: Any = nnx.merge(graph, params, rest).core
        if isinstance(core, Counting):
            return core.initialize_carry((B, ENCODED))
        cells = core.cells if isinstance(core, tbptt.Stack) else [core]
        carries = [c.initialize_carry((B, ENCODED), rngs=rngs()) for c in cells]
        return tuple(carries) if isinstance(core, tbptt.Stack) else carries[0]

    return call, begin


def plain_losses(name: str, state: tbptt.TrainState, batch: tbptt.Batch) -> Any:
    """The losses [T] as a function of one copy of the parameters per step, in a plain loop."""
    inputs, targets = jnp.asarray(batch.inputs), jnp.asarray(batch.targets)
    plain = name == "plain JAX"
    call, begin = parts_of_plain_jax(state.functions) if plain else parts_of_module(name)
    call = jax.jit(call)  # one step, and its adjoint, are compiled once

    def losses(copies):
        # The initial carry belongs to the first step, which is where the recurrence uses it.
        carry, result = begin(copies[0]), []
        for t, params in enumerate(copies):
            carry, outputs = call(params, carry, inputs[:, t])
            result.append(XENT(outputs, targets[:, t]).sum())
        return jnp.stack(result)

    return losses


def make(name: str) -> tbptt.TrainState:
    sgd = optax.sgd(0.1)
    if name == "plain JAX":
        functions, params = plain_model()
        return randomize(tbptt.TrainState.create(functions, sgd, XENT, params=params))
    return randomize(tbptt.TrainState.create(MODELS[name](), sgd, XENT))


# More of the same, left to the longer run.
SLOW = (
    "LSTMCell",
    "OptimizedLSTMCell",
    "GRUCell",
    "SimpleCell",
    "stack of three",
    "no encoder",
    "no readout",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in (*MODELS, "plain JAX")
    ],
)
def test_gradient_is_the_credited_sum_of_per_step_gradients(name):
    state, batch = make(name), make_batch(T, rows=B)
    if name == "tied embedding":
        ids = np.random.default_rng(3).integers(0, 5, (2, B, T))
        batch = tbptt.Batch(ids[0], ids[1])
    losses = plain_losses(name, state, batch)
    values, pull = jax.vjp(losses, [state.params] * T)
    # G[t][s]: the gradient of loss t alone with respect to the copy of step s.
    G = [pull(row)[0] for row in np.eye(T)]
    for k1, k2 in ((2, 2), (2, 5), (5, 2)):
        W = oracle.credit(k1, k2, T)
        terms = [G[t][s] for t in range(T) for s in range(T) if W[t, s]]
        scored = W.any(axis=1).sum() * B
        expected = jax.tree.map(lambda *g, scored=scored: sum(g) / scored, *terms)
        actual = tbptt.gradient(state, batch, tbptt.Truncation(k1, k2))
        assert_close(as_numpy(actual), as_numpy(expected))
        # With k2 < k1 the first step gets no credit, and with it a learnt initial carry.
        assert k2 < k1 or all(np.any(g) for g in jax.tree.leaves(as_numpy(expected)))
    mean = tbptt.evaluate(state, batch)["loss"]
    np.testing.assert_allclose(mean, values.sum() / (B * T), rtol=1e-12)


def marked(mask: bool, reset: bool) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {
        "mask": jnp.asarray(rng.random((B, T)) > 0.3) if mask else None,
        "reset": jnp.asarray(rng.random((B, T)) < 0.3) if reset else None,
    }


def normal(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), tree)


UNROLLS = {
    "LSTM": lambda: cell(LearntLSTM),
    "Stack": lambda: tbptt.Stack(mixed()),
    "Stack in a Stack": lambda: tbptt.Stack([tbptt.Stack([cell(tbptt.LSTM)]), Tail()]),
}


class Tail(nnx.Module):
    """A cell without parameters whose output is narrower than its carry."""

    def initialize_carry(self, input_shape, rngs):
        return jnp.full(input_shape, 0.3)

    def __call__(self, carry, x):
        new = jnp.tanh(carry + x)
        return new, new[..., :2]


@pytest.mark.parametrize(
    ("mask", "reset"),
    [
        (False, False),
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", UNROLLS)
def test_an_unroll_gives_the_numbers_of_scanning_its_step(name, reset, mask):
    module = UNROLLS[name]()
    graph, params = nnx.split(module, nnx.Param)
    params = normal(nnx.to_pure_dict(params), 1)
    shape = (B, ENCODED)
    initial = nnx.merge(graph, params).initialize_carry(shape, rngs=rngs())
    carry, xs = normal(initial, 2), normal(jnp.zeros((B, T, ENCODED)), 3)
    marks = marked(mask, reset)

    def fast(params, carry, xs):
        return existing(nnx.merge(graph, params).unroll(carry, xs, **marks))

    def plain(params, carry, xs):
        core = nnx.merge(graph, params)
        start = core.initialize_carry(shape, rngs=rngs())
        return existing(scan.unroll(core, carry, xs, **marks, initial=start))

    def existing(result):
        end, ys, carries = result  # what stands at a masked step means nothing
        return end, jnp.where(marks["mask"][..., None], ys, 0) if mask else ys, carries

    # A cotangent for everything that comes out reaches every path of the gradient.
    result, pull = jax.vjp(jax.jit(plain), params, carry, xs)
    cotangent = normal(result, 4)
    expected = as_numpy((result, pull(cotangent)))
    result, pull = jax.vjp(jax.jit(fast), params, carry, xs)
    assert_close(as_numpy((result, pull(cotangent))), expected, tolerance=1e-12)


def test_scanning_a_step_is_a_plain_loop():
    def step(carry, x):
        new = {"a": jnp.tanh(carry["a"] * 0.5 + x), "n": carry["n"] + 1}
        return new, new["a"] * 2

    marks = marked(mask=True, reset=True)
    xs = normal(jnp.zeros((B, T, 3)), 0)
    initial = {"a": jnp.full((B, 3), 0.2), "n": jnp.zeros(B, jnp.int32)}
    carry = {"a": normal(jnp.zeros((B, 3)), 1), "n": jnp.full(B, 9, jnp.int32)}
    end, ys, carries = scan.unroll(step, carry, xs, **marks, initial=initial)
    for b in range(B):
        a, n = np.asarray(carry["a"][b]), 9
        for t in range(T):
            if marks["reset"][b, t]:
                a, n = np.full(3, 0.2), 0
            new = np.tanh(a * 0.5 + xs[b, t])
            if marks["mask"][b, t]:
                a, n = new, n + 1
            np.testing.assert_allclose(carries["a"][t, b], a, rtol=1e-14)
            np.testing.assert_allclose(ys[b, t], new * 2, rtol=1e-14)
            assert int(carries["n"][t, b]) == n
        np.testing.assert_array_equal(end["a"][b], carries["a"][-1, b])
    assert bool(marks["reset"].any() and not marks["mask"].all())  # both are looked at


def test_modules_built_alike_give_the_very_same_functions():
    first, params = tbptt.functional(make_model("lstm"))
    second, _ = tbptt.functional(make_model("lstm"))
    assert first is second
    assert tbptt.functional(make_model("gru"))[0] is not first
    assert set(params) == {"encoder", "core", "readout"}


def test_the_parameters_of_functional_are_copies():
    module = make_model("lstm")
    _, params = tbptt.functional(module)
    expected = as_numpy(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    assert_close(as_numpy(params), expected, tolerance=0)
    jax.tree.map(lambda p: p.delete(), params)
    assert_close(as_numpy(nnx.to_pure_dict(nnx.state(module, nnx.Param))), expected, tolerance=0)


# ------------------------------------------------------------------------------------------ errors


class Changed(nnx.SimpleCell):
    """A cell that hands `change` of its result on."""

    def __init__(self, change):
        super().__init__(ENCODED, HIDDEN, rngs=rngs(), **F64)
        self.change = change

    def __call__(self, carry, x):  # pyright: ignore
        return self.change(super().__call__(carry, x))


class NotACell(nnx.Module):
    def __call__(self, carry, x):
        return carry, x


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (lambda: None, "got NoneType"),
        (NotACell, "initialize_carry.* got NotACell"),
    ],
)
@pytest.mark.parametrize("inside", ["SequenceModel: core", "Stack: cells[1]"])
def test_what_is_no_core_is_refused(core, message, inside):
    def build():
        if inside.startswith("Stack"):
            return tbptt.Stack([cell(nnx.GRUCell), core()])
        return tbptt.SequenceModel(None, core(), None)

    name = inside.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(TypeError, match=f"^{name} .*{message}"):
        build()


def test_a_stack_of_nothing_is_refused():
    with pytest.raises(ValueError, match="^Stack: cells must .* got none"):
        tbptt.Stack([])


def test_batch_statistics_are_refused():
    class Normed(nnx.Module):
        def __init__(self):
            self.dense, self.norm = linear(FEATURES, ENCODED), nnx.BatchNorm(ENCODED, rngs=rngs())

        def __call__(self, x):
            return self.norm(self.dense(x))

    model = tbptt.SequenceModel(Normed(), cell(nnx.GRUCell), None)
    with pytest.raises(TypeError, match=r"^model holds variables of type BatchStat, .*LayerNorm"):
        tbptt.TrainState.create(model, optax.sgd(0.1), XENT)


def create(model: Any = None, optimizer: Any = None, loss: Any = XENT, **kwargs: Any) -> Any:
    model = make_model("rnn") if model is None else model
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return tbptt.TrainState.create(model, optimizer, loss, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            lambda: {"params": {"w": jnp.ones(3)}},
            "TrainState.create: params .*SequenceModel",
        ),
        (lambda: {"model": plain_model()[0]}, "params must .* got None"),
        (
            lambda: {"model": cell(nnx.GRUCell)},
            "model must .* got GRUCell",
        ),
        (
            lambda: {"optimizer": optax.adam},
            "optimizer must .* got function",
        ),
        (lambda: {"optimizer": 0.1}, "optimizer must .* got float"),
        (lambda: {"loss": "xent"}, "loss must .* got str"),
    ],
)
def test_wrong_arguments_of_create_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        create(**arguments())


def test_a_module_of_pure_functions_is_not_there():
    functions, params = plain_model()
    state = create(functions, params=params)
    with pytest.raises(TypeError, match=r"TrainState\.model: .*state\.params"):
        state.model()


def refuse(state: tbptt.TrainState, error: type[Exception], message: str) -> None:
    """`gradient` and `train_step` say the same."""
    for function in (tbptt.gradient, tbptt.train_step):
        with pytest.raises(error, match=message):
            function(state, make_batch(4, rows=B), tbptt.Truncation(4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda new: (new[0].astype(jnp.float32), new[1]),
            r"core: carry goes into a step as float64\[2, 3\] and comes out as float32\[2, 3\]; "
            "make initialize_carry and the step return the same structure, shapes and dtypes",
        ),
        (
            lambda new: (new[0][:, :2], new[1]),
            r"core: carry goes into a step as float64\[2, 3\] and comes out as float64\[2, 2\]",
        ),
        (
            lambda new: ((new[0], new[0]), new[1]),
            "core: the carry goes into a step as .* return the same structure",
        ),
        (lambda new: new[1], r"core: a step must return the pair \(carry, y\), got .*; return the"),
        (lambda new: (*new, new[1]), r"core: a step must return the pair \(carry, y\), got tuple"),
    ],
)
def test_a_step_that_does_not_hand_its_carry_on_is_refused(change, message):
    refuse(create(with_core(Changed(change))), TypeError, message)


class DropsTime(nnx.Linear):
    def __call__(self, inputs):  # pyright: ignore
        return super().__call__(inputs)[:, 0]


def test_an_encoder_or_readout_that_drops_the_time_axis_is_refused():
    drops = DropsTime(FEATURES, ENCODED, rngs=rngs(), **F64)
    model = tbptt.SequenceModel(drops, cell(nnx.SimpleCell), linear(HIDDEN, CLASSES))
    refuse(create(model), ValueError, r"encode must return .*\[2, 4\], one vector for every step")
    drops = DropsTime(HIDDEN, CLASSES, rngs=rngs(), **F64)
    model = tbptt.SequenceModel(linear(FEATURES, ENCODED), cell(nnx.SimpleCell), drops)
    refuse(create(model), ValueError, r"readout must return .*\[2, 4\], one output for every step")


def test_an_initial_carry_without_the_batch_axis_is_refused():
    functions, params = plain_model()
    functions = functions._replace(initialize_carry=lambda params, shape: [params["start"]])
    message = r"initialize_carry must return .*\[2\], one carry for .* example, got \[3\] at \[0\]"
    refuse(create(functions, params=params), ValueError, message)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda y, t: XENT(y, t).mean(1), r"\[2\]"),
        (lambda y, t: XENT(y, t).mean(), r"\[\]"),
        (lambda y, t: optax.squared_error(y), r"\[2, 4, 2\]"),
    ],
)
def test_a_loss_that_is_not_one_number_a_step_is_refused(loss, got):
    message = rf"loss must return .*\[2, 4\], one number for every step, got {got}; reduce"
    refuse(create(loss=loss), ValueError, message)
