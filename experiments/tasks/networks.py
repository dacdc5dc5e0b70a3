"""What the networks of the tasks are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tbptt_jax as tbptt


def remember(key: jax.Array, shape: tuple[int], dtype: Any) -> jax.Array:
    """An LSTM's biases with forget gates that begin open (Jozefowicz et al. 2015)."""
    del key
    gates = jnp.zeros((4, shape[0] // 4), dtype)  # input, forget, candidate, output
    return gates.at[1].set(1).reshape(shape)


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
