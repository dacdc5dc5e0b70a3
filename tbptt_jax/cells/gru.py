"""The GRU: the equations of flax's cell and their transposes.

With r, z the sigmoids of the sums of both projections, and n:

    n = tanh(x_n + r h_n),    h' = (1 - z) n + z h.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax.cells.flax_cell import FlaxCell, sigmoid
from tbptt_jax.cells.gated import Equations, Leaves


def _gates(zx: jax.Array, zh: jax.Array) -> Leaves:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(z, 3, axis=-1) for z in (zx, zh))
    t_r, t_z = jnp.tanh(x_r + h_r), jnp.tanh(x_z + h_z)
    return t_r, t_z, jnp.tanh(x_n + sigmoid(t_r) * h_n), h_n


def _step(carry: Leaves, gates: Leaves) -> Leaves:
    (h,), (_, t_z, n, _) = carry, gates
    z = sigmoid(t_z)
    return ((1 - z) * n + z * h,)


def _pull(before: Leaves, gates: Leaves, d_after: Leaves) -> tuple[Leaves, jax.Array]:
    (h,), (d,) = before, d_after
    t_r, t_z, n, h_n = gates
    r, z = sigmoid(t_r), sigmoid(t_z)
    d_n = d * (1 - z) * (1 - n * n)
    d_r, d_z = 0.5 * d_n * h_n * (1 - t_r * t_r), 0.5 * d * (h - n) * (1 - t_z * t_z)
    return (d * z,), jnp.concatenate([d_r, d_z, d_n, d_n * r], axis=-1)


def _to_x(dz: jax.Array) -> jax.Array:
    return dz[..., : 3 * (dz.shape[-1] // 4)]


def _to_h(dz: jax.Array) -> jax.Array:
    d_r, d_z, _, d_h_n = jnp.split(dz, 4, axis=-1)
    return jnp.concatenate([d_r, d_z, d_h_n], axis=-1)


CELL = FlaxCell(
    nnx.GRUCell,
    Equations(_gates, _step, _pull, _to_x, _to_h),
    carries=1,
    sigmoids=(True, True, False),
    one_sum=False,
)
