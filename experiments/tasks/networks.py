"""What the networks of the tasks are made of."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tbptt_jax as tbptt


def build(make: Callable[[], tbptt.SequenceModel]) -> tbptt.SequenceModel:
    """What `make` makes, if training it has room; XLA may end the process where it has not.

    Raises:
      MemoryError: it is too large for the memory of this machine.
    """
    shapes = jax.tree.leaves(nnx.eval_shape(make))
    # Parameters, gradients and Adam's two averages, of 4 bytes each.
    needed = 4 * 4 * sum(math.prod(leaf.shape) for leaf in shapes)
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if jax.default_backend() == "cpu" and needed > room:
        raise MemoryError(f"training needs {needed:,} bytes or more, there are {room:,}")
    return make()


def remember(key: jax.Array, shape: tuple[int], dtype: Any) -> jax.Array:
    """An LSTM's biases with forget gates that start open (Jozefowicz et al. 2015)."""
    del key
    gates = jnp.zeros((4, shape[0] // 4), dtype)  # input, forget, candidate, output
    return gates.at[1].set(1).reshape(shape)


class Dropout(nnx.Dropout):
    """flax's, with 8 random bits for an element in place of 32, which is what takes the time.

    The share that is dropped is a multiple of 1/256, the nearest to `rate` but never none or all.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:  # pyright: ignore
        """The inputs with some of them 0 and the others made larger, while training."""
        if self.deterministic or not self.rate:
            return inputs
        assert isinstance(self.rngs, nnx.RngStream)
        words = jax.random.bits(self.rngs(), (-(-inputs.size // 4),), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: inputs.size]
        dropped = min(max(round(256 * self.rate), 1), 255)
        kept = bits.reshape(inputs.shape) >= dropped
        return jnp.where(kept, inputs / (1 - dropped / 256), jnp.zeros_like(inputs))


def lstm(
    inputs: int, hidden: int, outputs: int, seed: int, symbols: int | None = None
) -> tbptt.SequenceModel:
    """One LSTM over numbers, or over the embeddings of `symbols` ids, and a linear readout."""
    rngs = nnx.Rngs(seed)
    return tbptt.SequenceModel(
        encoder=None if symbols is None else nnx.Embed(symbols, inputs, rngs=rngs),
        core=tbptt.LSTM(inputs, hidden, rngs=rngs, bias_init=remember),
        readout=nnx.Linear(hidden, outputs, rngs=rngs),
    )
