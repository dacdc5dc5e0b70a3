"""What a plan says of a batch: its intervals, and where each of its windows lies.

A position counts the steps before it: a window from position a to b holds the steps a + 1 .. b.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """The steps since the previous update, start + 1 .. end; those after `scored` are scored.

    Attributes:
      start: position of the previous update.
      end: position of this update.
      scored: position after which the losses are scored; after `start` where the plan leaves some
        out.
    """

    start: int
    end: int
    scored: int


class WindowPlace(NamedTuple):
    """Where a window lies.

    A window that is longer than its interval starts before it and replays the steps in between.
    One that is shorter starts after it; the first steps of the interval get no credit.

    Attributes:
      interval: the losses that the window scores.
      start: position of the window, 0 or later; below 0 in the steps before a stream's batch.
      span: number of its steps.
      pick: index of the saved carry that it starts from, if it is longer than its interval.
      save: offset of the first carry saved for the next window, in steps from its first.
    """

    interval: Interval
    start: int
    span: int
    pick: int = 0
    save: int = 0


class Placement(NamedTuple):
    """Where the windows of a batch lie.

    Consecutive windows of the same sizes run in one scan: few distinct sizes make small programs.

    Attributes:
      windows: in order.
      saved: number of carries that each window saves for the next.
      warning: text of the warning for a stream in batches of this length; None: no warning.
    """

    windows: list[WindowPlace]
    saved: int = 0
    warning: str | None = None


def replays(windows: Sequence[WindowPlace]) -> bool:
    """Whether some window is longer than its interval."""
    return any(w.span > w.interval.end - w.interval.start for w in windows)


class LookbackSize(NamedTuple):
    """What a stream saves so that the first window of its next batch may start before that batch.

    Attributes:
      steps: number of steps.
      carries: number of carries; as many as a window of a stream saves.
    """

    steps: int
    carries: int
