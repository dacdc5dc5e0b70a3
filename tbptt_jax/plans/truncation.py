"""The plan TBPTT(k1, k2): its clock, its windows and its credit matrix."""

import dataclasses

import numpy as np

from tbptt_jax.arguments import check_choice, check_count
from tbptt_jax.estimators import per_loss, reverse
from tbptt_jax.estimators.estimator import Estimator
from tbptt_jax.plans.placement import Interval, LookbackSize, Placement, WindowPlace, replays
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

    Examples:
      >>> Truncation(k1=30, k2=30)
      Truncation(k1=30, k2=30, anchor='update', block=None)
    """

    k1: int
    k2: int
    anchor: Anchor = "update"
    block: int | None = None

    def __post_init__(self):
        for name in ("k1", "k2") if self.block is None else ("k1", "k2", "block"):
            advice = "for full BPTT set k1 = k2 = the length of the sequence"
            if name == "block":
                advice = "leave it out to form the adjoints of all steps at once"
            # A NumPy integer would make an equal plan with another hash of its type's own.
            count = check_count("Truncation", name, getattr(self, name), advice=advice)
            object.__setattr__(self, name, count)
        check_choice("Truncation", "anchor", self.anchor, "update", "loss")
        if self.block is not None and self.anchor != "loss":
            raise ValueError(
                f'Truncation: block goes with anchor="loss", got block={self.block} with '
                f"anchor={self.anchor!r}; leave it out"
            )

    @property
    def estimator(self) -> Estimator:
        """A reverse pass through the window, or a window for each loss."""
        if self.anchor == "loss":
            return per_loss.estimator(self.k2, self.block)
        return reverse.ESTIMATOR

    @property
    def lookback_size(self) -> LookbackSize:
        """k2 - 1 steps, and the carries from which the next window may start.

        With anchor="loss" it starts where the last k2 - 1 steps do. With anchor="update" that
        depends on the next interval, which may be short.
        """
        carries = 1 if self.anchor == "loss" else min(self.k1, self.k2)
        return LookbackSize(self.k2 - 1, carries)

    def intervals(self, length: int) -> list[Interval]:
        """An interval every k1 steps; the last may be short."""
        clock = []
        for start in range(0, length, self.k1):
            end = min(start + self.k1, length)
            scored = start if self.anchor == "loss" else max(start, end - self.k2)
            clock.append(Interval(start, end, scored))
        return clock

    def placement(self, length: int, stream: bool) -> Placement:
        """Windows that end with their intervals; those of a stream may start before its batch.

        A window of a whole sequence that would start before it starts at position 0, with the same
        number of steps: those after its interval are run and not scored.
        """
        clock, per_loss = self.intervals(length), self.anchor == "loss"
        spans = [i.end - i.start + self.k2 - 1 if per_loss else self.k2 for i in clock]
        if not stream:
            spans = [min(span, length) for span in spans]
        starts = [i.end - span for i, span in zip(clock, spans, strict=True)]
        if not stream:
            starts = [max(start, 0) for start in starts]
        # From each start to the next; the next batch continues where the last interval ends.
        before = [-self.k2 if stream else 0, *starts]
        after = [*starts[1:], starts[-1] + clock[-1].end - clock[-1].start]
        windows = []
        for i, interval in enumerate(clock):
            # An index below 0 is that of a window at the start of a sequence, which uses none.
            pick = 0 if per_loss else max(starts[i] - before[i] - 1, 0)
            save = max(after[i] - starts[i] - 1, 0) if per_loss else 0
            windows.append(WindowPlace(interval, starts[i], spans[i], pick, save))
        saved = min(self.lookback_size.carries, spans[0]) if stream or replays(windows) else 0
        return Placement(windows, saved, self._warning(length) if stream else None)

    def _warning(self, length: int) -> str | None:
        """What to say where a short last interval reaches back although the full ones do not."""
        short = length % self.k1
        if self.anchor == "loss" or self.k2 > self.k1 or not 0 < short < self.k2:
            return None
        return (
            f"the last interval of T={length} steps has {short} of k1={self.k1}: its window "
            f"reaches back k2={self.k2} steps all the same, into what came before. Make T a "
            "multiple of k1 if the gradient is to end where an update does"
        )

    def credit_matrix(self, length: int) -> np.ndarray:
        """W[t, s] = 1 where the loss at step t sends gradient to step s."""
        matrix = np.zeros((length, length))
        for interval in self.intervals(length):
            for t in range(interval.scored + 1, interval.end + 1):
                anchor = interval.end if self.anchor == "update" else t
                matrix[t - 1, max(anchor - self.k2, 0) : t] = 1
        return matrix
