"""Where the windows of a batch lie, and what each keeps for the next to start from."""

from typing import NamedTuple

import numpy as np

from tbptt_jax.credit import Truncation, intervals


def kept_carries(truncation: Truncation) -> int:
    """At how many positions of a window the next one can start.

    With anchor="loss" it always starts where the interval's steps are done, k2 - 1 before the end.
    With anchor="update" that depends on the next interval, which may be short.
    """
    return 1 if truncation.anchor == "loss" else min(truncation.k1, truncation.k2)


class Layout(NamedTuple):
    """Where the windows of a batch lie.

    Attributes:
      table: int32 [windows, 4]; of each window: the position where its interval ends, the position
        where it starts, which kept carry it starts from, and after how many of its steps the
        carries begin that it keeps for the next.
      sizes, spans: of each window: the steps of its interval, and all its steps. All full
        intervals are alike; only the last may be short.
      kept: how many carries a window keeps.
      replays: whether windows start before their intervals.
    """

    table: np.ndarray
    sizes: np.ndarray
    spans: np.ndarray
    kept: int
    replays: bool


def layout(truncation: Truncation, length: int, stream: bool) -> Layout:
    """The windows of `length` steps; those of a stream may start before its first, at position 0.

    A window of an independent sequence that would start there starts at position 0 and is as long
    all the same: what it runs beyond its end is not scored.
    """
    clock = intervals(truncation, length)
    ends = np.array([i.end for i in clock])
    sizes = ends - [i.start for i in clock]
    per_loss = truncation.anchor == "loss"
    spans = sizes + truncation.k2 - 1 if per_loss else np.full_like(sizes, truncation.k2)
    starts = ends - spans
    if not stream:
        spans, starts = np.minimum(spans, length), np.maximum(ends - np.minimum(spans, length), 0)
    if per_loss:
        # The next window starts where the interval's steps are done, counted from the start.
        picks, leaves = np.zeros_like(ends), np.append(np.diff(starts), sizes[-1]) - 1
    else:
        # How far a start lies behind the one before depends on an interval that may be short.
        picks = np.diff(starts, prepend=-truncation.k2 if stream else 0) - 1
        leaves = np.zeros_like(ends)
    # Where an index is below 0 the window begins a sequence, and no kept carry is looked at.
    table = np.stack([ends, starts, np.maximum(picks, 0), np.maximum(leaves, 0)], axis=1)
    replays = bool((sizes < spans).any())
    kept = min(kept_carries(truncation), spans[0]) if stream or replays else 0
    return Layout(table.astype(np.int32), sizes, spans, int(kept), replays)
