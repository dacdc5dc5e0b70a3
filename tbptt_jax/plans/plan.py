"""A plan: which loss sends gradient to which step, and by what estimator."""

import functools
from typing import Protocol, runtime_checkable

import numpy as np

from tbptt_jax.arguments import check_count
from tbptt_jax.estimators.estimator import Estimator
from tbptt_jax.plans.placement import Interval, LookbackSize, Placement


@runtime_checkable
class Plan(Protocol):
    """What every function that takes a plan asks of it.

    A plan is a static, hashable value, as a frozen dataclass is: a new one compiles a new program.
    What a scheme remembers from window to window is its estimator's `aux`.
    """

    @property
    def estimator(self) -> Estimator:
        """The gradient of one window."""
        ...

    @property
    def lookback_size(self) -> LookbackSize:
        """How much of a stream is saved between batches."""
        ...

    def intervals(self, length: int) -> list[Interval]:
        """The update clock over `length` steps: intervals in order, that cover all steps."""
        ...

    def placement(self, length: int, stream: bool) -> Placement:
        """A window for each interval of `length` steps.

        Windows of whole sequences, with `stream` False, start at position 0 or later.
        """
        ...

    def credit_matrix(self, length: int) -> np.ndarray:
        """The matrix W, float64 [T, T]; see the function of this name."""
        ...


def check_plan(plan: object) -> None:
    """Raise a TypeError if this is no plan."""
    try:
        is_plan = _is_plan(plan)
    except TypeError:  # it has no hash
        is_plan = False
    if not is_plan:
        found = f"the class {plan.__name__}" if isinstance(plan, type) else type(plan).__name__
        raise TypeError(
            "truncation must be a tbptt_jax.Truncation, or another hashable tbptt_jax.Plan, got "
            f"{found}; write Truncation(k1=30, k2=30)"
        )


@functools.lru_cache(maxsize=64)
def _is_plan(plan: object) -> bool:
    """Whether a value has what a plan has; cached, since it is asked at every step."""
    return isinstance(plan, Plan) and not isinstance(plan, type)


def intervals(truncation: Plan, length: int) -> list[Interval]:
    """The update clock of a plan over `length` steps; the last interval may be short.

    Args:
      truncation: the plan.
      length: number of steps T.

    Returns:
      One `Interval` for each update, in order.

    Raises:
      TypeError: truncation is no plan, or length is not an integer.
      ValueError: length is below 1.

    Examples:
      >>> from tbptt_jax import Truncation
      >>> intervals(Truncation(k1=3, k2=2), length=7)
      [Interval(start=0, end=3, scored=1), Interval(start=3, end=6, scored=4),
       Interval(start=6, end=7, scored=6)]
    """
    check_plan(truncation)
    check_count("intervals", "length", length)
    return truncation.intervals(length)


def credit_matrix(truncation: Plan, length: int) -> np.ndarray:
    """The matrix W of a plan: which loss sends gradient to the parameters of which step.

    Args:
      truncation: the plan.
      length: number of steps T of the sequence.

    Returns:
      float64 [T, T]; entry [t - 1, s - 1] is the weight of the gradient of the loss at step t with
      respect to the parameters as used at step s, 0 for s > t. A row of zeros is a loss that is
      not scored.

    Raises:
      TypeError: truncation is no plan, or length is not an integer.
      ValueError: length is below 1.

    Examples:
      >>> from tbptt_jax import Truncation
      >>> credit_matrix(Truncation(k1=2, k2=3), length=4).astype(int)
      array([[1, 0, 0, 0],
             [1, 1, 0, 0],
             [0, 1, 1, 0],
             [0, 1, 1, 1]])
    """
    check_plan(truncation)
    check_count("credit_matrix", "length", length)
    return truncation.credit_matrix(length)
