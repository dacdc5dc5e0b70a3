"""The simple recurrent layer: h' = a(x W + h U + b), with a tanh or a rectifier.

Source: Elman, "Finding structure in time", Cognitive Science 14 (1990).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tbptt_jax.cells.gated import Equations, Leaves


def _equations(
    activation: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]
) -> Equations:
    """The equations of an activation whose derivative is a function of its value."""

    def gates(zx: jax.Array, zh: jax.Array) -> Leaves:
        return (activation(zx + zh),)

    def pull(before: Leaves, gates: Leaves, d_after: Leaves) -> tuple[Leaves, jax.Array]:
        (h,), (d,) = gates, d_after
        return (jnp.zeros_like(d),), d * slope(h)

    def same(dz: jax.Array) -> jax.Array:
        return dz

    return Equations(gates, lambda carry, gates: gates, pull, same, same)


TANH = _equations(jnp.tanh, lambda h: 1 - h * h)
RELU = _equations(jax.nn.relu, lambda h: (h > 0).astype(h.dtype))
