"""The LSTM: flax's cell, its equations and their transposes.

With i, f, o the sigmoids and g the tanh of z = x W + h U + b:

    c' = f c + i g,    h' = o tanh(c').
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax.arguments import check_count
from tbptt_jax.cells.flax_cell import FlaxCell, sigmoid
from tbptt_jax.cells.gated import Equations, Leaves
from tbptt_jax.cells.scan import Unrolled
from tbptt_jax.types import Array, Carry


def _gates(zx: jax.Array, zh: jax.Array) -> Leaves:
    # Each gate an array of its own: on a CPU faster than one array and its slices.
    return tuple(map(jnp.tanh, jnp.split(zx + zh, 4, axis=-1)))


def _step(carry: Leaves, gates: Leaves) -> Leaves:
    t_i, t_f, g, t_o = gates
    c = sigmoid(t_f) * carry[0] + sigmoid(t_i) * g
    return c, sigmoid(t_o) * jnp.tanh(c)


def _pull(before: Leaves, gates: Leaves, d_after: Leaves) -> tuple[Leaves, jax.Array]:
    c, (d_c, d_h) = before[0], d_after
    t_i, t_f, g, t_o = gates
    i, f, o = map(sigmoid, (t_i, t_f, t_o))
    s = jnp.tanh(f * c + i * g)
    d_c = d_c + d_h * o * (1 - s * s)
    dz = (
        0.5 * d_c * g * (1 - t_i * t_i),
        0.5 * d_c * c * (1 - t_f * t_f),
        d_c * i * (1 - g * g),
        0.5 * d_h * s * (1 - t_o * t_o),
    )
    return (d_c * f, jnp.zeros_like(d_h)), jnp.concatenate(dz, axis=-1)


def _same(dz: jax.Array) -> jax.Array:
    return dz


CELL = FlaxCell(
    nnx.OptimizedLSTMCell,
    Equations(_gates, _step, _pull, to_x=_same, to_h=_same),
    carries=2,
    sigmoids=(True, True, False, True),
    one_sum=True,
)


class LSTM(nnx.OptimizedLSTMCell):
    """flax's `nnx.OptimizedLSTMCell`, same parameters and same step, with a faster unroll.

    The cell's arguments are flax's: `in_features`, `hidden_features`, `rngs`, and by keyword
    `dtype` (of the computation; `jnp.bfloat16` keeps the parameters and the carry in
    `param_dtype`), `param_dtype`, initializers and so on. The carry is the pair (c, h).

    In a `SequenceModel` flax's own `nnx.OptimizedLSTMCell` and `nnx.GRUCell` run as fast.

    Raises:
      TypeError, ValueError: `in_features` or `hidden_features` is no positive integer.

    Examples:
      >>> from flax import nnx
      >>> LSTM(64, 128, rngs=nnx.Rngs(0)).dense_i.kernel.shape
      (64, 512)
    """

    def __init__(self, in_features: int, hidden_features: int, **options: Any):
        check_count("LSTM", "in_features", in_features)
        check_count("LSTM", "hidden_features", hidden_features)
        super().__init__(in_features, hidden_features, **options)

    def unroll(
        self, carry: Carry, xs: jax.Array, mask: Array | None = None, reset: Array | None = None
    ) -> Unrolled:
        """Run over xs [B, T, in_features]; arguments and results as `Model.unroll`."""
        return CELL.unroll(self, carry, xs, mask, reset)
