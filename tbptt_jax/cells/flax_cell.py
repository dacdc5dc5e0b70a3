"""flax's gated cells, unrolled by the fused scan where that gives the numbers of their step.

Such a cell has two layers, `dense_i` for the input and `dense_h` for the hidden state, and gates
between them. sigmoid(z) = (1 + tanh(z / 2)) / 2, with the half folded into the weights, so every
gate is a tanh of a projection.
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax.cells import gated, scan
from tbptt_jax.cells.gated import Equations, Weights
from tbptt_jax.cells.layers import is_plain_linear
from tbptt_jax.cells.scan import Unrolled, initial_for_resets, step_shape
from tbptt_jax.types import Array, Carry, Cell, Tree


class GatedCell(Cell, Protocol):
    """What flax's gated cells have in common."""

    dense_i: nnx.Linear
    dense_h: nnx.Linear
    gate_fn: Callable[..., Any]
    activation_fn: Callable[..., Any]


class FlaxCell(NamedTuple):
    """One of flax's gated cells.

    Attributes:
      flax: its class.
      equations: its arithmetic between the projections.
      carries: number of leaves of its carry.
      sigmoids: for each gate, in the order of the columns of the weights, whether it is a sigmoid.
      one_sum: the gates read the two projections only as their sum, so one bias serves for both.
    """

    flax: type[GatedCell]
    equations: Equations
    carries: int
    sigmoids: tuple[bool, ...]
    one_sum: bool

    def unroll(
        self, cell: GatedCell, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """Run an instance over xs [B, T, features]; arguments and results as `scan.unroll`.

        The scan is fused where the step is flax's, the layers are as flax makes them, with a bias
        or without, and everything has one dtype. With other activations, another layer for the
        hidden state or mixed dtypes the cell's step is scanned, with inputs that are all projected
        at once; with another step or another layer for the input it is scanned as it is.
        """
        if type(cell).__call__ is not self.flax.__call__ or not is_plain_linear(cell.dense_i):
            return scan.scan_cell(cell, carry, xs, mask, reset)
        initial = initial_for_resets(cell, xs, reset)
        if self._fits(cell, carry, xs):
            return self.fused(self._weights(cell), carry, xs, mask, reset, initial)
        projected = SimpleNamespace(
            dense_i=lambda x: x,
            dense_h=cell.dense_h,
            gate_fn=cell.gate_fn,
            activation_fn=cell.activation_fn,
        )

        def step(carry: Carry, x: jax.Array) -> tuple[Carry, jax.Array]:
            return self.flax.__call__(projected, carry, x)  # pyright: ignore[reportArgumentType]

        return scan.unroll_existing(step, carry, cell.dense_i(xs), mask, reset, initial)

    def fused(
        self,
        weights: Weights,
        carry: Carry,
        xs: jax.Array,
        mask: Array | None,
        reset: Array | None,
        initial: Carry,
        hidden_first: bool = False,
    ) -> Unrolled:
        """Run by the fused scan; `hidden_first`: the carry is (h, c) instead of (c, h)."""
        order = -1 if hidden_first else 1
        leaves, structure = jax.tree.flatten(carry)
        start = None if initial is None else tuple(jax.tree.leaves(initial)[::order])
        end, ys, carries = gated.unroll(
            self.equations, weights, tuple(leaves[::order]), xs, mask, reset, start
        )
        return structure.unflatten(end[::order]), ys, structure.unflatten(carries[::order])

    def _fits(self, cell: GatedCell, carry: Carry, xs: Tree) -> bool:
        """Whether the equations give the numbers of the cell's step; `dense_i` is plain."""
        layers, leaves = (cell.dense_i, cell.dense_h), jax.tree.leaves(carry)
        if not (
            is_plain_linear(cell.dense_h)
            and cell.gate_fn is nnx.sigmoid
            and cell.activation_fn is nnx.tanh
        ):
            return False
        width, columns = cell.dense_h.kernel.shape
        shapes_fit = (
            columns == cell.dense_i.kernel.shape[1] == width * len(self.sigmoids)
            and len(leaves) == self.carries
            and all(leaf.shape == (*step_shape(xs)[:-1], width) for leaf in leaves)
        )
        arrays = xs, *leaves, *jax.tree.leaves([nnx.state(layer, nnx.Param) for layer in layers])
        computed = {jnp.dtype(layer.dtype or xs.dtype) for layer in layers}
        return shapes_fit and computed == {xs.dtype} and is_of_one_dtype(arrays)

    def _weights(self, cell: GatedCell) -> Weights:
        x_bias, h_bias = (
            None if layer.bias is None else layer.bias[...]
            for layer in (cell.dense_i, cell.dense_h)
        )
        return self.folded(cell.dense_i.kernel[...], cell.dense_h.kernel[...], x_bias, h_bias)

    def folded(
        self, x: jax.Array, h: jax.Array, x_bias: jax.Array | None, h_bias: jax.Array | None
    ) -> Weights:
        """The weights, a half folded into the columns of the gates that are sigmoids."""
        factors = jnp.where(jnp.array(self.sigmoids), 0.5, 1.0).astype(h.dtype)
        half = jnp.repeat(factors, h.shape[1] // len(self.sigmoids))
        x_bias, h_bias = (None if bias is None else bias * half for bias in (x_bias, h_bias))
        if self.one_sum and h_bias is not None:
            x_bias, h_bias = (h_bias if x_bias is None else x_bias + h_bias), None
        return Weights(x * half[None], h * half[None], x_bias, h_bias)


def is_of_one_dtype(arrays: Iterable[Array]) -> bool:
    """Whether all are float32 or all float64, which the fused scan is for."""
    return {a.dtype for a in arrays} in ({jnp.dtype("float32")}, {jnp.dtype("float64")})


def sigmoid(t: jax.Array) -> jax.Array:
    """The sigmoid of z, from t = tanh(z / 2)."""
    return 0.5 + 0.5 * t
