"""Networks of other libraries as a `Model` and its parameters.

A peer is imported when its function is called, not before.
"""

from tbptt_jax.adapters.torch import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
