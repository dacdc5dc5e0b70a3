"""Networks of other libraries as a `Model` and its parameters.

A peer is imported when its function is called, not before.
"""

from tbptt_jax.adapters.equinox import from_equinox
from tbptt_jax.adapters.haiku import from_haiku
from tbptt_jax.adapters.keras import from_keras, to_keras
from tbptt_jax.adapters.linen import from_linen
from tbptt_jax.adapters.torch import from_torch, to_torch

__all__ = [
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_torch",
    "to_keras",
    "to_torch",
]
