"""Stacks of cells, and the check that a core is a cell."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax.cells import dispatch
from tbptt_jax.cells.scan import Unrolled, cell_carry
from tbptt_jax.types import Array, Carry, Cell, Tree


class Stack(nnx.Module):
    """Cells on top of each other: the output of one is the input of the next.

    The carry is the tuple of the cells' carries.

    Args:
      cells: at least one, the lowest first; each as the core of a `SequenceModel`.

    Raises:
      TypeError: `cells` is not a list, or holds something else than cells.
      ValueError: it is empty.

    Examples:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> core = Stack([nnx.GRUCell(8, 16, rngs=rngs), nnx.GRUCell(16, 16, rngs=rngs)])
    """

    def __init__(self, cells: Sequence[Cell]):
        if not isinstance(cells, Sequence):
            raise TypeError(
                f"Stack: cells must be a list of cells, got {what_is(cells)}; write Stack([cell])"
            )
        if not cells:
            raise ValueError("Stack: cells must hold at least one cell, got none")
        self.cells = nnx.List(check_core(f"Stack: cells[{i}]", c) for i, c in enumerate(cells))

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> Carry:
        """The cells' initial carries; `input_shape` is one step's, (B, features)."""
        carries = []
        x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
        for cell in self.cells:
            carries.append(cell_carry(cell, x.shape, rngs))
            x = jax.eval_shape(lambda c, x, cell=cell: cell(c, x)[1], carries[-1], x)
        return tuple(carries)

    def __call__(self, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        """One step of every cell, x and the output [B, ...]."""
        new = []
        for cell, c in zip(self.cells, carry, strict=True):
            c, x = cell(c, x)
            new.append(c)
        return tuple(new), x

    def unroll(
        self, carry: Carry, xs: Tree, mask: Array | None = None, reset: Array | None = None
    ) -> Unrolled:
        """Run over xs [B, T, ...], one cell after the other, each by its own fastest way.

        Arguments and results as `Model.unroll`.
        """
        ends, stacks = [], []
        for cell, c in zip(self.cells, carry, strict=True):
            end, xs, stack = dispatch.unroll(cell, c, xs, mask, reset)
            ends.append(end)
            stacks.append(stack)
        return tuple(ends), xs, tuple(stacks)


def what_is(value: object) -> str:
    """The type of a value for a message; a class, passed in place of an instance, by its name."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_core(name: str, core: Any) -> Cell:
    """Return a core; raise a TypeError, whose message calls it `name`, if it is no cell."""
    missing = [name for name in ("__call__", "initialize_carry") if not hasattr(core, name)]
    if missing or isinstance(core, type):
        raise TypeError(
            f"{name} must be a recurrent cell with (carry, x) -> (carry, y) and "
            f"initialize_carry(input_shape, rngs), got {what_is(core)}; use "
            "tbptt_jax.LSTM, a flax nnx cell or tbptt_jax.Stack"
        )
    return core
