"""flax's LSTM with the input projections of all steps in one matrix product."""

from types import SimpleNamespace
from typing import Any

from flax import nnx

from tbptt_jax.recurrence import step_shape, unroll
from tbptt_jax.types import Array, Carry


class LSTM(nnx.OptimizedLSTMCell):
    """flax's `nnx.OptimizedLSTMCell`, same parameters and same step, with a faster unroll.

    The cell's arguments are flax's: `in_features`, `hidden_features`, `rngs`, and by keyword
    `dtype` (of the computation; `jnp.bfloat16` keeps the parameters and the carry in
    `param_dtype`), `param_dtype`, initializers and so on. The carry is the pair (c, h).

    Example:
      >>> from flax import nnx
      >>> LSTM(64, 128, rngs=nnx.Rngs(0)).dense_i.kernel.shape
      (64, 512)
    """

    def unroll(
        self, carry: Carry, xs: Any, mask: Array | None = None, reset: Array | None = None
    ) -> tuple[Carry, Any, Carry]:
        """Run over xs [B, T, in_features]; arguments and results as `recurrence.unroll`."""
        # The step is flax's own, given inputs that are projected already: the recurrence then
        # holds one matrix product a step, and the gates are written once, in flax.
        projected = SimpleNamespace(
            dense_i=lambda x: x,
            dense_h=self.dense_h,
            gate_fn=self.gate_fn,
            activation_fn=self.activation_fn,
        )

        def step(carry: Any, x: Any) -> Any:
            return nnx.OptimizedLSTMCell.__call__(projected, carry, x)  # pyright: ignore

        initial = None
        if reset is not None:
            initial = self.initialize_carry(step_shape(xs), nnx.Rngs(0))
        return unroll(step, carry, self.dense_i(xs), mask, reset, initial)
