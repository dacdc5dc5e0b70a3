"""The gradient of one window for those who own their loop."""

import jax
import jax.numpy as jnp

from tbptt_jax.arguments import check_count, check_leading
from tbptt_jax.axes import automatic
from tbptt_jax.cells.scan import check_carry, step_shape
from tbptt_jax.estimators import per_loss, reverse
from tbptt_jax.estimators.estimator import WindowLoss
from tbptt_jax.estimators.sharding import estimate_by_rows, rows_of
from tbptt_jax.estimators.window import (
    Window,
    WindowValue,
    check_window,
    encode,
    initial_carry,
    loss_weights,
    total_weight,
)
from tbptt_jax.types import Carry, LossFn, Model, Params


def window_value_and_grad(
    model: Model,
    loss: LossFn,
    params: Params,
    carry: Carry | None,
    window: Window,
    rng: jax.Array | None = None,
    *,
    reach: int | None = None,
    block: int | None = None,
) -> tuple[WindowValue, Params]:
    """Losses of one window and their gradient, which goes no further than the window.

    The layer below `train_step`, for those who own their loop: the carry is a constant (no
    gradient goes into it), the parameters are used by every step of the window, and the gradient
    is that of the weighted sum of the losses, to be divided by a weight of your choice. A burn-in
    that moves the carry and gets no gradient is a `forward` before it.

    Args:
      model: the network's pure functions; `functional(module)` makes them from a SequenceModel.
      loss: `(outputs [B, N, ...], targets [B, N, ...]) -> losses [B, N]`.
      params: the parameters.
      carry: carry before the window's first step, leaves [B, ...]; None: a sequence begins here,
        with the initial carry, and where that is learnt it gets its gradient.
      window: the steps and their losses.
      rng: key for dropout; None: deterministic.
      reach: how many steps each loss reaches back, its own included, at least 1; None: to the
        window's first step.
      block: with `reach`, how many steps have their adjoints formed at once; None: all of them.
        See `per_loss` for what that costs.

    Returns:
      The `WindowValue` and the gradient, a pytree like `params`; zero where nothing has a weight.

    Raises:
      ValueError: the model or the loss returns arrays of another leading shape; reach or block is
        below 1, or a block is given without reach.
      TypeError: the core changes the structure, shape or dtype of the carry, or the carry given is
        not like the model's initial one; model, window, reach or block is of a wrong kind.

    Examples: two windows of a stream, by hand.
      >>> import jax, jax.numpy as jnp, optax
      >>> model = Model(
      ...     initialize_carry=lambda params, shape: jnp.zeros(shape),
      ...     encode=lambda params, inputs, rng: inputs,
      ...     step=lambda params, h, x: (jnp.tanh(params * h + x),) * 2,
      ...     readout=lambda params, ys, rng: ys[..., 0],
      ... )
      >>> x, carry = jnp.ones((1, 6, 1)), jnp.zeros((1, 1))
      >>> for part in (x[:, :3], x[:, 3:]):
      ...     window = Window(part, targets=jnp.zeros((1, 3)))
      ...     value, grad = window_value_and_grad(
      ...         model, optax.squared_error, jnp.array(0.5), carry, window)
      ...     carry = value.carry
      >>> float(value.weight)
      3.0
    """
    _check(model, params, carry, window, reach, block)
    return _value_and_grad(model, loss, params, carry, window, rng, reach, block)


@automatic
def _value_and_grad(
    model: Model,
    loss: LossFn,
    params: Params,
    carry: Carry | None,
    window: Window,
    rng: jax.Array | None,
    reach: int | None,
    block: int | None,
) -> tuple[WindowValue, Params]:
    _check_carry(model, params, carry, window)
    weights = loss_weights(window)
    losses = WindowLoss(model, loss, carry, window, 1.0 if weights is None else weights, rng)
    estimator = reverse.ESTIMATOR if reach is None else per_loss.estimator(reach, block)
    estimator = estimate_by_rows(estimator, model, rows_of(window.inputs))
    found = estimator.value_and_grad(losses, params, ())
    weight, grads = total_weight(weights, window.targets), found.grads
    if weights is not None:
        # Without a step that counts there is nothing to put in place of those that do not.
        grads = jax.tree.map(lambda g: jnp.where(weight != 0, g, 0), grads)
    return WindowValue(found.total, weight, found.carry, found.carries), grads


def _check(
    model: object,
    params: Params,
    carry: Carry | None,
    window: Window,
    reach: object,
    block: object,
) -> None:
    """Raise unless the arguments fit each other."""
    caller = "window_value_and_grad"
    if not isinstance(model, Model):
        raise TypeError(
            f"{caller}: model must be a tbptt_jax.Model, got {type(model).__name__}; make it with "
            "functional(module)"
        )
    for name, value in (("reach", reach), ("block", block)):
        if value is not None:
            check_count(caller, name, value)
    if block is not None and reach is None:
        raise ValueError(f"{caller}: block goes with reach, which is None; leave it out")
    check_window(caller, window)
    rows = jax.tree.leaves(window.inputs)[0].shape[0]
    check_leading(
        f"{caller}: carry must have", carry, "B", (rows,), "one for each row of the window"
    )
    _check_losses(caller, window)


def _check_carry(model: Model, params: Params, carry: Carry | None, window: Window) -> None:
    """Raise unless a carry is one of this model."""
    if carry is not None:
        xs = jax.eval_shape(lambda p, x: encode(model, p, x, None), params, window.inputs)
        initial = jax.eval_shape(lambda p: initial_carry(model, p, step_shape(xs)), params)
        advice = "take the carry that a window before it returned, or None for the initial one"
        says, other = "of this model is", "and the one given is"
        check_carry("window_value_and_grad", initial, carry, says, other, advice)


def _check_losses(caller: str, window: Window) -> None:
    """Raise unless each loss of a window belongs to one of its steps."""
    rows, steps = jax.tree.leaves(window.inputs)[0].shape[:2]
    count = jax.tree.leaves(window.targets)[0].shape[1]
    if count > steps:
        raise ValueError(
            f"{caller}: window.targets must have at most the {steps} steps of its inputs, got "
            f"{count}"
        )
    if isinstance(window.first, int) and not 0 <= window.first <= steps - count:
        raise ValueError(
            f"{caller}: window.first must be 0 to {steps - count}, so that each of {count} losses "
            f"belongs to one of {steps} steps, got {window.first}"
        )
    claim, meaning = f"{caller}: window.weights must have", "a weight for each loss"
    check_leading(claim, window.weights, "B, N", (rows, count), meaning, exact=True)
