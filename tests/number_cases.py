"""Cases of what the library computes, by name, over its public API alone.

Each case is a function without arguments that returns groups of arrays. What it trains on is small,
random and always the same. A stream's carry is compared through what later batches return.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt
from tests.networks import (
    CLASSES,
    ENCODED,
    FEATURES,
    HIDDEN,
    LOSSES,
    LearntLSTM,
    LearntRNN,
    cut,
    make_batch,
)

Result = dict[str, Any]
Case = Callable[[], Result]
GRID = list(itertools.product(range(1, 7), range(1, 13), ("update", "loss")))
LENGTHS = (7, 12, 5, 7, 12, 5, 7)  # their number is prime to that of the plans
FEW = [tbptt.Truncation(2, 3), tbptt.Truncation(3, 2), tbptt.Truncation(3, 4, "loss")]
OPTIMIZERS = {
    "momentum": optax.sgd(0.3, momentum=0.5),
    "adam": optax.adam(0.05),
    "clip": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05)),
    "line search": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=3)
    ),
    "2 windows": tbptt.accumulate(optax.adam(0.05), windows=2),
    "2 batches": tbptt.accumulate(optax.adam(0.05), batches=2),
}


class Doubled(nnx.GRUCell):
    """A cell of a user's own: it is scanned, and its output is not its carry."""

    def __call__(self, carry: Any, inputs: Any) -> Any:
        carry, y = super().__call__(carry, inputs)
        return carry, 2 * y


class Zoneout(nnx.Module):
    """A random cell: a unit holds its value with probability 1/2."""

    def __init__(self, *sizes: int, rngs: nnx.Rngs, **dtypes: Any):
        self.cell = nnx.GRUCell(*sizes, rngs=rngs, **dtypes)
        self.rngs = nnx.Rngs(zoneout=5)
        self.deterministic = False

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> Any:
        return self.cell.initialize_carry(input_shape, rngs=rngs)

    def __call__(self, carry: Any, x: Any) -> Any:
        new, _ = self.cell(carry, x)
        held: Any = 0.5
        if not self.deterministic:
            held = jax.random.bernoulli(self.rngs.zoneout(), 0.5, new.shape).astype(new.dtype)
        new = held * carry + (1 - held) * new
        return new, new


def stack(*sizes: int, rngs: nnx.Rngs, **dtypes: Any) -> tbptt.Stack:
    """Three cells, one of which is scanned."""
    features, hidden = sizes
    first = tbptt.LSTM(features, hidden, rngs=rngs, **dtypes)
    others = [kind(hidden, hidden, rngs=rngs, **dtypes) for kind in (Doubled, nnx.GRUCell)]
    return tbptt.Stack([first, *others])


CORES = {
    "lstm": tbptt.LSTM,
    "gru": nnx.GRUCell,
    "simple": nnx.SimpleCell,
    "flax lstm": nnx.OptimizedLSTMCell,
    "learnt lstm": LearntLSTM,
    "learnt simple": LearntRNN,
    "custom": Doubled,
    "stack": stack,
    "zoneout": Zoneout,
}
# A network of pure functions that compiles fast, with a learnt initial carry and a counter in it.
PLAIN = tbptt.Model(
    initialize_carry=lambda params, shape: {
        "h": jnp.broadcast_to(params["initial"], (shape[0], HIDDEN)),
        "count": jnp.zeros(shape[0], jnp.int32),
    },
    encode=lambda params, inputs, rng: inputs @ params["encode"],
    step=lambda params, carry, x: (
        {"h": _next(params, carry, x), "count": carry["count"] + 1},
        _next(params, carry, x),
    ),
    readout=lambda params, ys, rng: ys @ params["readout"],
)
PLAIN_PARAMS = {
    "initial": (HIDDEN,),
    "encode": (FEATURES, HIDDEN),
    "core": (HIDDEN, HIDDEN),
    "readout": (HIDDEN, CLASSES),
}


def _next(params: Any, carry: Any, x: jax.Array) -> jax.Array:
    phase = jnp.cos(carry["count"].astype(x.dtype))[:, None]
    return jnp.tanh(x + (carry["h"] * phase) @ params["core"])


def network(core: str, dtype: Any) -> tbptt.SequenceModel:
    """The network of a name: a core, perhaps behind "embed" or "dropout"."""
    # Random orthogonal matrices are not made in bfloat16; the parameters are replaced anyway.
    made = jnp.float32 if dtype == jnp.bfloat16 else dtype
    rngs, dtypes = nnx.Rngs(0), {"dtype": dtype, "param_dtype": made}
    if core == "embed":
        embed = nnx.Embed(5, HIDDEN, rngs=rngs, **dtypes)
        return tbptt.SequenceModel(
            embed, nnx.GRUCell(HIDDEN, HIDDEN, rngs=rngs, **dtypes), embed.attend
        )
    encoder: Any = nnx.Linear(FEATURES, ENCODED, rngs=rngs, **dtypes)
    readout: Any = nnx.Linear(HIDDEN, CLASSES, rngs=rngs, **dtypes)
    if core == "dropout":
        encoder = nnx.Sequential(encoder, nnx.Dropout(0.3, rngs=rngs))
        readout = nnx.Sequential(nnx.Dropout(0.4, rngs=rngs), readout)
    kind = CORES["gru" if core == "dropout" else core]
    return tbptt.SequenceModel(encoder, kind(ENCODED, HIDDEN, rngs=rngs, **dtypes), readout)


@functools.cache
def _state(core: str, optimizer: str, loss: str, dtype: Any) -> tbptt.TrainState:
    rng = np.random.default_rng(1)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.7, shape), dtype)

    if core == "plain":
        params = {name: draw(shape) for name, shape in PLAIN_PARAMS.items()}
        functions = PLAIN
    else:
        functions, params = tbptt.functional(network(core, dtype))
        params = jax.tree.map(lambda p: draw(p.shape), params)
    return tbptt.TrainState.create(functions, OPTIMIZERS[optimizer], LOSSES[loss], params=params)


def start(
    core: str, optimizer: str = "momentum", loss: str = "xent", dtype: Any = jnp.float64
) -> tbptt.TrainState:
    """A state of random parameters, one optimizer and loss for all of a name."""
    return _state(core, optimizer, loss, dtype).copy()


def stream(
    lengths: Sequence[int], marks: str = "", loss: str = "xent", seed: int = 0
) -> list[tbptt.Batch]:
    """The batches of one stream, which begins with the first of them."""
    whole = make_batch(sum(lengths), marks, loss, seed=seed)
    reset = np.zeros(np.shape(whole.inputs)[:2], bool) if whole.reset is None else whole.reset
    whole = whole._replace(reset=reset | (np.arange(sum(lengths)) == 0)[None])
    ends = itertools.accumulate(lengths)
    return [cut(whole, end - length, end) for end, length in zip(ends, lengths, strict=True)]


def sequences(length: int, marks: str = "", loss: str = "xent", seed: int = 0) -> list[tbptt.Batch]:
    """Two batches of whole sequences, those of `marks` r with resets within."""
    return [make_batch(length, marks, loss, seed=seed + i) for i in (0, 50)]


def train(
    state: tbptt.TrainState, batches: Sequence[tbptt.Batch], *plans: tbptt.Truncation
) -> tuple[tbptt.TrainState, Result]:
    """Train on batches, with a plan for each or one for all; the state and what there is of it."""
    metrics = []
    for batch, plan in zip(batches, plans * (len(batches) if len(plans) == 1 else 1), strict=True):
        state, found = tbptt.train_step(state, batch, plan)
        metrics.append(found)
    joined = jax.tree.map(lambda *m: np.concatenate(m), *metrics)._asdict()
    return state, {
        "params": state.params,
        "opt_state": jax.tree.leaves(state.opt_state),
        "step": state.step,
        **joined,
    }


def trained(*arguments: Any, **start_with: Any) -> Case:
    """The case of a state, by its core's name, that is trained on batches."""
    core, *rest = arguments
    return lambda: train(start(core, **start_with), *rest)[1]


def text(plan: tbptt.Truncation) -> str:
    block = "" if plan.block is None else f" block {plan.block}"
    return f"{plan.k1},{plan.k2} {plan.anchor}{block}"


def of_the_grid() -> Iterator[tuple[str, Case]]:
    """Streams of every plan, sequences of every third, gradients of some; marks are dealt out."""
    for i, (k1, k2, anchor) in enumerate(GRID):
        plan, length = tbptt.Truncation(k1, k2, anchor), LENGTHS[i % 7]
        marks, loss = ("", "mrw", "r", "w", "m")[i % 5], ("xent", "mse")[i // 5 % 2]
        batches = stream([length] * 3, marks, loss, seed=length)
        yield f"stream {marks}/{text(plan)}/T={length}", trained("plain", batches, plan, loss=loss)
        if (k1 + k2 + i) % 3 == 0:
            marks = ("", "mw")[i // 7 % 3 == 2]
            batches = sequences(length, marks, seed=length)
            yield f"sequences {marks}/{text(plan)}/T={length}", trained("plain", batches, plan)
        if i % 11 == 0 or plan in FEW:
            yield f"gradient/{text(plan)}", functools.partial(of_gradients, "plain", plan)
    for plan in (tbptt.Truncation(2, 3), tbptt.Truncation(3, 2, "loss")):
        yield f"sequences/{text(plan)}/T=1", trained("plain", sequences(1), plan)
        yield f"stream/{text(plan)}/T=1", trained("plain", stream([1] * 7, "r"), plan)
    for (k1, k2), block in itertools.product([(2, 3), (4, 6)], (1, 2, 5, 100)):
        plan = tbptt.Truncation(k1, k2, "loss", block)
        yield f"stream mrw/{text(plan)}", trained("plain", stream([7] * 2, "mrw"), plan)


def of_gradients(core: str, plan: tbptt.Truncation, resumes: bool = False) -> Result:
    """Gradients of sequences, and of a stream that begins, or that resumes after training."""
    state, first = start(core), stream([7] * 2, "mr")
    if resumes:
        state, *_ = train(state, first[:1], plan)
    whole = make_batch(7, "mw", seed=1)
    return {
        "sequences": tbptt.gradient(state, whole, plan),
        "stream": tbptt.gradient(state, first[resumes], plan),
    }


def of_cores() -> Iterator[tuple[str, Case]]:
    for i, core in enumerate((*CORES, "dropout")):
        for j in range(2):
            plan = FEW[(i + j) % 3]
            batches = stream([5, 5], ("mrw", "")[j], seed=i)
            yield f"stream/{core}/{text(plan)}", trained(core, batches, plan)
        plan = FEW[(i + 2) % 3]
        yield f"sequences/{core}/{text(plan)}", trained(core, sequences(7, "", seed=i), plan)
    for core in ("lstm", "custom", "stack", "zoneout"):
        yield f"gradient/{core}", functools.partial(of_gradients, core, FEW[0], True)
        yield f"evaluate/{core}", functools.partial(evaluated, core)
    ids = np.random.default_rng(0).integers(0, 5, (2, 8))
    batches = [tbptt.Batch(ids[:, :-1], ids[:, 1:])] * 2
    yield "sequences/embed", trained("embed", batches, FEW[0])


def evaluated(core: str) -> Result:
    """What is computed at fixed parameters, of sequences and of streams."""
    state, whole, parts = start(core), make_batch(6, "mw"), stream([6, 6], "mr")
    metrics = {"wrong": _wrong}
    return {
        "sequences": tbptt.evaluate(state, [whole, whole], metrics),
        "stream": tbptt.evaluate(state, parts, metrics),
        "outputs": tbptt.predict(state, whole),
        "outputs with resets": tbptt.predict(state, parts[1]),
    }


def _wrong(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return (outputs.argmax(-1) != targets).astype(jnp.float64)


def of_streams() -> Iterator[tuple[str, Case]]:
    update, longer, loss = tbptt.Truncation(2, 3), tbptt.Truncation(3, 5), FEW[2]
    parts = stream([6] * 4, "mr")
    for core in ("plain", "lstm"):
        yield f"plans change/{core}", trained(core, parts, update, longer, longer, loss)
        yield f"lengths change/{core}", trained(core, stream([6, 5, 1, 6], "r"), update)
        between = [*parts[:2], make_batch(6, "mw"), *stream([6, 6])]
        yield f"sequences between/{core}", trained(core, between, longer)
    rows = make_batch(6, "r", rows=3)
    rows = rows._replace(reset=rows.reset | (np.arange(6) == 0)[None])
    yield "rows change/plain", trained("plain", [*parts[:2], rows, rows], longer)


def of_marks() -> Iterator[tuple[str, Case]]:
    """Masks, weights and resets; those of one plan share what is compiled, since all are arrays."""
    steps, lengths, ones = np.arange(7)[None], np.array([[3], [6]]), np.ones((2, 7))
    left = steps >= 7 - lengths
    marked: dict[str, dict[str, Any]] = {
        "left padding": {"mask": left},
        "right padding": {"mask": steps < lengths},
        "ragged": {"mask": make_batch(7, "m", seed=9).mask},
        "an empty row": {"mask": steps < np.array([[7], [0]])},
        "last loss": {"weights": ones * (steps == 6)},
        "no loss in the middle": {"weights": np.where((steps == 2) | (steps == 3), 0, 1.5 * ones)},
        "padding and weights": {"mask": left, "weights": ones * (steps == 6)},
    }
    whole = {"mask": ones > 0, "weights": ones}
    for (name, fields), plan in itertools.product(marked.items(), [*FEW, tbptt.Truncation(7, 7)]):
        batches = [batch._replace(**whole | fields) for batch in sequences(7, seed=3)]
        yield f"{name}/{text(plan)}", trained("plain", batches, plan, optimizer="adam")
    resets = {
        "no resets": ones < 0,
        "resets at every step": ones > 0,
        "resets at the first step": ones * (steps == 0) > 0,
        "resets of one row": (steps % 3 == 1) & (lengths == 3),
    }
    for (name, reset), plan in itertools.product(resets.items(), FEW):
        first, *others = stream([7] * 3, seed=5)
        batches = [first, *(batch._replace(reset=reset) for batch in others)]
        yield f"{name}/{text(plan)}", trained("plain", batches, plan)
    batches = [batch._replace(mask=left) for batch in sequences(7, seed=3)]
    yield "left padding/lstm", trained("lstm", batches, FEW[0])
    infinite = sequences(7, "", "mse", seed=3)[0]
    infinite.targets[0, 3] = 1e200  # its square is not finite
    for plan in FEW[:2]:
        batches = [infinite, *sequences(7, "", "mse", seed=4)]
        yield f"a loss overflows/{text(plan)}", trained("plain", batches, plan, loss="mse")


def of_optimizers() -> Iterator[tuple[str, Case]]:
    for name, plan in itertools.product(OPTIMIZERS, FEW[:2]):
        batches = stream([7] * 4, "mrw", seed=2)
        yield f"{name}/{text(plan)}", trained("plain", batches, plan, optimizer=name)


def of_diagnostics() -> Iterator[tuple[str, Case]]:
    for core in ("plain", "lstm", "custom"):
        yield f"diagnostics/{core}", functools.partial(diagnosed, core)
        yield f"windows/{core}", functools.partial(windows, core)
    matrices = {text(p): tbptt.credit_matrix(p, 12) for p in (tbptt.Truncation(*g) for g in GRID)}
    yield "credit_matrix", lambda: matrices


def diagnosed(core: str) -> Result:
    state, *_ = train(start(core), stream([6], "r"), FEW[0])
    whole, resumed = make_batch(6, "mw"), stream([6] * 2, "mr")[1]
    return {
        "lag": tbptt.credit_by_lag(state, whole, 5),
        "lag of a stream": tbptt.credit_by_lag(state, resumed, 3),
        "bias": {k: v._asdict() for k, v in tbptt.gradient_bias(state, whole, FEW[0]).items()},
        "bias of draws": tbptt.gradient_bias(state, whole, FEW[:2])["all"]._asdict(),
    }


def windows(core: str) -> Result:
    """The layer below train_step: every field of the window is given, so no default matters."""
    state, batch = start(core), make_batch(8, "mrw", seed=5)
    targets, weights = batch.targets[:, 4:], np.where(batch.mask, batch.weights, 0.0)[:, 4:]
    window = tbptt.Window(batch.inputs, targets, weights, batch.mask, batch.reset, first=4)
    found: Result = {}
    carry = None
    for reach, block in ((None, None), (3, None), (3, 2)):
        value, grads = tbptt.window_value_and_grad(
            state.functions, state.loss, state.params, carry, window, reach=reach, block=block
        )
        carry = value.carry
        found[f"{reach}, {block}"] = {**value._asdict(), "grads": grads}
    found["forward"] = tbptt.forward(state.functions, state.params, carry, window)
    return found


def in_other_precision() -> Iterator[tuple[str, Case]]:
    for dtype, core, plan in itertools.product(
        (jnp.float32, jnp.bfloat16), ("lstm", "gru", "custom", "plain"), FEW
    ):
        if core in ("plain", "lstm") or plan is FEW[0]:
            name = f"{jnp.dtype(dtype).name}/{core}/{text(plan)}"
            yield name, functools.partial(narrow, core, plan, dtype)


def narrow(core: str, plan: tbptt.Truncation, dtype: Any) -> Result:
    """As a user has it by default: without float64."""
    jax.config.update("jax_enable_x64", False)
    try:
        batches = [
            batch._replace(
                inputs=jnp.asarray(batch.inputs, dtype), weights=np.float32(batch.weights)
            )
            for batch in stream([5, 5], "mrw")
        ]
        state, found = train(start(core, dtype=dtype), batches, plan)
        return {**found, "outputs": tbptt.predict(state, batches[0])}
    finally:
        jax.config.update("jax_enable_x64", True)


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    parts = (
        of_the_grid(),
        of_cores(),
        of_streams(),
        of_marks(),
        of_optimizers(),
        of_diagnostics(),
        in_other_precision(),
    )
    cases: dict[str, Case] = {}
    for name, case in itertools.chain(*parts):
        assert name not in cases, name
        cases[name] = case
    return cases
