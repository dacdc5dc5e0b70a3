"""The scan over time: one step after another, held where masked, restarted where reset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt_jax.types import Array, Carry


def select(flags: Array, on_true: Any, on_false: Any) -> Any:
    """Choose between two pytrees of [B, ...] arrays, example by example; `flags` is bool [B]."""

    def choose(a, b):
        return jnp.where(flags.reshape(flags.shape + (1,) * (a.ndim - flags.ndim)), a, b)

    return jax.tree.map(choose, on_true, on_false)


def step_shape(xs: Any) -> Any:
    """The shape (B, ...) of one step of xs [B, T, ...]; a pytree of shapes if xs is a pytree."""
    return jax.tree.map(lambda x: (x.shape[0], *x.shape[2:]), xs)


def marked_step(
    step: Callable[[Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    x: Any,
    mask: Array | None,
    reset: Array | None,
    initial: Carry,
) -> tuple[Carry, Any]:
    """One step with its marks, each bool [B] or None; arguments otherwise as `unroll`."""
    if reset is not None:
        carry = select(reset, initial, carry)
    new, y = step(carry, x)
    if mask is not None:
        new = select(mask, new, carry)
    return new, y


def unroll(
    step: Callable[[Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    xs: Any,
    mask: Array | None = None,
    reset: Array | None = None,
    initial: Carry = None,
) -> tuple[Carry, Any, Carry]:
    """Scan `step` over time.

    Before a step where `reset` is True the carry becomes `initial`; through a step where `mask` is
    False the carry is held. A mask or reset of None adds nothing to the scan.

    Args:
      step: `(carry, x) -> (carry, y)` with x and y [B, ...] and every leaf of the carry [B, ...].
      carry: carry before the first step.
      xs: [B, T, ...], or a pytree of such arrays.
      mask: bool [B, T], or None: all True.
      reset: bool [B, T], or None: all False.
      initial: the carry that a reset gives; needed only with `reset`.

    Returns:
      The carry after the last step; the outputs ys [B, T, ...]; and the carry after every step,
      time first: [T, B, ...]. Where the last is not used, XLA removes it.

    Raises:
      TypeError: `step` returns a carry of another structure, shape or dtype.
    """
    xs, mask, reset = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (xs, mask, reset))
    _check_step(step, carry, xs)

    def body(carry, inputs):
        x, exists, restarts = inputs
        new, y = marked_step(step, carry, x, exists, restarts, initial)
        return new, (y, new)

    carry, (ys, carries) = jax.lax.scan(body, carry, (xs, mask, reset))
    return carry, jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), ys), carries


def check_pair(result: Any) -> None:
    """Raise a TypeError if this is not what a step returns."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"core: a step must return the pair (carry, y), got {type(result).__name__}; "
            "return the new carry first, then the output"
        )


def _check_step(step, carry, xs):
    """A carry that changes under the step would fail deep inside the scan: say it here."""
    result = jax.eval_shape(step, carry, jax.tree.map(lambda x: x[0], xs))
    check_pair(result)
    before, after = jax.tree.structure(carry), jax.tree.structure(result[0])
    if before != after:
        raise TypeError(
            f"core: the carry goes into a step as {before} and comes out as {after}; return the "
            "same structure that initialize_carry gives"
        )
    leaves = zip(jax.tree.leaves_with_path(carry), jax.tree.leaves(result[0]), strict=True)
    for (path, old), new in leaves:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise TypeError(
                f"core: carry{jax.tree_util.keystr(path)} goes into a step as "
                f"{old.dtype}{list(old.shape)} and comes out as {new.dtype}{list(new.shape)}; make "
                "initialize_carry and the step agree, for instance by the cell's dtype and "
                "param_dtype"
            )
