"""The truncated gradient of one window: one reverse pass, or a window for each loss."""

import functools
from typing import Any

import jax

from tbptt_jax import per_loss
from tbptt_jax.arguments import check_count
from tbptt_jax.types import Carry, LossFn, Model, Params
from tbptt_jax.window import (
    Window,
    WindowValue,
    check_window,
    forward,
    scored_sum,
    split_rng,
    total_weight,
)


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
      The `WindowValue` and the gradient, a pytree like `params`.

    Raises:
      ValueError: the model or the loss returns arrays of another leading shape; reach or block is
        below 1, or a block is given without reach.
      TypeError: the core changes the structure, shape or dtype of the carry; model, window, reach
        or block is of a wrong kind.

    Example: two windows of a stream, by hand.
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
    _check(model, carry, window, reach, block)
    carry = jax.lax.stop_gradient(carry)
    steps = jax.tree.leaves(window.inputs)[0].shape[1]
    if reach is not None and reach < steps:
        find = functools.partial(per_loss.value_and_grad, reach=reach, block=block)
    else:
        find = _reverse_pass  # no loss of the window reaches further
    (total, end, carries), grads = find(model, loss, params, carry, window, rng)
    return WindowValue(total, total_weight(window), end, carries), grads


def _check(model: Any, carry: Carry, window: Window, reach: Any, block: Any) -> None:
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
    rows, steps = jax.tree.leaves(window.inputs)[0].shape[:2]
    for leaf in jax.tree.leaves(carry):
        if leaf.shape[:1] != (rows,):
            raise ValueError(
                f"{caller}: carry must lead with the {rows} rows of the window, got "
                f"{list(leaf.shape)}"
            )
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
    if window.weights is not None and window.weights.shape != (rows, count):
        raise ValueError(
            f"{caller}: window.weights must have the shape of the losses, {[rows, count]}, got "
            f"{list(window.weights.shape)}"
        )


def _reverse_pass(model, loss, params, carry, window, rng):
    encode_rng, readout_rng = split_rng(rng)

    def losses(params):
        end, ys, carries = forward(model, params, carry, window, encode_rng)
        return scored_sum(model, loss, params, ys, window, readout_rng), (end, carries)

    (total, aux), grads = jax.value_and_grad(losses, has_aux=True)(params)
    return (total, *aux), grads
