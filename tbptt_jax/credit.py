"""Which losses send gradient to which steps: the clock, the windows and the credit matrix."""

import dataclasses
import operator
from typing import NamedTuple

import numpy as np

from tbptt_jax.arguments import check_choice, check_count
from tbptt_jax.types import Anchor


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A truncation plan, TBPTT(k1, k2).

    An update ends at steps k1, 2 k1, ... and at the last step of a batch. The gradient of an
    update that ends at step e takes the losses of the interval I_e since the previous update, and
    sends the loss at step t in I_e back to the steps s with

        e - k2 < s <= t    (anchor="update")
        t - k2 < s <= t    (anchor="loss")

    The first is BPTT(h = k2; h' = k1) of Williams & Peng (1990) and, with every loss counted once,
    TBPTT(k1, k2) of Sutskever (2013, section 2.8.6). k1 = k2 is the loop that detaches the carry
    every k1 steps, k1 = k2 = T is full BPTT, k1 = k2 = 1 is TBPTT(1, 1). With k2 < k1 the first
    k1 - k2 steps of an interval move the carry and are not scored. With k2 > k1 a window begins
    before its interval and is replayed with the current parameters.

    Attributes:
      k1: steps between updates, at least 1.
      k2: steps that the gradient reaches back, at least 1.
      anchor: what k2 is counted from, the end of the update or each loss.
      block: for anchor="loss", how many steps have their adjoints formed at once, at least 1: less
        memory for some more work, and the same gradient (see `per_loss`). None: all of a window.

    Raises:
      TypeError: k1, k2 or block is not an integer.
      ValueError: one of them is below 1, the anchor is not one of the two, or a block is given
        with anchor="update".

    Example:
      >>> Truncation(k1=30, k2=30)
      Truncation(k1=30, k2=30, anchor='update', block=None)
    """

    k1: int
    k2: int
    anchor: Anchor = "update"
    block: int | None = None

    def __post_init__(self):
        for name in ("k1", "k2") if self.block is None else ("k1", "k2", "block"):
            value = getattr(self, name)
            try:
                if isinstance(value, bool | np.bool_):
                    raise TypeError
                # A NumPy integer would make an equal plan with another hash of its type's own.
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise TypeError(
                    f"Truncation: {name} must be an integer number of steps, got {value!r}"
                ) from None
            if value < 1:
                raise ValueError(
                    f"Truncation: {name} must be at least 1 step, got {value}; for full BPTT give "
                    "k1 = k2 = the length of the sequence"
                )
        check_choice("Truncation", "anchor", self.anchor, "update", "loss")
        if self.block is not None and self.anchor != "loss":
            raise ValueError(
                f'Truncation: block goes with anchor="loss", got block={self.block} with '
                f"anchor={self.anchor!r}; leave it out"
            )


def check_plan(truncation: Truncation) -> None:
    """Raise a TypeError if this is no plan."""
    if not isinstance(truncation, Truncation):
        raise TypeError(
            f"truncation must be a tbptt_jax.Truncation, got {type(truncation).__name__}; write "
            "Truncation(k1=30, k2=30)"
        )


class Interval(NamedTuple):
    """One update of the clock: the losses of steps start + 1 .. end, the scored ones from `scored`.

    Positions count finished steps, so a window from position a to b holds the steps a + 1 .. b.

    Attributes:
      start: position of the previous update.
      end: position of this update.
      scored: first position from which losses are scored; after `start` only when k2 < k1.
    """

    start: int
    end: int
    scored: int


def intervals(truncation: Truncation, length: int) -> list[Interval]:
    """The update clock over `length` steps; the last interval may be short.

    >>> intervals(Truncation(k1=3, k2=2), length=7)
    [Interval(start=0, end=3, scored=1), Interval(start=3, end=6, scored=4), \
Interval(start=6, end=7, scored=6)]
    """
    starts = range(0, length, truncation.k1)
    ends = [min(start + truncation.k1, length) for start in starts]
    if truncation.anchor == "loss":
        return [Interval(a, b, a) for a, b in zip(starts, ends, strict=True)]
    return [Interval(a, b, max(a, b - truncation.k2)) for a, b in zip(starts, ends, strict=True)]


def credit_matrix(truncation: Truncation, length: int) -> np.ndarray:
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

    Example:
      >>> credit_matrix(Truncation(k1=2, k2=3), length=4).astype(int)
      array([[1, 0, 0, 0],
             [1, 1, 0, 0],
             [0, 1, 1, 0],
             [0, 1, 1, 1]])
    """
    check_plan(truncation)
    check_count("credit_matrix", "length", length)
    matrix = np.zeros((length, length))
    for interval in intervals(truncation, length):
        for t in range(interval.scored + 1, interval.end + 1):
            anchor = interval.end if truncation.anchor == "update" else t
            matrix[t - 1, max(anchor - truncation.k2, 0) : t] = 1
    return matrix
