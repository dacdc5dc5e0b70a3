"""What an estimator is: the gradient of one window, and what it remembers until the next."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax

from tbptt_jax.arguments import check_leading
from tbptt_jax.estimators.window import Window, forward, scored_sum, split_rng
from tbptt_jax.types import Array, Carry, LossFn, Model, Params, Tree


class WindowLoss(NamedTuple):
    """The sum of weight * loss of one window, as a function of the parameters.

    Attributes:
      model, loss: of the training.
      carry: carry before the first step, leaves [B, ...], a constant; None: the initial one.
      window: the steps and the targets.
      weights: [B, N], in place of the window's own, not all 0; or one number, above 0, for all.
      rng: key for dropout; None: deterministic.
    """

    model: Model
    loss: LossFn
    carry: Carry | None
    window: Window
    weights: Array | float
    rng: jax.Array | None

    def at(self, params: Params) -> tuple[jax.Array, tuple[Carry, Carry]]:
        """The sum, float []; and the carries after the last step and after every step."""
        encode_rng, readout_rng = split_rng(self.rng)
        end, ys, carries = forward(self.model, params, self.carry, self.window, encode_rng)
        total = scored_sum(
            self.model, self.loss, params, ys, self.window, self.weights, readout_rng
        )
        return total, (end, carries)


class WindowGradient(NamedTuple):
    """A window's losses, carries and gradient.

    Attributes:
      total: float [], sum of weight * loss.
      carry: carry after the last step, leaves [B, ...].
      carries: carry after every step, leaves [K, B, ...].
      grads: estimate of the gradient of `total`, a pytree like the parameters.
      aux: what the next window is estimated with.
    """

    total: jax.Array
    carry: Carry
    carries: Carry
    grads: Params
    aux: Tree


Init: TypeAlias = Callable[[Model, Params, Carry], Tree]
ValueAndGrad: TypeAlias = Callable[[WindowLoss, Params, Tree], WindowGradient]
Advance: TypeAlias = Callable[
    [Model, Params, Carry, Window, jax.Array | None, Tree], tuple[Carry, Carry, Tree]
]


class Estimator(NamedTuple):
    """A way to the gradient of one window.

    Its `aux` travels from window to window, and with a stream from batch to batch; it restarts
    with a new stream. Every leaf leads with the examples, [B, ...], as a carry does: a row that
    is lost to numbers that are not finite restarts with the row of `init`. Make the pytree a type
    of your own (a NamedTuple): another estimator's aux of the same shapes is then no aux of yours.

    Attributes:
      init: `(model, params, carry) -> aux` before the first step, with the initial carry.
      value_and_grad: `(losses, params, aux) -> WindowGradient` of a window that is scored.
      advance: `(model, params, carry, window, rng, aux) -> (carry, carries, aux)`, over steps
        that are not scored: those of an interval before its window, and windows of which no loss
        has a weight.
    """

    init: Init
    value_and_grad: ValueAndGrad
    advance: Advance


def init_aux(estimator: Estimator, model: Model, params: Params, carry: Carry) -> Tree:
    """The aux before the first step.

    Raises:
      ValueError: it does not lead with the examples.
    """
    aux = estimator.init(model, params, carry)
    leading = jax.tree.leaves(carry)[0].shape[:1]
    check_leading("Estimator.init must return", aux, "B", leading, "one row for every example")
    return aux


def no_aux(model: Model, params: Params, carry: Carry) -> tuple[()]:
    """The aux of an estimator that remembers nothing."""
    return ()


def advance(
    model: Model, params: Params, carry: Carry, window: Window, rng: jax.Array | None, aux: Tree
) -> tuple[Carry, Carry, Tree]:
    """`Estimator.advance` of an estimator whose aux does not depend on the steps."""
    end, _, carries = forward(model, params, carry, window, rng)
    return end, carries, aux
