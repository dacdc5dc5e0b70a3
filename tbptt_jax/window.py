"""One window run forward: its carries, outputs and losses. Plain pytrees, no training state."""

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
      ValueError: the encoder's outputs or the initial carry do not lead with [B, K] and [B], or
        mask or reset are not [B, K].
      TypeError: window is no `Window`, its mask or reset are not boolean, or the core changes the
        structure, shape or dtype of the carry.
    """
    check_window("forward", window)
    return run(model, params, *begin(model, params, carry, window, rng), window)


def check_window(caller: str, window: Window) -> None:
    """Raise unless this is a window whose marks are boolean and belong to its steps.

    Raises:
      TypeError: it is none, or mask or reset are not boolean.
      ValueError: mask or reset are of another shape than [B, K].
    """
    if not isinstance(window, Window):
        raise TypeError(
            f"{caller}: window must be a tbptt_jax.Window, got {type(window).__name__}; write "
            "Window(inputs, targets)"
        )
    shape = jax.tree.leaves(window.inputs)[0].shape[:2]
    for name in ("mask", "reset"):
        array = getattr(window, name)
        if array is not None and (array.dtype != bool or array.shape != shape):
            error = TypeError if array.dtype != bool else ValueError
            raise error(
                f"{caller}: window.{name} must be bool{list(shape)}, got "
                f"{array.dtype}{list(array.shape)}"
            )


def begin(
    model: Model, params: Params, carry: Carry | None, window: Window, rng: jax.Array | None
) -> tuple[Carry, Any]:
    """The carry before a window's first step and its encoded inputs xs [B, K, ...]."""
    inputs = window.inputs
    if window.mask is not None:
        # What stands in padding (an id outside the vocabulary, NaN) must reach no arithmetic.
        inputs = recurrence.select(window.mask, inputs, jax.tree.map(jnp.zeros_like, inputs))
    xs = encode(model, params, inputs, rng)
    if carry is None:
        carry = initial_carry(model, params, recurrence.step_shape(xs))
    elif window.fresh is not None:
        initial = initial_carry(model, params, recurrence.step_shape(xs))
        carry = jax.tree.map(lambda a, b: jnp.where(window.fresh, a, b), initial, carry)
    return carry, xs


def run(
    model: Model, params: Params, carry: Carry, xs: Any, window: Window
) -> tuple[Carry, Any, Carry]:
    """The core alone, over encoded inputs; returns as `forward`."""
    if model.unroll is not None:
        return model.unroll(params, carry, xs, window.mask, window.reset)
    initial = (
        None if window.reset is None else initial_carry(model, params, recurrence.step_shape(xs))
    )

    def step(carry, x):
        return model.step(params, carry, x)

    return recurrence.unroll(step, carry, xs, window.mask, window.reset, initial)


def encode(model: Model, params: Params, inputs: Any, rng: jax.Array | None) -> Any:
    """The encoder's outputs [B, K, ...], checked."""
    xs = model.encode(params, inputs, rng)
    check_encoded(xs, inputs)
    return xs


def check_encoded(xs: Any, inputs: Any) -> None:
    """Raise a ValueError if encoded inputs do not lead with [B, K] as the inputs do."""
    leading = jax.tree.leaves(inputs)[0].shape[:2]
    _check_leading("encode", "one vector for every step", xs, leading)


def initial_carry(model: Model, params: Params, step_shape: Any) -> Carry:
    """The carry that a sequence begins with; `step_shape` is that of one encoded step, (B, ...)."""
    carry = model.initialize_carry(params, step_shape)
    check_initial(carry, step_shape)
    return carry


def check_initial(carry: Carry, step_shape: Any) -> None:
    """Raise a ValueError if an initial carry does not lead with [B] as the steps do."""
    leading = (jax.tree.leaves(step_shape)[0],)
    _check_leading("initialize_carry", "one carry for every example", carry, leading)


def scored_sum(
    model: Model,
    loss: LossFn,
    params: Params,
    ys: Any,
    window: Window,
    rng: jax.Array | None,
) -> jax.Array:
    """Sum of weight * loss, given the core's outputs ys [B, K, ...]."""
    count = jax.tree.leaves(window.targets)[0].shape[1]
    scored = jax.tree.map(
        lambda y: jax.lax.dynamic_slice_in_dim(y, window.first, count, axis=1), ys
    )
    outputs = model.readout(params, scored, rng)
    return jnp.sum(step_losses(loss, outputs, window.targets, window.weights))


def step_losses(loss: LossFn, outputs: Any, targets: Any, weights: Array | None) -> jax.Array:
    """weight * loss at every step, [B, N]; a target of weight 0 is not looked at."""
    if weights is not None:
        targets = recurrence.select(weights != 0, targets, jax.tree.map(jnp.zeros_like, targets))
    check_outputs(outputs, targets)
    batch, steps = jax.tree.leaves(targets)[0].shape[:2]
    losses = loss(outputs, targets)
    check_losses("loss", losses, (batch, steps))
    # Sums over many steps lose too much in 16 bits.
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return losses if weights is None else jnp.where(weights != 0, losses * weights, 0)


def check_outputs(outputs: Any, like: Any) -> None:
    """Raise a ValueError if a model's outputs do not lead with [B, N] as these arrays do."""
    leading = jax.tree.leaves(like)[0].shape[:2]
    _check_leading("readout", "one output for every step", outputs, leading)


def check_losses(name: str, losses: Any, leading: tuple[int, ...]) -> None:
    """Raise a ValueError if what a loss or a metric returns is not [B, N]."""
    if jnp.shape(losses) != leading:
        raise ValueError(
            f"{name} must return one number for every step, shape {list(leading)}, got "
            f"{list(jnp.shape(losses))}; reduce the other axes, for instance "
            "lambda y, t: optax.squared_error(y, t).mean(-1)"
        )


def split_rng(rng: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The keys of a window's encoder and readout."""
    return (None, None) if rng is None else tuple(jax.random.split(rng))


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
