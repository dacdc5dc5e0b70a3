"""The fused recurrence: a scan over a cell's gates, with its reverse pass written out.

What a plain scan under autodiff does step by step is done here for many steps at once: one matrix
product projects their inputs, and one product forms the gradient of the weights when the reverse
steps are done, which then hold a single product each, d_zh W^T. Kept for the reverse pass are the
gates and the carries, nothing else. A cell gives its elementwise part; the products, the masks and
the resets are here.

"Many steps" is the whole window on an accelerator and, on a CPU, a chunk whose projections stay in
the cache. Chunks halve the memory of a window and, where it is large, do away with the page faults
of fresh memory at every call: 30 of 100 ms in a trial (LOG.md).

The gradient is a `jax.custom_vjp`: reverse mode of any order and forward over reverse work, forward
mode alone (`jax.jvp` of an unroll) raises JAX's TypeError.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tbptt_jax.recurrence import marked_step, select
from tbptt_jax.types import Array

# Leaves [B, hidden]. The last is the hidden state: what the recurrent weights multiply, and the
# output.
Carry: TypeAlias = tuple[jax.Array, ...]

# The projections of a chunk, in bytes, where those of a window have up to SMALL_BYTES and where
# they have more; the least steps of a chunk; and the bytes of a step from which on two reverse
# steps are one turn of the loop, so that a CPU's threads have work to share. Near the best of what
# was tried (LOG.md).
SMALL_BYTES, CHUNK_OF_SMALL, CHUNK_OF_LARGE, LEAST_STEPS = 2**23, 2**21, 2**20, 4
LARGE_STEP_BYTES = 2**17


class Gates(NamedTuple):
    """The elementwise part of a cell; arrays are [B, ...].

    Attributes:
      open: `(zx, zh) -> saved`, the gates of a step, given the projections of the input and of the
        hidden state.
      step: `(carry, saved) -> carry`, what they make of the carry.
      pull: `(before, saved, d_after) -> (d_before, dz)`, its transpose, but for what goes through
        the projections.
      to_x, to_h: dz, of any leading shape, to the cotangents of zx and of zh.
    """

    open: Callable[[jax.Array, jax.Array], Any]
    step: Callable[[Carry, Any], Carry]
    pull: Callable[[Carry, Any, Carry], tuple[Carry, jax.Array]]
    to_x: Callable[[jax.Array], jax.Array]
    to_h: Callable[[jax.Array], jax.Array]


class Weights(NamedTuple):
    """zx = inputs @ x + bias and zh = hidden @ h."""

    x: jax.Array
    h: jax.Array
    bias: jax.Array


class Steps(NamedTuple):
    """What the steps are given, time first: leaves [T, B, ...]."""

    xs: Any
    mask: Any
    reset: Any


def unroll(
    gates: Gates,
    weights: Weights,
    carry: Carry,
    xs: Array,
    mask: Array | None,
    reset: Array | None,
    initial: Carry | None,
) -> tuple[Carry, jax.Array, Carry]:
    """As `recurrence.unroll`, for a cell given by its gates and weights; xs is [B, T, features]."""
    steps = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), Steps(xs, mask, reset))
    length = steps.xs.shape[0]
    size = _chunk_steps(length, _bytes_per_step(weights, steps.xs))
    parts = []
    # What the last chunk leaves over is a chunk of its own.
    for start, stop in ((0, length - length % size), (length - length % size, length)):
        if start < stop:
            part = jax.tree.map(lambda a, i=start, j=stop: a[i:j], steps)
            count = min(size, stop - start)
            results: Any = _run(gates, count, weights, carry, part, initial)
            carry, *outputs = results
            parts.append(outputs)
    ys, carries = jax.tree.map(lambda *a: jnp.concatenate(a) if a[1:] else a[0], *parts)
    return carry, jnp.swapaxes(ys, 0, 1), carries


def _bytes_per_step(weights: Weights, xs: jax.Array) -> int:
    """Of the projections of one step; xs is [T, B, features]."""
    return xs.shape[1] * weights.bias.size * weights.bias.dtype.itemsize


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _chunk_steps(steps: int, bytes_per_step: int) -> int:
    """How many steps are projected at once: where one is near, a divisor of `steps`."""
    if not _on_cpu():
        return steps
    chunk = CHUNK_OF_SMALL if steps * bytes_per_step <= SMALL_BYTES else CHUNK_OF_LARGE
    size = min(steps, max(LEAST_STEPS, chunk // bytes_per_step))
    return next((k for k in range(size, size // 2, -1) if steps % k == 0), size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(gates, size, weights, carry, steps, initial):
    """Chunks of `size` steps: the carry after them, the outputs, the carry after each."""
    return _forward(gates, size, False, weights, carry, steps, initial)[0]


def _forward(gates, size, keep, weights, carry, steps, initial):
    def one(carry, given):
        zx, kept, j = given
        opened = gates.open(zx, carry[-1] @ weights.h)
        if keep:
            kept = _put(kept, opened, j)
            if _on_cpu():
                # Read from where it is kept a gate is written once; without the barrier XLA would
                # read it from a copy of its own. Not measured on an accelerator, where a barrier
                # parts what could be one kernel.
                kept = jax.lax.optimization_barrier(kept)
                opened = _at(kept, j)
        new = gates.step(carry, opened)
        return new, (new[-1], kept)

    def chunk(carry, part):
        zx = part.xs @ weights.x + weights.bias[None, None]
        opened = jax.eval_shape(gates.open, zx[0], zx[0]) if keep else None
        saved = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), opened)

        def step(loop, given):
            (carry, saved), (j, zx, mask, reset) = loop, given
            carry, (y, saved) = marked_step(one, carry, (zx, saved, j), mask, reset, initial)
            # Without a mask the output is the hidden state of the carry; there is one copy of it.
            return (carry, saved), (carry, None if mask is None else y)

        given = jnp.arange(size), zx, part.mask, part.reset
        (carry, saved), (carries, ys) = jax.lax.scan(step, (carry, saved), given)
        return carry, (carries, ys, saved)

    carry, kept = jax.lax.scan(chunk, carry, _cut(steps, size))
    carries, ys, saved = _join(kept)
    return (carry, carries[-1] if ys is None else ys, carries), saved


def _run_forward(gates, size, *arguments: Any):
    # With symbolic_zeros every array comes with whether anyone asks for its gradient.
    arguments = jax.tree.map(lambda a: a.value, arguments, is_leaf=lambda a: hasattr(a, "value"))
    weights, carry, steps, initial = arguments
    results, saved = _forward(gates, size, True, weights, carry, steps, initial)
    return results, (*arguments, results[-1], saved)


def _run_reverse(gates, size, kept, cotangents):
    weights, carry, steps, initial, carries, saved = kept
    # Most that could be asked for is not: no loss looks at the carries.
    d_end, d_ys, d_carries = cotangents
    d_ys = None if _is_zero(d_ys) else d_ys
    d_carries = None if all(map(_is_zero, d_carries)) else _filled(d_carries)
    pair = 2 if _bytes_per_step(weights, steps.xs) >= LARGE_STEP_BYTES else 1
    x_back, h_back = weights.x.T, weights.h.T
    nothing = jax.tree.map(jnp.zeros_like, carry)

    def step(loop, given):
        d_after, d_initial = loop
        before, saved, mask, reset, d_y, d_kept = given
        if d_kept is not None:
            d_after = _add(d_after, d_kept)
        d_new = d_after if mask is None else select(mask, d_after, nothing)
        if d_y is not None:
            d_new = (*d_new[:-1], d_new[-1] + d_y)
        d_before, dz = gates.pull(before, saved, d_new)
        d_before = (*d_before[:-1], d_before[-1] + gates.to_h(dz) @ h_back)
        if mask is not None:
            d_before = _add(d_before, select(mask, nothing, d_after))
        if reset is not None:
            d_initial = _add(d_initial, select(reset, d_before, nothing))
            d_before = select(reset, nothing, d_before)
        return (d_before, d_initial), dz

    def chunk(loop, part):
        loop, d_weights = loop
        start, (steps, after, saved, d_ys, d_carries) = part
        before = jax.tree.map(lambda s, a: jnp.concatenate([s[None], a[:-1]]), start, after)
        if steps.reset is not None:
            before = jax.vmap(select, (0, None, 0))(steps.reset, initial, before)
        given = before, saved, steps.mask, steps.reset, d_ys, d_carries
        loop, dz = jax.lax.scan(step, loop, given, reverse=True, unroll=pair)
        # [steps, B, ...] as rows of one matrix: products with two contracted axes are slower.
        xs, hs, dz = (a.reshape(-1, a.shape[-1]) for a in (steps.xs, before[-1], dz))
        d_zx, d_zh = gates.to_x(dz), gates.to_h(dz)
        found = Weights(xs.T @ d_zx, hs.T @ d_zh, d_zx.sum(0))
        d_xs = (d_zx @ x_back).reshape(steps.xs.shape)
        return (loop, _add(d_weights, found)), d_xs

    starts = jax.tree.map(
        lambda first, after: jnp.concatenate([first[None], after[size - 1 : -1 : size]]),
        carry,
        carries,
    )
    parts = starts, _cut((steps, carries, saved, d_ys, d_carries), size)
    d_initial = None if steps.reset is None else nothing
    loop = (_filled(d_end), d_initial), jax.tree.map(jnp.zeros_like, weights)
    ((d_carry, d_initial), d_weights), d_xs = jax.lax.scan(chunk, loop, parts, reverse=True)
    return d_weights, d_carry, Steps(_join(d_xs), None, None), d_initial


_run.defvjp(_run_forward, _run_reverse, symbolic_zeros=True)


def _at(tree: Any, j: jax.Array) -> Any:
    """Row j of every array."""
    row = functools.partial(
        jax.lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False
    )
    return jax.tree.map(lambda a: row(a, j), tree)


def _put(tree: Any, rows: Any, j: jax.Array) -> Any:
    """Every array with another row j."""
    put = functools.partial(
        jax.lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False
    )
    return jax.tree.map(lambda a, row: put(a, row, j), tree, rows)


def _cut(tree: Any, size: int) -> Any:
    """[T, ...] to [T / size, size, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _join(tree: Any) -> Any:
    """[T / size, size, ...] to [T, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _is_zero(cotangent: Any) -> bool:
    return isinstance(cotangent, SymbolicZero)


def _filled(cotangents: Any) -> Any:
    """With arrays of zeros for what is known to be zero."""
    return jax.tree.map(
        lambda d: jnp.zeros(d.shape, d.dtype) if _is_zero(d) else d, cotangents, is_leaf=_is_zero
    )
