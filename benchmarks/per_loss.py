"""The price of exact per-loss windows: against full BPTT, and against re-unrolling every window.

python -m benchmarks.per_loss                       the whole table, some minutes
python -m benchmarks.per_loss --k2=30 --batch=32 --steps=100

All sides compute the gradient of the same batch (embedding and LSTM of 128 units, a loss at every
step), compiled, in one process, taken by turns; the table has medians. `rounds` is
Truncation(T, k2, "loss"), `blocks` the same with block=--block, `re-unrolled` the usual way: each
loss's window run again from a saved carry, all of them in parallel under vmap, CHUNK at a time so
that they fit into memory; the words are embedded once for all of them.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import figures
from experiments.run import versions
from tbptt_jax.types import Params

WORDS, HIDDEN, CLASSES, CHUNK = 1000, 128, 10, 100
XENT = optax.losses.softmax_cross_entropy_with_integer_labels


def make_state() -> tbptt.TrainState:
    """An LSTM that reads words."""
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        nnx.Embed(WORDS, HIDDEN, rngs=rngs),
        tbptt.LSTM(HIDDEN, HIDDEN, rngs=rngs),
        nnx.Linear(HIDDEN, CLASSES, rngs=rngs),
    )
    return tbptt.TrainState.create(model, optax.sgd(0.1), XENT)


def make_batch(rows: int, steps: int) -> tbptt.Batch:
    """Random words and labels."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, WORDS, (rows, steps), np.int32)
    targets = rng.integers(0, CLASSES, (rows, steps), np.int32)
    return tbptt.Batch(jnp.asarray(inputs), jnp.asarray(targets))


@functools.partial(jax.jit, static_argnums=(0, 3))
def re_unrolled(functions: tbptt.Model, params: Params, batch: tbptt.Batch, k2: int) -> Params:
    """The same gradient, each loss's window run on its own."""
    rows, steps = batch.targets.shape
    zero = functions.initialize_carry(params, (rows, HIDDEN))
    unroll: Any = functions.unroll
    embedded = functions.encode(params, batch.inputs, None)
    _, _, carries = unroll(params, zero, embedded, None, None)
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), zero, carries)
    before = jax.lax.stop_gradient(before)

    def window_loss(params: Params, xs: jax.Array, t: jax.Array) -> jax.Array:
        # A window that would begin before the first step holds the carry until that step.
        at = t - k2 + 1 + jnp.arange(k2)
        carry = jax.tree.map(lambda c: c[jnp.maximum(t - k2 + 1, 0)], before)
        inputs = xs[:, jnp.maximum(at, 0)]
        mask = jnp.broadcast_to(at >= 0, (rows, k2)) if k2 > 1 else None
        _, ys, _ = unroll(params, carry, inputs, mask, None)
        return XENT(functions.readout(params, ys[:, -1:], None)[:, 0], batch.targets[:, t]).sum()

    def chunk_loss(params: Params, ts: jax.Array) -> jax.Array:
        xs = functions.encode(params, batch.inputs, None)
        return jax.vmap(window_loss, (None, None, 0))(params, xs, ts).sum()

    def add(total: Params, ts: jax.Array) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, jax.grad(chunk_loss)(params, ts)), None

    chunks = jnp.arange(steps).reshape(-1, min(CHUNK, steps))
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)
    return jax.tree.map(lambda g: g / (rows * steps), total)


def seconds(sides: dict[str, Callable[[], Params]]) -> dict[str, float]:
    """Median time of each side, by turns: at least 2, at most 9 rounds, about 20 s in all.

    Of two calls in a row the second is timed: the first one after a side that needs gigabytes pays
    for their return.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    begun = time.perf_counter()
    for turn in range(9):
        if turn >= 2 and time.perf_counter() - begun > 20:
            break
        for name, side in sides.items():
            jax.block_until_ready(side())
            start = time.perf_counter()
            jax.block_until_ready(side())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def compare(rows: int, steps: int, k2: int, block: int) -> list[int | str]:
    """One row of the table; the sides must agree before they are timed."""
    state, batch = make_state(), make_batch(rows, steps)
    plans = {
        "full": tbptt.Truncation(steps, steps),
        "rounds": tbptt.Truncation(steps, k2, "loss"),
        "blocks": tbptt.Truncation(steps, k2, "loss", block=block),
    }
    sides: dict[str, Callable[[], Params]] = {
        name: functools.partial(tbptt.gradient, state, batch, plan) for name, plan in plans.items()
    }
    sides["re-unrolled"] = lambda: re_unrolled(state.functions, state.params, batch, k2)
    expected = sides["re-unrolled"]()
    for name in ("rounds", "blocks"):
        error = optax.tree.norm(jax.tree.map(jnp.subtract, sides[name](), expected))
        assert float(error) < 1e-4 * float(optax.tree.norm(expected)), name
    found = seconds(sides)
    full, rounds = found["full"], found["rounds"]
    return [
        steps,
        rows,
        k2,
        f"{1e3 * full:.0f}",
        f"{rounds / full:.2f}",
        f"{found['blocks'] / full:.2f}",
        f"{found['re-unrolled'] / full:.2f}",
        f"{found['re-unrolled'] / rounds:.1f}",
    ]


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    chosen = flags.FLAGS
    cases = [
        (steps, rows, k2)
        for steps in map(int, chosen.steps)
        for rows in map(int, chosen.batch)
        for k2 in map(int, chosen.k2)
    ]
    table = [compare(r, s, k, chosen.block) for s, r, k in tqdm(cases, "cases", leave=False)]
    print(" ".join(f"{name} {version}," for name, version in versions().items()))
    head = ["T", "batch", "k2", "full BPTT, ms", "rounds / full", "blocks / full"]
    print(figures.table([*head, "re-unrolled / full", "re-unrolled / rounds"], table))


if __name__ == "__main__":
    flags.DEFINE_list("k2", ["1", "5", "10", "30", "100"], "Reaches of each loss.")
    flags.DEFINE_list("batch", ["1", "8", "32"], "Batch sizes.")
    flags.DEFINE_list("steps", ["100", "1000"], "Lengths of the sequence.")
    flags.DEFINE_integer("block", 100, "Steps whose adjoints are formed at once, in `blocks`.")
    app.run(main)
