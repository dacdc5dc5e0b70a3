"""Sums and means in float32 at least, scaled so that a mean is finite wherever it fits its dtype.

A sum over steps may overflow, and in 16 bits it loses its units, where the mean of the same numbers
does not. So losses are multiplied by shares of their weight before they are added or
differentiated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tbptt_jax.types import Array, Tree


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which numbers of a dtype are added: float32 at least."""
    return widest(dtype, jnp.float32)


def widest(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype that holds numbers of all these, whatever promotion a user allows."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def masked_weights(weights: Array | None, mask: Array | None) -> jax.Array | None:
    """The weights of losses, float32 at least; None: 1 each.

    Args:
      weights: of each loss; None: equal to the mask.
      mask: bool, of the same shape, whether the step exists; None: all do.
    """
    if weights is None:
        return None if mask is None else jnp.asarray(mask).astype(jnp.result_type(float))
    weights = jnp.asarray(weights).astype(widest(weights.dtype, jnp.result_type(float)))
    return weights if mask is None else jnp.where(mask, weights, jnp.zeros_like(weights))


def shares(weights: jax.Array | None, count: int) -> jax.Array | float:
    """Weights whose sum is 1; one number where all are equal.

    Args:
      weights: as `masked_weights` returns them; not all 0.
      count: how many losses there are.
    """
    if weights is None:
        return 1 / count
    scaled = weights / _unit(jnp.max(weights))  # the sum of the largest numbers may be infinite
    return scaled / jnp.sum(scaled)


def exact_terms(
    weights: jax.Array | None, count: int
) -> tuple[jax.Array | float, jax.Array | float]:
    """Weights scaled by a power of two, so that no sum overflows, and their sum.

    The mean is the sum of the losses times the scaled weights, over their sum. Numbers that float32
    holds exactly, as counts, stay exact. Arguments as in `shares`; the sum of weights that are all
    0 is 0.
    """
    if weights is None:
        scale = 0.5 ** count.bit_length()
        return scale, count * scale
    scaled = weights / _power_of_two(jnp.max(weights))
    scale = 1 / _power_of_two(jnp.sum(scaled))
    return scaled * scale, jnp.sum(scaled) * scale


def _power_of_two(number: jax.Array) -> jax.Array:
    """A power of two above a number >= 0, one that float32 holds together with its inverse."""
    _, exponent = jnp.frexp(number)
    return jnp.ldexp(jnp.ones_like(number), jnp.clip(exponent, -120, 120))


def _unit(peak: jax.Array) -> jax.Array:
    """A divisor that brings numbers of up to `peak` where their sums and squares do not overflow.

    XLA may multiply by its inverse, which must not be so small that it becomes 0.
    """
    least = 16 * jnp.finfo(peak.dtype).tiny
    return jnp.clip(peak, least, 1 / least)


class Weighed(NamedTuple):
    """What the losses of a window weigh.

    Attributes:
      total: float [], the sum of their weights.
      shares: weights whose sum is 1, where any is above 0.
      part: float [], of the weights that were offered, 1 where they are all 0.
    """

    total: jax.Array
    shares: jax.Array
    part: jax.Array


def weigh(weights: jax.Array, offered: jax.Array, ones: bool) -> Weighed:
    """Sum each array once, since devices that share it tell each other every sum.

    Args:
      weights: of losses, as `masked_weights` returns them.
      offered: those and others; the same array where there are no others.
      ones: whether they are a mask's, 0 or 1.
    """
    total = jnp.sum(weights)
    # Scaled by nothing, and divided by the same sum.
    terms = weights / total if ones else shares(weights, weights.size)
    if weights is offered:
        return Weighed(total, jnp.asarray(terms), jnp.ones_like(total))
    part, whole = total, offered
    if not ones:
        unit = _unit(jnp.max(offered))
        part, whole = jnp.sum(weights / unit), offered / unit
    whole = jnp.sum(whole)
    return Weighed(
        total, jnp.asarray(terms), jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 1)
    )


def norm(tree: Tree) -> tuple[jax.Array, jax.Array]:
    """The L2 norm of all leaves together, and whether every number in them is finite.

    Returns:
      float32 [], or a wider float; exact also where the squares of the leaves overflow or vanish.
      And bool [].
    """
    leaves = [leaf.astype(wide(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    # For complex numbers the dtype of their parts.
    dtype = jnp.finfo(widest(*(leaf.dtype for leaf in leaves))).dtype

    def length(leaves: list[jax.Array]) -> jax.Array:
        squares = [jnp.sum(jnp.square(jnp.abs(leaf))).astype(dtype) for leaf in leaves]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    def scaled() -> tuple[jax.Array, jax.Array]:
        peaks = [jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]
        peak = jnp.max(jnp.stack(peaks))
        unit = _unit(peak)
        return unit * length([leaf / unit.astype(leaf.dtype) for leaf in leaves]), peak < jnp.inf

    plain = length(leaves)
    least = jnp.sqrt(jnp.finfo(dtype).tiny) / jnp.finfo(dtype).eps
    # Squares of smaller numbers lose their digits. Scaling reads the leaves once more.
    usual = (plain > least) & (plain < jnp.inf)
    return jax.lax.cond(usual, lambda: (plain, jnp.bool(True)), scaled)


class Mean(NamedTuple):
    """A running weighted mean of pytrees.

    Attributes:
      tree: the mean so far, leaves float32 or wider.
      weight: float [], the sum of the weights so far.
    """

    tree: Tree
    weight: jax.Array

    @classmethod
    def of_nothing(cls, like: Tree) -> "Mean":
        """The mean before the first part, zeros of the shapes of `like`."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), like)
        return cls(zeros, jnp.zeros((), jnp.result_type(float)))

    def add(self, tree: Tree, weight: jax.Array) -> "Mean":
        """The mean with one more part, of a weight above 0."""
        weight = weight.astype(self.weight.dtype)
        total = self.weight + weight
        old, new = self.weight / total, weight / total

        def mix(mean: jax.Array, part: jax.Array) -> jax.Array:
            return mean * old.astype(mean.dtype) + part.astype(mean.dtype) * new.astype(mean.dtype)

        return Mean(jax.tree.map(mix, self.tree, tree), total)
