"""What passes between the parts of the library: batches, models, metrics.

Shapes are written with B examples, T steps, and `...` for whatever the model makes of a step.
`Array` stands for a JAX or a NumPy array; `Tree` for any pytree of them, `Params` and `Carry` for
those of a network.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
from flax import nnx

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = Any
Carry: TypeAlias = Any
Tree: TypeAlias = Any
# Outputs [B, T, ...] and targets [B, T, ...] to losses [B, T].
LossFn: TypeAlias = Callable[[Tree, Tree], jax.Array]


class Batch(NamedTuple):
    """Sequences, and marks of their steps.

    Attributes:
      inputs: [B, T, ...], or a pytree of such arrays; what the encoder takes.
      targets: [B, T, ...], or a pytree of such arrays; what the loss takes. Only `predict` does
        without.
      mask: bool [B, T]; the step exists. Where False the carry is held, the step gives no loss,
        and neither its input nor its target is read. None: every step exists.
      reset: bool [B, T]; the carry becomes the initial carry before this step. None: at the first
        step only, which makes the rows whole, independent sequences. A stream resumes from the
        last batch where an array is False at the first step.
      weights: float [B, T]; the weight of each step's loss. None: equal to `mask`. A loss is a
        function of one step's outputs and targets. One that reads other steps would read those of
        weight 0 too, and windows would cut them off: it is refused.
    """

    inputs: Tree
    targets: Tree = None
    # Array | None. Who sets a mark knows that it is no None, which a type checker does not.
    mask: Any = None
    reset: Any = None
    weights: Any = None


def batch_shape(batch: Batch) -> tuple[int, int]:
    """(B, T) of a batch."""
    rows, steps = jax.tree.leaves(batch.inputs)[0].shape[:2]
    return rows, steps


class Metrics(NamedTuple):
    """The numbers of each update of a batch, in order; every field is [updates].

    Attributes:
      loss: weighted mean of the scored losses, before the update; 0 where nothing was scored.
      grad_norm: global L2 norm of the optimizer's gradient; 0 where nothing was scored.
      weight: sum of the weights of the scored losses. Average `loss` with it.
      scored: share of the interval's weight that was scored: below 1 where the plan leaves losses
        out, 1 where there was none to score.
      finite: bool; the mean loss and the gradient are finite. Where False, no update was made:
        parameters, optimizer and step count stayed the same.
    """

    loss: jax.Array
    grad_norm: jax.Array
    weight: jax.Array
    scored: jax.Array
    finite: jax.Array


class Cell(Protocol):
    """A recurrent cell: what a `SequenceModel` takes as its core. flax's nnx cells are such.

    A cell may have a method `unroll(carry, xs, mask, reset) -> (carry, ys, carries)` too, a faster
    way to the numbers of its step; see `Model.unroll`.
    """

    def initialize_carry(self, input_shape: tuple[int, ...], /, rngs: nnx.Rngs) -> Carry:
        """The carry before the first step; `input_shape` is that of one step, (B, ...)."""
        ...

    def __call__(self, carry: Carry, x: Tree, /) -> tuple[Carry, Tree]:
        """One step: x [B, ...] to the new carry and the output, every leaf [B, ...]."""
        ...


class Unroll(Protocol):
    """A core over T steps at once; see `Model.unroll`."""

    def __call__(
        self, params: Params, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None, /
    ) -> tuple[Carry, Tree, Carry]:
        """The last carry, the outputs [B, T, ...], and the carry after every step [T, B, ...]."""
        ...


class Model(NamedTuple):
    """A recurrent network as pure functions over a parameter pytree.

    `functional` makes one of a `SequenceModel`; users of plain JAX, Haiku, Equinox and Linen write
    it themselves. The functions are compared by identity: make a Model once, since a new one
    compiles new programs.

    `encode` and `readout` are functions of one step, though they take many at once: their result
    for a step depends on that step alone, not on other steps and not on its place, since windows
    would cut off other steps. They are tried on the first batch, and refused with a ValueError if
    they mix steps. A function of several steps belongs into `step`, or runs on whole sequences
    before the `Batch` is made.

    Attributes:
      initialize_carry: `(params, input_shape) -> carry`; `input_shape` is the shape (B, ...) of one
        encoded step, every leaf of the carry is [B, ...]. May depend on the parameters (a learnt
        initial carry).
      encode: `(params, inputs, rng) -> xs`; all steps of a window at once, [B, K, ...] to
        [B, K, ...]. `rng` is a key while training and None otherwise (no dropout).
      step: `(params, carry, x) -> (carry, y)`; one step, x and y [B, ...].
      readout: `(params, ys, rng) -> outputs`; all steps at once, as `encode`.
      unroll: optional, `(params, carry, xs, mask, reset) -> (carry, ys, carries)`; a faster way to
        the numbers, and the gradients, that scanning `step` gives. Try yours with `check_unroll`.
        In: `carry` before the first step, leaves [B, ...]; `xs` [B, T, ...]; `mask` and `reset`
        bool [B, T], or None (all steps exist; no step resets). At each step first the reset: where
        True the carry becomes that of `initialize_carry`, on masked steps too. Then the step. Then
        the hold: where `mask` is False the carry is what it was after the reset.
        Out: the carry after the last step; ys [B, T, ...], batch first, free where `mask` is False
        but finite; the carry after every step, time first, leaves [T, B, ...].
      vocabulary: optional; the inputs are ids from 0 to below this, and others are refused where
        they can be read at no cost. JAX itself would fill in NaN or take another id.
      random_step: optional, `(params, carry, x, rng) -> (carry, y)`; `step` with random numbers
        (zoneout, recurrent dropout), run in its place while training, with a key for each step of
        each window. A step that is replayed draws new numbers.
    """

    initialize_carry: Callable[[Params, tuple[int, ...]], Carry]
    encode: Callable[[Params, Tree, jax.Array | None], Tree]
    step: Callable[[Params, Carry, Tree], tuple[Carry, Tree]]
    readout: Callable[[Params, Tree, jax.Array | None], Tree]
    unroll: Unroll | None = None
    vocabulary: int | None = None
    random_step: Callable[[Params, Carry, Tree, jax.Array], tuple[Carry, Tree]] | None = None


Anchor: TypeAlias = Literal["update", "loss"]
