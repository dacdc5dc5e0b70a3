"""One window: run it forward, or take its truncated gradient. Plain pytrees, no training state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tbptt_jax import recurrence
from tbptt_jax.types import Array, Carry, LossFn, Model, Params


class Window(NamedTuple):
    """Steps that receive credit, and the losses that give it.

    The losses cover N of the window's K steps, so that a window may reach further back than its
    losses do.

    Attributes:
      inputs: [B, K, ...], or a pytree of such arrays.
      targets: [B, N, ...], or a pytree of such arrays.
      weights: float [B, N], the weight of each loss; None: all 1.
      mask: bool [B, K]; where False the carry is held. None: all True.
      reset: bool [B, K]; the carry becomes the initial carry before the step. None: all False.
      first: which of the K steps the first loss belongs to; may be traced.
      fresh: bool [], may be traced; where True the sequence begins with this window, as with a
        carry of None. None: False, at no cost.
    """

    inputs: Any
    targets: Any
    weights: Any = None
    mask: Any = None
    reset: Any = None
    first: Any = 0
    fresh: Any = None


class WindowValue(NamedTuple):
    """What a window computes beside its gradient.

    Attributes:
      loss: float [], sum of weight * loss.
      weight: float [], sum of the weights.
      carry: the carry after the last step.
      carries: the carry after every step, [K, B, ...].
    """

    loss: jax.Array
    weight: jax.Array
    carry: Carry
    carries: Carry


def forward(
    model: Model, params: Params, carry: Carry | None, window: Window, rng: jax.Array | None = None
) -> tuple[Carry, Any, Carry]:
    """Run a window's steps without losses; its targets and weights are not looked at.

    Args:
      model, params, window: as in `window_value_and_grad`.
      carry: carry before the first step; None: the initial carry, since a sequence begins here.
      rng: key for dropout in the encoder; None: deterministic.

    Returns:
      The carry after the last step, the core's outputs ys [B, K, ...], and the carry after every
      step [K, B, ...].

    Raises:
      ValueError: the encoder's outputs or the initial carry do not lead with [B, K] and [B].
      TypeError: the core changes the structure, shape or dtype of the carry.
    """
    inputs = window.inputs
    if window.mask is not None:
        # What stands in padding (an id outside the vocabulary, NaN) must reach no arithmetic.
        inputs = recurrence.select(window.mask, inputs, jax.tree.map(jnp.zeros_like, inputs))
    xs = encode(model, params, inputs, rng)
    if carry is None:
        carry = initial_carry(model, params, xs)
    elif window.fresh is not None:
        initial = initial_carry(model, params, xs)
        carry = jax.tree.map(lambda a, b: jnp.where(window.fresh, a, b), initial, carry)
    if model.unroll is not None:
        return model.unroll(params, carry, xs, window.mask, window.reset)
    initial = None if window.reset is None else initial_carry(model, params, xs)

    def step(carry, x):
        return model.step(params, carry, x)

    return recurrence.unroll(step, carry, xs, window.mask, window.reset, initial)


def encode(model: Model, params: Params, inputs: Any, rng: jax.Array | None) -> Any:
    """The encoder's outputs [B, K, ...], checked."""
    xs = model.encode(params, inputs, rng)
    leading = jax.tree.leaves(inputs)[0].shape[:2]
    _check_leading("encode", "one vector for every step", xs, leading)
    return xs


def initial_carry(model: Model, params: Params, xs: Any) -> Carry:
    """The carry that a sequence begins with, for encoded steps xs [B, K, ...]."""
    shape = recurrence.step_shape(xs)
    carry = model.initialize_carry(params, shape)
    batch = jax.tree.leaves(xs)[0].shape[0]
    _check_leading("initialize_carry", "one carry for every example", carry, (batch,))
    return carry


def window_value_and_grad(
    model: Model,
    loss: LossFn,
    params: Params,
    carry: Carry | None,
    window: Window,
    rng: jax.Array | None = None,
) -> tuple[WindowValue, Params]:
    """Losses of one window and their gradient, which stops at the window's first step.

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

    Returns:
      The `WindowValue` and the gradient, a pytree like `params`.

    Raises:
      ValueError: the model or the loss returns arrays of another leading shape.
      TypeError: the core changes the structure, shape or dtype of the carry.

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
    carry = jax.lax.stop_gradient(carry)
    encode_rng, readout_rng = (None, None) if rng is None else jax.random.split(rng)
    count = jax.tree.leaves(window.targets)[0].shape[1]

    def weighted_losses(params):
        end, ys, carries = forward(model, params, carry, window, encode_rng)
        scored = jax.tree.map(
            lambda y: jax.lax.dynamic_slice_in_dim(y, window.first, count, axis=1), ys
        )
        outputs = model.readout(params, scored, readout_rng)
        losses = step_losses(loss, outputs, window.targets, window.weights)
        return jnp.sum(losses), (end, carries)

    (total, (end, carries)), grads = jax.value_and_grad(weighted_losses, has_aux=True)(params)
    return WindowValue(total, total_weight(window), end, carries), grads


def step_losses(loss: LossFn, outputs: Any, targets: Any, weights: Array | None) -> jax.Array:
    """weight * loss at every step, [B, N]; a target of weight 0 is not looked at."""
    if weights is not None:
        targets = recurrence.select(weights != 0, targets, jax.tree.map(jnp.zeros_like, targets))
    batch, steps = jax.tree.leaves(targets)[0].shape[:2]
    _check_leading("readout", "one output for every step", outputs, (batch, steps))
    losses = loss(outputs, targets)
    if jnp.shape(losses) != (batch, steps):
        raise ValueError(
            f"loss must return one number for every step, shape {[batch, steps]}, got "
            f"{list(jnp.shape(losses))}; reduce the other axes, for instance "
            "lambda y, t: optax.squared_error(y, t).mean(-1)"
        )
    # Sums over many steps lose too much in 16 bits.
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return losses if weights is None else jnp.where(weights != 0, losses * weights, 0)


def total_weight(window: Window) -> jax.Array:
    """Sum of the weights of a window's losses."""
    if window.weights is None:
        batch, steps = jax.tree.leaves(window.targets)[0].shape[:2]
        return jnp.float32(batch * steps)
    return jnp.sum(window.weights)


def _check_leading(name, meaning, tree, leading):
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.shape(leaf)[: len(leading)] != leading:
            raise ValueError(
                f"{name} must return {meaning}, shape {[*leading, '...']}, got "
                f"{list(jnp.shape(leaf))}{' at ' + jax.tree_util.keystr(path) if path else ''}"
            )
