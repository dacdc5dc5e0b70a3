"""The scan over time: one step after another, held where masked, restarted where reset."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType

from tbptt_jax.sums import wide
from tbptt_jax.types import Array, Carry, Cell, Tree

# (carry, x) -> (carry, y), with x and y [B, ...] and every leaf of the carry [B, ...].
Step: TypeAlias = Callable[[Carry, Tree], tuple[Carry, Tree]]
# The carry after the last step, the outputs [B, T, ...], the carry after every step [T, B, ...].
Unrolled: TypeAlias = tuple[Carry, Tree, Carry]


def select(flags: Array, on_true: Tree, on_false: Tree) -> Tree:
    """Choose between two pytrees of [B, ...] arrays, example by example; `flags` is bool [B]."""

    def choose(a: Array, b: Array) -> jax.Array:
        return jnp.where(flags.reshape(flags.shape + (1,) * (a.ndim - flags.ndim)), a, b)

    return jax.tree.map(choose, on_true, on_false)


def step_shape(xs: Tree) -> Tree:
    """The shape (B, ...) of one step of xs [B, T, ...]; a pytree of shapes if xs is a pytree."""
    return jax.tree.map(lambda x: (x.shape[0], *x.shape[2:]), xs)


class Place(NamedTuple):
    """A step of one example; both are int32 []."""

    row: jax.Array
    step: jax.Array


def first_place(flags: Array, spread: bool) -> Place:
    """The earliest step at which `flags`, bool [B, K], is True; (0, 0) where it never is.

    `spread` says whether rows are on several devices.
    """
    rows, steps = flags.shape
    if spread:
        # One number of each device travels, not the flags of all rows.
        order = jnp.arange(rows)[:, None] + rows * jnp.arange(steps)[None]
        first = jnp.min(jnp.where(flags, order, rows * steps))
        first = jnp.where(first < rows * steps, first, 0)
    else:
        first = jnp.argmax(flags.T.reshape(-1))
    step, row = jnp.divmod(first.astype(jnp.int32), rows)
    return Place(row, step)


def take(x: jax.Array, indices: tuple[jax.Array, ...], spread: bool) -> jax.Array:
    """The part of an array at indices of its first axes, which stay, with length 1.

    `spread` says whether rows are on several devices.
    """
    count = len(indices)
    if spread:
        # The device that has it sends it to the others. A slice would gather the array on each.
        axes = tuple(range(count))
        numbers = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in axes)
        here = (n == i for n, i in zip(numbers, indices, strict=True))
        chosen = jnp.where(functools.reduce(jnp.logical_and, here), x, jnp.zeros_like(x))
        if x.dtype == bool:
            return jnp.any(chosen, axis=axes, keepdims=True)
        return jnp.sum(chosen, axis=axes, keepdims=True, dtype=x.dtype)
    start = (*indices, *[jnp.zeros_like(indices[0])] * (x.ndim - count))
    return jax.lax.dynamic_slice(x, start, (*(1,) * count, *x.shape[count:]))


def is_spread(tree: Tree) -> bool:
    """Whether one of these arrays may be spread over several devices."""
    meshes = {jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree)}
    return any(
        size > 1 and kind != AxisType.Manual
        for mesh in meshes
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )


def substitute(flags: Array, tree: Tree) -> Tree:
    """Fill steps of arrays [B, K, ...] that do not count with the values of one that does.

    Ignoring the result at a step is not enough: where its derivative is infinite, the derivative
    times a cotangent of zero is NaN. So at steps where `flags`, bool [B, K], is False the user's
    functions see the values of the earliest step where it is True. No gradient goes into them.
    """
    spread = is_spread((flags, tree))
    place = first_place(flags, spread)

    def fill(x: jax.Array) -> jax.Array:
        other = take(jax.lax.stop_gradient(x), place, spread)
        return jnp.where(flags.reshape(flags.shape + (1,) * (x.ndim - 2)), x, other)

    return jax.tree.map(fill, tree)


def known_carry(carry: Carry, mask: Array, reset: Array | None, initial: Carry) -> Carry:
    """The carry before the earliest existing step, in every row.

    A masked step is computed on it and on the input of that step. No earlier step exists, so it is
    the carry before all steps or, after a reset, the initial one.

    Args:
      carry: before the first step, leaves [B, ...].
      mask: bool [B, K].
      reset: bool [B, K] or None.
      initial: the carry after a reset; needed only with `reset`.
    """
    spread = is_spread((carry, mask, reset))
    place = first_place(mask, spread)
    if reset is not None:
        restarted = take(jnp.asarray(reset), (place.row,), spread)[0] & (
            jnp.arange(reset.shape[1], dtype=place.step.dtype) <= place.step
        )
        carry = jax.tree.map(lambda i, c: jnp.where(restarted.any(), i, c), initial, carry)
    return jax.tree.map(
        lambda c: jax.lax.stop_gradient(jnp.broadcast_to(take(c, (place.row,), spread), c.shape)),
        carry,
    )


def marked_step(
    step: Step,
    carry: Carry,
    x: Tree,
    mask: Array | None,
    reset: Array | None,
    initial: Carry,
) -> tuple[Carry, Tree]:
    """One step with its marks, each bool [B] or None; other arguments as `unroll`."""
    if reset is not None:
        carry = select(reset, initial, carry)
    new, y = step(carry, x)
    if mask is not None:
        new = select(mask, new, carry)
    return new, y


def unroll(
    step: Step,
    carry: Carry,
    xs: Tree,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: Carry = None,
) -> Unrolled:
    """Scan `step` over time.

    Before a step where `reset` is True the carry becomes `initial`; a step where `mask` is False
    holds the carry. A mask or reset of None adds nothing to the scan.

    Args:
      step: `(carry, x) -> (carry, y)` with x and y [B, ...] and every leaf of the carry [B, ...].
      carry: carry before the first step.
      xs: [B, T, ...], or a pytree of such arrays.
      mask: bool [B, T], or None: all True.
      reset: bool [B, T], or None: all False.
      initial: the carry after a reset; needed only with `reset`.

    Returns:
      The carry after the last step; the outputs ys [B, T, ...]; and the carry after every step,
      time first: [T, B, ...]. XLA removes the last where it is not used.

    Raises:
      TypeError: `step` returns a carry of another structure, shape or dtype.
    """
    xs, mask, reset = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (xs, mask, reset))
    step = _checked(step, carry, jax.tree.map(lambda x: x[0], xs))

    def body(carry: Carry, inputs: Tree) -> tuple[Carry, Tree]:
        x, exists, restarts = inputs
        new, y = marked_step(step, carry, x, exists, restarts, initial)
        return new, (y, new)

    carry, (ys, carries) = jax.lax.scan(body, carry, (xs, mask, reset))
    return carry, jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), ys), carries


def unroll_existing(
    step: Step,
    carry: Carry,
    xs: Tree,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: Carry = None,
) -> Unrolled:
    """As `unroll`, for steps whose value or derivative may be undefined at masked steps.

    At a masked step `step` sees the carry and the input of the earliest step that exists. Its
    output there differs from that of `unroll`, and means nothing.
    """
    if mask is None:
        return unroll(step, carry, xs, mask, reset, initial)
    known = known_carry(carry, mask, reset, initial)

    def on_known(carry: Carry, inputs: Tree) -> tuple[Carry, Tree]:
        x, exists = inputs
        return step(select(exists, carry, known), x)

    return unroll(on_known, carry, (substitute(mask, xs), mask), mask, reset, initial)


def scan_cell(
    cell: Cell, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None
) -> Unrolled:
    """Scan a cell's own step; arguments and results as `Model.unroll`."""
    return unroll_existing(cell, carry, xs, mask, reset, initial_for_resets(cell, xs, reset))


def initial_for_resets(cell: Cell, xs: Tree, reset: Array | None) -> Carry:
    """The cell's initial carry for xs [B, T, ...], or None where there are no resets."""
    return None if reset is None else cell_carry(cell, step_shape(xs), nnx.Rngs(0))


def cell_carry(cell: Cell, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> Carry:
    """The cell's initial carry; flax's cells need `rngs` even for zeros, others may not take it."""
    if "rngs" in inspect.signature(cell.initialize_carry).parameters:
        return cell.initialize_carry(input_shape, rngs=rngs)
    return cell.initialize_carry(input_shape)  # pyright: ignore[reportCallIssue]


def check_pair(result: object) -> None:
    """Raise a TypeError if this is not the pair that a step returns."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"core: a step must return the pair (carry, y), got {type(result).__name__}; "
            "return the new carry first, then the output"
        )


def _checked(step: Step, carry: Carry, x: Tree) -> Step:
    """The step, with wide sums where its parameters need them.

    Raises:
      TypeError: the step changes the structure, a shape or a dtype of its carry, which would fail
        deep inside the scan.
    """
    jaxpr, result = jax.make_jaxpr(step, return_shape=True)(carry, x)
    check_pair(result)
    check_carry("core", carry, result[0], "goes into a step as", "and comes out as", _AGREE)
    if any(_is_narrow(parameter) for parameter in jaxpr.consts):
        return _with_wide_sums(step, carry, x)
    return step


_AGREE = (
    "make initialize_carry and the step return the same structure, shapes and dtypes, for instance "
    "by the cell's dtype and param_dtype"
)


def check_carry(
    owner: str, carry: Carry, other: Carry, says: str, says_other: str, advice: str
) -> None:
    """Raise a TypeError if two carries differ in structure, shape or dtype."""
    before, after = jax.tree.structure(carry), jax.tree.structure(other)
    if before != after:
        raise TypeError(f"{owner}: the carry {says} {before} {says_other} {after}; {advice}")
    for (path, old), new in zip(
        jax.tree.leaves_with_path(carry), jax.tree.leaves(other), strict=True
    ):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise TypeError(
                f"{owner}: carry{jax.tree_util.keystr(path)} {says} {old.dtype}{list(old.shape)} "
                f"{says_other} {new.dtype}{list(new.shape)}; {advice}"
            )


def _is_narrow(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact) and wide(array.dtype) != array.dtype


def _with_wide_sums(step: Step, carry: Carry, x: Tree) -> Step:
    """A step whose 16-bit parameters get their gradient summed in float32.

    The reverse pass of a scan sums the gradient of an array that its body closes over in the dtype
    of that array: in 16 bits, a sum of ones stops at 256 or at 2,048. So the body closes over a
    float32 copy and rounds it, which changes no value.
    """
    converted, parameters = jax.closure_convert(step, carry, x)
    widened = [p.astype(wide(p.dtype)) if _is_narrow(p) else p for p in parameters]

    def rounding(carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        rounded = [w.astype(p.dtype) for w, p in zip(widened, parameters, strict=True)]
        return converted(carry, x, *rounded)

    return rounding
