"""The fused scan: a scan over a cell's gates, with its reverse pass written out.

A plain scan under autodiff multiplies matrices at every step. Here one product projects the inputs
of many steps, and after their reverse steps one product forms the gradient of the weights; each
reverse step holds a single product, d_zh W^T. The reverse pass saves the gates and the carries,
nothing else. A cell supplies its elementwise equations; products, masks and resets are here.

"Many steps" is the whole window on an accelerator and, on a CPU, a chunk whose projections stay in
the cache. Chunks halve the memory of a window and, where it is large, avoid the page faults of
fresh memory at every call: 30 of 100 ms in a trial (LOG.md).

The gradient is a `jax.custom_vjp`: reverse mode of any order and forward over reverse work, forward
mode alone (`jax.jvp` of an unroll) raises JAX's TypeError.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tbptt_jax.cells.scan import is_spread, marked_step, select
from tbptt_jax.types import Array, Tree

# Arrays [B, hidden]: a carry, whose last leaf is the hidden state (the recurrent weights multiply
# it, and it is the output), or the gates of a step.
Leaves: TypeAlias = tuple[jax.Array, ...]

# A chunk has CHUNK_OF_SMALL bytes of projections where the window has at most SMALL_BYTES of them,
# and otherwise CHUNK_OF_LARGE; it has LEAST_STEPS steps or more. Where the projections of a step
# have LARGE_STEP_BYTES or more, two reverse steps are one turn of the loop, so that a CPU's threads
# have work to share. Near the best of the values tried (LOG.md).
SMALL_BYTES, CHUNK_OF_SMALL, CHUNK_OF_LARGE, LEAST_STEPS = 2**23, 2**21, 2**20, 4
LARGE_STEP_BYTES = 2**17


class Equations(NamedTuple):
    """The elementwise part of a cell; arrays are [B, ...].

    Attributes:
      gates: `(zx, zh) -> gates` of a step, from the projections of the input and of the hidden
        state.
      step: `(carry, gates) -> carry`.
      pull: `(before, gates, d_after) -> (d_before, dz)`, the transpose of both, without the part of
        d_before that goes through zh.
      to_x, to_h: dz, of any leading shape, to the cotangents of zx and of zh.
    """

    gates: Callable[[jax.Array, jax.Array], Leaves]
    step: Callable[[Leaves, Leaves], Leaves]
    pull: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, jax.Array]]
    to_x: Callable[[jax.Array], jax.Array]
    to_h: Callable[[jax.Array], jax.Array]


class Weights(NamedTuple):
    """zx = inputs @ x + x_bias and zh = hidden @ h + h_bias; None is no bias."""

    x: jax.Array
    h: jax.Array
    x_bias: jax.Array | None
    h_bias: jax.Array | None


class Steps(NamedTuple):
    """The inputs and marks of steps, time first: [T, B, ...]."""

    xs: jax.Array
    mask: jax.Array | None
    reset: jax.Array | None


class _Saved(NamedTuple):
    """What the forward pass saves for the reverse pass: its arguments, and the last two.

    Attributes:
      carries: after each step, leaves [T, B, hidden].
      gates: of each step, leaves [T, B, hidden].
    """

    weights: Weights
    carry: Leaves
    steps: Steps
    initial: Leaves | None
    carries: Leaves
    gates: Leaves


class _ReverseStep(NamedTuple):
    """What a step of the reverse pass reads: `before` is the carry before the step."""

    before: Leaves
    gates: Leaves
    mask: jax.Array | None
    reset: jax.Array | None
    d_y: jax.Array | None
    d_carry: Leaves | None


def unroll(
    equations: Equations,
    weights: Weights,
    carry: Leaves,
    xs: Array,
    mask: Array | None,
    reset: Array | None,
    initial: Leaves | None,
) -> tuple[Leaves, jax.Array, Leaves]:
    """As `scan.unroll`, for a cell's equations and weights; xs is [B, T, features]."""
    steps = Steps(*jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (xs, mask, reset)))
    length = steps.xs.shape[0]
    size = chunk_steps(length, _bytes_per_step(weights, steps.xs))
    parts = []
    # The steps that are left after the last whole chunk are a chunk of their own.
    for start, stop in ((0, length - length % size), (length - length % size, length)):
        if start < stop:
            part = jax.tree.map(lambda a, i=start, j=stop: a[i:j], steps)
            count = min(size, stop - start)
            results: Tree = _run(equations, count, weights, carry, part, initial)
            carry, *outputs = results
            parts.append(outputs)
    ys, carries = jax.tree.map(lambda *a: jnp.concatenate(a) if a[1:] else a[0], *parts)
    return carry, jnp.swapaxes(ys, 0, 1), carries


def _bytes_per_step(weights: Weights, xs: jax.Array) -> int:
    """Bytes of the projections of one step; xs is [T, B, features]."""
    return xs.shape[1] * weights.h.shape[1] * weights.h.dtype.itemsize


def on_cpu() -> bool:
    """Whether JAX's default backend is a CPU."""
    return jax.default_backend() == "cpu"


def chunk_steps(steps: int, bytes_per_step: int) -> int:
    """The number of steps that are projected at once: a divisor of `steps` if one is near."""
    if not on_cpu():
        return steps
    chunk = CHUNK_OF_SMALL if steps * bytes_per_step <= SMALL_BYTES else CHUNK_OF_LARGE
    size = min(steps, max(LEAST_STEPS, chunk // bytes_per_step))
    return next((k for k in range(size, size // 2, -1) if steps % k == 0), size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    equations: Equations,
    size: int,
    weights: Weights,
    carry: Leaves,
    steps: Steps,
    initial: Leaves | None,
) -> tuple[Leaves, jax.Array, Leaves]:
    """Chunks of `size` steps: the carry after them, the outputs, the carry after each."""
    return _forward(equations, size, False, weights, carry, steps, initial)[0]


def _forward(
    equations: Equations,
    size: int,
    save: bool,
    weights: Weights,
    carry: Leaves,
    steps: Steps,
    initial: Leaves | None,
) -> tuple[tuple[Leaves, jax.Array, Leaves], Tree]:
    """The results of `_run`, and the gates of all steps, or None if they are not saved."""

    def one(carry: Leaves, inputs: Tree) -> tuple[Leaves, Tree]:
        zx, saved, j = inputs
        gates = equations.gates(zx, plus(carry[-1] @ weights.h, weights.h_bias))
        if save:
            saved = _put(saved, gates, j)
            if on_cpu():
                # Read from where it is saved a gate is written once; without the barrier XLA would
                # read it from a copy of its own. Not measured on an accelerator, where a barrier
                # parts what could be one kernel.
                saved = jax.lax.optimization_barrier(saved)
                gates = _at(saved, j)
        new = equations.step(carry, gates)
        return new, (new[-1], saved)

    def chunk(carry: Leaves, part: Steps) -> tuple[Leaves, Tree]:
        zx = plus(part.xs @ weights.x, weights.x_bias)
        gates = jax.eval_shape(equations.gates, zx[0], zx[0]) if save else None
        saved = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), gates)

        def step(loop: Tree, inputs: Tree) -> tuple[Tree, Tree]:
            (carry, saved), (j, zx, mask, reset) = loop, inputs
            carry, (y, saved) = marked_step(one, carry, (zx, saved, j), mask, reset, initial)
            # Without a mask the output is the hidden state of the carry; there is one copy of it.
            return (carry, saved), (carry, None if mask is None else y)

        inputs = jnp.arange(size), zx, part.mask, part.reset
        (carry, saved), (carries, ys) = jax.lax.scan(step, (carry, saved), inputs)
        return carry, (carries, ys, saved)

    carry, outputs = jax.lax.scan(chunk, carry, _cut(steps, size))
    carries, ys, saved = _join(outputs)
    return (carry, carries[-1] if ys is None else ys, carries), saved


def _run_forward(
    equations: Equations, size: int, *arguments: Tree
) -> tuple[tuple[Leaves, jax.Array, Leaves], _Saved]:
    # With symbolic_zeros every array comes with whether its gradient is wanted.
    arguments = jax.tree.map(lambda a: a.value, arguments, is_leaf=lambda a: hasattr(a, "value"))
    weights, carry, steps, initial = arguments
    results, gates = _forward(equations, size, True, weights, carry, steps, initial)
    return results, _Saved(weights, carry, steps, initial, results[-1], gates)


def _run_reverse(
    equations: Equations, size: int, saved: _Saved, cotangents: Tree
) -> tuple[Weights, Leaves, Steps, Leaves | None]:
    weights, carry, steps, initial, carries, gates = saved
    # Most cotangents are known to be zero: no loss reads the carries.
    d_end, d_ys, d_carries = cotangents
    d_ys = None if _is_zero(d_ys) else d_ys
    d_carries = None if all(map(_is_zero, d_carries)) else _filled(d_carries)
    pair = 2 if _bytes_per_step(weights, steps.xs) >= LARGE_STEP_BYTES else 1
    x_back, h_back = weights.x.T, weights.h.T
    nothing = jax.tree.map(jnp.zeros_like, carry)
    step = functools.partial(_reverse_step, equations, h_back, nothing)

    def chunk(loop: Tree, part: Tree) -> tuple[Tree, jax.Array]:
        loop, d_weights = loop
        start, (steps, after, gates, d_ys, d_carries) = part
        before = jax.tree.map(lambda s, a: jnp.concatenate([s[None], a[:-1]]), start, after)
        if steps.reset is not None:
            before = jax.vmap(select, (0, None, 0))(steps.reset, initial, before)
        inputs = _ReverseStep(before, gates, steps.mask, steps.reset, d_ys, d_carries)
        loop, dz = jax.lax.scan(step, loop, inputs, reverse=True, unroll=pair)
        part, d_zx = _weight_gradient(equations, weights, steps.xs, before[-1], dz)
        d_xs = (d_zx @ x_back).reshape(steps.xs.shape)
        return (loop, _add(d_weights, part)), d_xs

    starts = jax.tree.map(
        lambda first, after: jnp.concatenate([first[None], after[size - 1 : -1 : size]]),
        carry,
        carries,
    )
    parts = starts, _cut((steps, carries, gates, d_ys, d_carries), size)
    d_initial = None if steps.reset is None else nothing
    loop = (_filled(d_end), d_initial), jax.tree.map(jnp.zeros_like, weights)
    ((d_carry, d_initial), d_weights), d_xs = jax.lax.scan(chunk, loop, parts, reverse=True)
    return d_weights, d_carry, Steps(_join(d_xs), None, None), d_initial


def _reverse_step(
    equations: Equations, h_back: jax.Array, nothing: Leaves, loop: Tree, step: _ReverseStep
) -> tuple[Tree, jax.Array]:
    """From the cotangents of the carry after a step and of the initial carry to those before it.

    Args:
      equations: the cell's.
      h_back: the transpose of the recurrent weights.
      nothing: a carry of zeros.
      loop: the two cotangents; None for the initial carry where there are no resets.
      step: its values.

    Returns:
      The two cotangents before the step, and dz.
    """
    d_after, d_initial = loop
    before, gates, mask, reset, d_y, d_carry = step
    if d_carry is not None:
        d_after = _add(d_after, d_carry)
    d_new = d_after if mask is None else select(mask, d_after, nothing)
    if d_y is not None:
        d_new = (*d_new[:-1], d_new[-1] + d_y)
    d_before, dz = equations.pull(before, gates, d_new)
    d_before = (*d_before[:-1], d_before[-1] + equations.to_h(dz) @ h_back)
    if mask is not None:
        d_before = _add(d_before, select(mask, nothing, d_after))
    if reset is not None:
        d_initial = _add(d_initial, select(reset, d_before, nothing))
        d_before = select(reset, nothing, d_before)
    return (d_before, d_initial), dz


def _weight_gradient(
    equations: Equations, weights: Weights, xs: jax.Array, hs: jax.Array, dz: jax.Array
) -> tuple[Weights, jax.Array]:
    """The part of a chunk, and the cotangents of its zx."""
    if not is_spread(xs):
        # [steps, B, ...] as rows of one matrix: products with two contracted axes are slower. Rows
        # of several devices would be gathered for it.
        xs, hs, dz = (a.reshape(-1, a.shape[-1]) for a in (xs, hs, dz))
    d_zx, d_zh = equations.to_x(dz), equations.to_h(dz)
    rows = tuple(range(dz.ndim - 1))
    gradient = Weights(
        jnp.tensordot(xs, d_zx, (rows, rows)),
        jnp.tensordot(hs, d_zh, (rows, rows)),
        None if weights.x_bias is None else d_zx.sum(rows),
        None if weights.h_bias is None else d_zh.sum(rows),
    )
    return gradient, d_zx


_run.defvjp(_run_forward, _run_reverse, symbolic_zeros=True)


def _at(tree: Tree, j: jax.Array) -> Tree:
    """Row j of every array."""
    row = functools.partial(
        jax.lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False
    )
    return jax.tree.map(lambda a: row(a, j), tree)


def _put(tree: Tree, rows: Tree, j: jax.Array) -> Tree:
    """Every array with another row j."""
    put = functools.partial(
        jax.lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False
    )
    return jax.tree.map(lambda a, row: put(a, row, j), tree, rows)


def _cut(tree: Tree, size: int) -> Tree:
    """[T, ...] to [T / size, size, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _join(tree: Tree) -> Tree:
    """[T / size, size, ...] to [T, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def plus(z: jax.Array, bias: jax.Array | None) -> jax.Array:
    """z [..., features] and a bias [features], or no bias."""
    return z if bias is None else z + jnp.expand_dims(bias, range(z.ndim - 1))


def _add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def _is_zero(cotangent: jax.Array | SymbolicZero) -> bool:
    return isinstance(cotangent, SymbolicZero)


def _filled(cotangents: Tree) -> Tree:
    """The cotangents, with arrays of zeros for those that are known to be zero."""
    return jax.tree.map(
        lambda d: jnp.zeros(d.shape, d.dtype) if _is_zero(d) else d, cotangents, is_leaf=_is_zero
    )
