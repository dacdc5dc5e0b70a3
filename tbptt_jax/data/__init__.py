"""From raw sequences to `Batch`, in NumPy: the ways of preparing them for TBPTT(k1, k2).

- Whole sequences: `whole_sequences`; `bucketed_batches` where lengths differ much.
- Naive split into pieces of a fixed number of steps: `lanes` for training, `naive_split` as a
  layout. One long stream: `batchify`.
- Domain split, where the data say how long a piece is: `sentence_windows` for text; for series a
  naive split by the number that `suggest_steps` finds.
- Systematic split: a naive split by each of `candidate_steps`.
- TBPTT(1, 1): a naive split by 1 step, or `Truncation(1, 1)` on whole sequences: the same updates
  in one call.
- Documents that do not fit into memory, or on one machine: `Stream`, and `spread` for a mesh.
- k1 and k2 chosen separately: the data stay as they are, see `Truncation(k1, k2)`.

All functions keep every step: where a length does not divide, they pad and mask. Set where losses
count with `mark_losses`, before a split. A batch that is split holds arrays [N, T, ...] or
pytrees of them, whole sequences side by side; `Batch(inputs, targets)` makes one by hand.
"""

from tbptt_jax.data.mesh import spread
from tbptt_jax.data.sequences import (
    bucketed_batches,
    mark_losses,
    pad,
    sentence_windows,
    whole_sequences,
)
from tbptt_jax.data.split import batchify, lanes, naive_split
from tbptt_jax.data.stream import Documents, Stream
from tbptt_jax.data.suggest import (
    Candidate,
    Suggestion,
    candidate_steps,
    sentence_steps,
    suggest_steps,
)

__all__ = [
    "Candidate",
    "Documents",
    "Stream",
    "Suggestion",
    "batchify",
    "bucketed_batches",
    "candidate_steps",
    "lanes",
    "mark_losses",
    "naive_split",
    "pad",
    "sentence_steps",
    "sentence_windows",
    "spread",
    "suggest_steps",
    "whole_sequences",
]
