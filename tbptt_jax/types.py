"""What passes between the parts of the library: batches, plans, models, metrics.

Shapes are written with B examples, T steps, and `...` for whatever the model makes of a step.
`Array` stands for a JAX or a NumPy array; `Params`, `Carry` for any pytree of them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = Any
Carry: TypeAlias = Any
LossFn: TypeAlias = Callable[[Any, Any], jax.Array]


class Batch(NamedTuple):
    """Sequences and what is known of their steps.

    Attributes:
      inputs: [B, T, ...], or a pytree of such arrays; what the encoder takes.
      targets: [B, T, ...], or a pytree of such arrays; what the loss takes.
      mask: bool [B, T]; the step exists. Where False the carry is held, the step gives no loss,
        and neither its input nor its target is looked at. None: every step exists.
      reset: bool [B, T]; the carry becomes the initial carry before this step. None: at the first
        step only, which makes the rows whole, independent sequences. A stream that goes on from
        the last batch says so with an array that is False at its first step.
      weights: float [B, T]; the weight of each step's loss. None: equal to `mask`.
    """

    inputs: Any
    targets: Any
    mask: Any = None
    reset: Any = None
    weights: Any = None


class Metrics(NamedTuple):
    """What `train_step` tells of each update of a batch, in order; every field is [updates].

    Attributes:
      loss: weighted mean of the scored losses, before the update; 0 where nothing was scored.
      grad_norm: global L2 norm of the gradient given to the optimizer; 0 where nothing was scored.
      weight: sum of the weights of the scored losses. Average `loss` with it.
      scored: share of the interval's weight that was scored: below 1 when k2 < k1 leaves losses
        out, 1 where there was none to score.
      finite: bool; the loss and the norm of the gradient are finite. Where False, no update was
        made: parameters, optimizer and step count are what they were before it.
    """

    loss: jax.Array
    grad_norm: jax.Array
    weight: jax.Array
    scored: jax.Array
    finite: jax.Array


class Model(NamedTuple):
    """A recurrent network as pure functions over a parameter pytree.

    `functional` makes one of a `SequenceModel`; plain JAX, Haiku, Equinox and Linen users fill it
    in themselves. The functions are compared by identity, so make a Model once and keep it: a new
    one is compiled anew.

    Attributes:
      initialize_carry: `(params, input_shape) -> carry`; `input_shape` is the shape (B, ...) of one
        encoded step, every leaf of the carry is [B, ...]. May depend on the parameters (a learnt
        initial carry).
      encode: `(params, inputs, rng) -> xs`; all steps of a window at once, [B, K, ...] to
        [B, K, ...]. `rng` is a key while training and None otherwise (no dropout).
      step: `(params, carry, x) -> (carry, y)`; one step, x and y [B, ...].
      readout: `(params, ys, rng) -> outputs`; all steps at once, as `encode`.
      unroll: optional, `(params, carry, xs, mask, reset) -> (carry, ys, carries)`; a faster way to
        the numbers that scanning `step` gives (see `recurrence.unroll`).
      vocabulary: optional; the inputs are ids from 0 to below this, and others are refused where
        they can be read (see `values`). JAX itself would fill in NaN or take another id.
    """

    initialize_carry: Callable[[Params, tuple[int, ...]], Carry]
    encode: Callable[[Params, Any, jax.Array | None], Any]
    step: Callable[[Params, Carry, Any], tuple[Carry, Any]]
    readout: Callable[[Params, Any, jax.Array | None], Any]
    unroll: Callable[..., tuple[Carry, Any, Carry]] | None = None
    vocabulary: int | None = None


Anchor: TypeAlias = Literal["update", "loss"]
