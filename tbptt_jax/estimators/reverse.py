"""The gradient of a window by one reverse pass: each loss reaches to the first step."""

import jax

from tbptt_jax.estimators.estimator import (
    Estimator,
    WindowGradient,
    WindowLoss,
    advance,
    no_aux,
)
from tbptt_jax.types import Params, Tree


def value_and_grad(losses: WindowLoss, params: Params, aux: Tree) -> WindowGradient:
    """`Estimator.value_and_grad` by reverse-mode differentiation; aux passes unchanged."""
    losses = losses._replace(carry=jax.lax.stop_gradient(losses.carry))
    (total, (end, carries)), grads = jax.value_and_grad(losses.at, has_aux=True)(params)
    return WindowGradient(total, end, carries, grads, aux)


ESTIMATOR = Estimator(no_aux, value_and_grad, advance)
