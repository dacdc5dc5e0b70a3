"""One window run forward: its carries, outputs and losses. Takes pytrees, no training state."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tbptt_jax.arguments import check_boolean, check_leading
from tbptt_jax.axes import automatic
from tbptt_jax.cells import scan
from tbptt_jax.sums import masked_weights, wide, widest
from tbptt_jax.types import Array, Carry, LossFn, Model, Params, Tree

_OF_THE_CORE = 0x636F7265  # folded into a window's key, for one that differs from the encoder's
# The shape of one encoded step, (B, ...), or a pytree of them.
Shape: TypeAlias = Tree


class Window(NamedTuple):
    """Steps that receive credit, and the losses that give it.

    The losses cover N of the window's K steps, so that a window may reach further back than its
    losses do.

    Attributes:
      inputs: [B, K, ...], or a pytree of such arrays.
      targets: [B, N, ...], or a pytree of such arrays.
      weights: float [B, N], the weight of each loss. None: equal to the mask of its step.
      mask: bool [B, K]; the step exists. Where False the carry is held and the loss has no weight.
        None: every step exists.
      reset: bool [B, K]; the carry becomes the initial carry before the step. None: only where the
        sequence begins, which is at the first step if no carry comes in.
      first: which of the K steps the first loss belongs to; may be traced.
      fresh: bool [], may be traced; where True the sequence begins with this window, as with a
        carry of None. None: False, at no cost.
    """

    inputs: Tree
    targets: Tree
    weights: Array | None = None
    mask: Array | None = None
    reset: Array | None = None
    first: Array | int = 0
    fresh: Array | None = None


class WindowValue(NamedTuple):
    """What a window returns with its gradient.

    Attributes:
      loss: float [], sum of weight * loss; float32 at least.
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
) -> tuple[Carry, Tree, Carry]:
    """Run a window's steps without losses; its targets and weights are ignored.

    Args:
      model, params, window: as in `window_value_and_grad`.
      carry: carry before the first step; None: the initial carry, since a sequence begins here.
      rng: key for random numbers in the encoder and the core; None: deterministic.

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
    return _forward(model, params, carry, window, rng)


@automatic
def _forward(
    model: Model, params: Params, carry: Carry | None, window: Window, rng: jax.Array | None
) -> tuple[Carry, Tree, Carry]:
    model = drawing(model, rng)
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
    for name, mark in (("window.mask", window.mask), ("window.reset", window.reset)):
        if mark is not None:
            check_boolean(caller, name, mark)
            check_leading(
                f"{caller}: {name} must have", mark, "B, K", shape, "like its inputs", exact=True
            )


def drawing(model: Model, rng: jax.Array | None) -> Model:
    """A model whose core draws random numbers, as one that does not: each step has its own key.

    The encoded inputs become pairs, with the number of each step in the window.
    """
    random_step = model.random_step
    if rng is None or random_step is None:
        return model
    key = jax.random.fold_in(rng, _OF_THE_CORE)

    def encode(params: Params, inputs: Tree, rng: jax.Array | None) -> tuple[Tree, jax.Array]:
        shape = jax.tree.leaves(inputs)[0].shape[:2]
        numbers = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return model.encode(params, inputs, rng), numbers

    def step(params: Params, carry: Carry, inputs: tuple[Tree, jax.Array]) -> tuple[Carry, Tree]:
        x, numbers = inputs
        # The number of the rows that exist: a masked row holds that of an earlier step.
        return random_step(params, carry, x, jax.random.fold_in(key, jnp.max(numbers)))

    def initialize_carry(params: Params, step_shape: tuple[Shape, Shape]) -> Carry:
        return model.initialize_carry(params, step_shape[0])

    return model._replace(
        initialize_carry=initialize_carry, encode=encode, step=step, unroll=None, random_step=None
    )


def begin(
    model: Model, params: Params, carry: Carry | None, window: Window, rng: jax.Array | None
) -> tuple[Carry, Tree]:
    """The carry before a window's first step and its encoded inputs xs [B, K, ...]."""
    inputs = window.inputs
    if window.mask is not None:
        # Values in padding (an id outside the vocabulary, NaN) must reach no arithmetic.
        inputs = scan.substitute(window.mask, inputs)
    xs = encode(model, params, inputs, rng)
    if carry is None:
        carry = initial_carry(model, params, scan.step_shape(xs))
    elif (fresh := window.fresh) is not None:
        initial = initial_carry(model, params, scan.step_shape(xs))
        carry = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), initial, carry)
    return carry, xs


def run(
    model: Model, params: Params, carry: Carry, xs: Tree, window: Window
) -> tuple[Carry, Tree, Carry]:
    """The core alone, over encoded inputs; returns as `forward`."""
    if model.unroll is not None:
        return model.unroll(params, carry, xs, window.mask, window.reset)
    initial = None if window.reset is None else initial_carry(model, params, scan.step_shape(xs))

    def step(carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        return model.step(params, carry, x)

    return scan.unroll_existing(step, carry, xs, window.mask, window.reset, initial)


def encode(model: Model, params: Params, inputs: Tree, rng: jax.Array | None) -> Tree:
    """The encoder's outputs [B, K, ...], checked."""
    xs = model.encode(params, inputs, rng)
    check_encoded(xs, inputs)
    return xs


def check_encoded(xs: Tree, inputs: Tree) -> None:
    """Raise a ValueError if encoded inputs do not lead with [B, K] as the inputs do."""
    leading = jax.tree.leaves(inputs)[0].shape[:2]
    check_leading("encode must return", xs, "B, K", leading, "one vector for every step")


def initial_carry(model: Model, params: Params, step_shape: Shape) -> Carry:
    """The carry before the first step of a sequence, for encoded steps of this shape."""
    carry = model.initialize_carry(params, step_shape)
    check_initial(carry, step_shape)
    return carry


def check_initial(carry: Carry, step_shape: Shape) -> None:
    """Raise a ValueError if an initial carry does not lead with [B] as the steps do."""
    leading = (jax.tree.leaves(step_shape)[0],)
    check_leading(
        "initialize_carry must return", carry, "B", leading, "one carry for every example"
    )


def loss_weights(window: Window) -> Array | None:
    """The weights of a window's losses, [B, N], float32 at least; None: 1 each."""
    mask = None if window.mask is None else _scored(window, window.mask)
    return masked_weights(window.weights, mask)


def _scored(window: Window, arrays: Tree) -> Tree:
    """Arrays [B, K, ...] at the steps that the losses belong to, [B, N, ...]."""
    count = jax.tree.leaves(window.targets)[0].shape[1]
    return jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, window.first, count, axis=1), arrays
    )


def scored_sum(
    model: Model,
    loss: LossFn,
    params: Params,
    ys: Tree,
    window: Window,
    weights: Array | float,
    rng: jax.Array | None,
) -> jax.Array:
    """Sum of weight * loss, from the core's outputs ys [B, K, ...].

    Args:
      weights: [B, N], in place of the window's own; or one number, above 0, for all.
    """
    scored = _scored(window, ys)
    if not isinstance(weights, int | float):
        scored = scan.substitute(weights != 0, scored)
    outputs = model.readout(params, scored, rng)
    return jnp.sum(step_losses(loss, outputs, window.targets, weights))


def step_losses(
    loss: LossFn, outputs: Tree, targets: Tree, weights: Array | float, name: str = "loss"
) -> jax.Array:
    """weight * loss at every step, [B, N], float32 at least; `weights` as in `scored_sum`.

    At a step of weight 0 the loss is computed on the output and the target of a step that has a
    weight, so that neither its value nor its derivative there can matter. Errors call the function
    `name`.
    """
    if not isinstance(weights, int | float):
        outputs, targets = scan.substitute(weights != 0, (outputs, targets))
    check_outputs(outputs, targets)
    batch, steps = jax.tree.leaves(targets)[0].shape[:2]
    losses = loss(outputs, targets)
    check_losses(name, losses, (batch, steps))
    losses = losses.astype(wide(losses.dtype))
    if isinstance(weights, int | float):
        return losses * weights
    dtype = widest(losses.dtype, weights.dtype)
    return jnp.where(weights != 0, losses.astype(dtype) * weights.astype(dtype), 0)


def check_outputs(outputs: Tree, like: Tree) -> None:
    """Raise a ValueError if a model's outputs do not lead with [B, N] as these arrays do."""
    leading = jax.tree.leaves(like)[0].shape[:2]
    check_leading("readout must return", outputs, "B, N", leading, "one output for every step")


def check_losses(name: str, losses: Tree, leading: tuple[int, ...]) -> None:
    """Raise unless a loss or a metric returned one real number for every step, [B, N].

    Raises:
      TypeError: it is no array, or not floating point.
      ValueError: it has another shape.
    """
    if not hasattr(losses, "shape"):
        raise TypeError(
            f"{name} must return one array, shape {list(leading)}, got {type(losses).__name__}; "
            "return the losses alone"
        )
    claim, meaning = f"{name} must return", "one number for every step"
    advice = "reduce the other axes, for instance lambda y, t: optax.squared_error(y, t).mean(-1)"
    check_leading(claim, losses, "B, N", leading, meaning, exact=True, advice=advice)
    if name == "loss" and not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(
            f"loss must be floating point, got {losses.dtype}, which has no gradient; a count of "
            "errors is a metric of evaluate"
        )


def split_rng(rng: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The keys of a window's encoder and readout."""
    return (None, None) if rng is None else tuple(jax.random.split(rng))


def total_weight(weights: Array | None, targets: Tree) -> jax.Array:
    """Sum of the weights of all losses; arguments as `loss_weights` returns them."""
    if weights is None:
        batch, steps = jax.tree.leaves(targets)[0].shape[:2]
        return jnp.asarray(batch * steps, jnp.result_type(float))
    return jnp.sum(weights)
