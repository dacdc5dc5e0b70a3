"""The fastest unroll for a cell."""

from typing import Any

from tbptt_jax.cells import gru, lstm
from tbptt_jax.cells.scan import Unrolled, scan_cell
from tbptt_jax.types import Array, Carry, Cell, Tree

FUSED = (lstm.CELL, gru.CELL)


def unroll(cell: Cell, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None) -> Unrolled:
    """Run a cell over xs [B, T, ...] by the fastest way that gives the numbers of its step.

    That is the cell's own `unroll`, or the fused scan of flax's cells, or else a scan of its step.
    Arguments and results as `Model.unroll`.
    """
    if _has_unroll(type(cell)):
        own: Any = cell
        return own.unroll(carry, xs, mask, reset)
    for fused in FUSED:
        if isinstance(cell, fused.flax):
            return fused.unroll(cell, carry, xs, mask, reset)
    return scan_cell(cell, carry, xs, mask, reset)


def _has_unroll(kind: type) -> bool:
    """Whether a class has an unroll of its step; one inherited past a newer step is not."""
    for parent in kind.__mro__:
        if callable(vars(parent).get("unroll")):
            return True
        if "__call__" in vars(parent):
            return False
    return False
