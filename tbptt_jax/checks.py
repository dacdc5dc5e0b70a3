"""Bad input is told at the boundary: which argument, what was expected, what came, what to do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.types import Batch, Carry


def check_batch(batch: Batch) -> None:
    """Raise if the arrays of a batch do not belong together; shapes and dtypes only, no values.

    Raises:
      TypeError: no Batch; a mask or reset that is not boolean; weights that are not floating.
      ValueError: an array without [B, T], empty, or of another B or T than the inputs.
    """
    if not isinstance(batch, Batch):
        raise TypeError(
            f"batch must be a tbptt_jax.Batch, got {type(batch).__name__}; write "
            "Batch(inputs, targets)"
        )
    leading: tuple[int, ...] = ()
    for name in ("inputs", "targets"):
        leaves = jax.tree.leaves(getattr(batch, name))
        if not leaves:
            raise TypeError(f"Batch: {name} must be an array [B, T, ...], got none")
        for leaf in leaves:
            if not isinstance(leaf, jax.Array | np.ndarray):
                raise TypeError(
                    f"Batch: {name} must be an array [B, T, ...], got {type(leaf).__name__}; "
                    "convert it with np.asarray"
                )
            check_numbers("Batch", name, leaf)
            leading = leading or leaf.shape[:2]
            _check_leading(name, leaf, leading, exact=False)
    for name in ("mask", "reset", "weights"):
        array = getattr(batch, name)
        if array is not None:
            if not isinstance(array, jax.Array | np.ndarray):
                raise TypeError(
                    f"Batch: {name} must be an array [B, T], got {type(array).__name__}; convert "
                    "it with np.asarray"
                )
            _check_leading(name, array, leading, exact=True)
            _check_dtype(name, array)


def _check_leading(name: str, array: Any, leading: tuple[int, ...], *, exact: bool) -> None:
    shape = array.shape
    if len(shape) < 2 or (exact and len(shape) != 2):
        raise ValueError(
            f"Batch: {name} must have shape [B, T{'' if exact else ', ...'}] (examples, steps), "
            f"got {list(shape)}"
        )
    if 0 in shape[:2]:
        raise ValueError(
            f"Batch: {name} must hold at least one example and step, got {list(shape)}"
        )
    if shape[:2] != leading:
        raise ValueError(
            f"Batch: {name} must lead with [B, T] = {list(leading)} like the inputs, got "
            f"{list(shape)}; a label for a whole sequence is repeated at every step, and "
            "`weights` say where its loss counts"
        )


def _check_dtype(name: str, array: Any) -> None:
    if name == "weights":
        if not jnp.issubdtype(array.dtype, np.floating):
            raise TypeError(
                f"Batch: weights must be floating point, got {array.dtype}; use "
                "weights.astype(np.float32)"
            )
    else:
        check_boolean("Batch", name, array)


def check_numbers(owner: str, name: str, array: Any) -> None:
    """Raise a TypeError if an array holds something else than numbers."""
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"{owner}: {name} must hold numbers, got {array.dtype}; give each symbol a number"
        )


def check_boolean(owner: str, name: str, array: Any) -> None:
    """Raise a TypeError if an array is not boolean."""
    if array.dtype != bool:
        raise TypeError(
            f"{owner}: {name} must be boolean, got {array.dtype}; use {name}.astype(bool)"
        )


def first_line(error: BaseException) -> str:
    """What another library says, short enough to go on in a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]


def check_stream(carry: Carry, rows: int, advice: str) -> None:
    """Raise if a stream goes on with another number of rows than it has carries.

    Raises:
      ValueError: the batch sizes differ.
    """
    kept = jax.tree.leaves(carry)[0].shape[0]
    if kept != rows:
        raise ValueError(
            f"Batch: inputs continue a stream of {kept} rows (reset is given), got {rows} rows; "
            f"keep the batch size, or {advice}"
        )
