"""Sequences and streams cut into pieces of so many steps, none dropped."""

import jax
import numpy as np
from numpy.typing import ArrayLike

from tbptt_jax.arguments import check_batch, check_count
from tbptt_jax.data.coerce import array_of
from tbptt_jax.data.sequences import pad_arrays, whole_sequences
from tbptt_jax.types import Array, Batch


def lanes(batch: Batch, *, steps: int) -> list[Batch]:
    """Cut the rows of a batch into pieces: batch i holds piece i of every sequence.

    This is what `train_step` takes: each sequence keeps its row, and the carry of a row runs from
    one batch to the next. Train on all of them, in order, before you start other sequences. With
    k1 = steps the result is that of one `train_step` on the whole batch, padded to whole pieces.

    Args:
      batch: N sequences of T steps.
      steps: steps of each piece. If it does not divide T the last piece is padded at its end.

    Returns:
      ceil(T / steps) batches [N, steps, ...], all with a reset; with a mask if the batch has one
      or anything is padded. The reset of the batch is cut as its other arrays are; if it is None,
      the first step of the first batch is True, and no other.

    Raises:
      TypeError: batch is not a Batch of arrays, steps is not an integer, or a field of the batch
        has a wrong dtype.
      ValueError: steps is below 1, or an array does not lead with the inputs' [N, T].

    Examples:
      >>> series = np.zeros((100, 50_000, 1), np.float32)
      >>> pieces = lanes(Batch(series, series), steps=500)
      >>> len(pieces), pieces[0].inputs.shape, pieces[0].reset.sum(), pieces[1].reset.sum()
      (100, (100, 500, 1), np.int64(100), np.int64(0))
    """
    batch = _divisible("lanes", batch, steps)

    def piece(start: int) -> Batch:
        return jax.tree.map(lambda x: x[:, start : start + steps], batch)

    return [piece(start) for start in range(0, batch.reset.shape[1], steps)]


def naive_split(batch: Batch, *, steps: int) -> Batch:
    """Cut the rows of a batch into pieces, one row each: all of a sequence, then the next one's.

    Rows of a batch run side by side: in one call of `train_step` no carry passes from a piece to
    the next. Train on one row at a time, in order: `reset` lets the carry run through the pieces of
    a sequence and restarts it at the next. `lanes` returns the same pieces for training on N
    sequences at once.

    Args:
      batch: N sequences of T steps; its reset is None, or True at the first step of each row.
      steps: steps of each piece. If it does not divide T the last piece is padded at its end.

    Returns:
      The batch [N * ceil(T / steps), steps, ...] with a reset: True at the first step of a
      sequence's first piece. It has a mask if the batch has one or anything is padded.

    Raises:
      TypeError, ValueError: as in `lanes`; ValueError also where steps come before the first
        reset of a row.

    Examples:
      >>> split = naive_split(Batch(np.zeros((2, 5)), np.zeros((2, 5))), steps=3)
      >>> split.reset[:, 0], split.mask[:, 2]
      (array([ True, False,  True, False]), array([ True, False,  True, False]))
      >>> rows = [jax.tree.map(lambda x: x[i : i + 1], split) for i in range(4)]
    """
    batch = _divisible("naive_split", batch, steps)
    started = np.logical_or.accumulate(batch.reset, axis=1)
    early = ~started if batch.mask is None else ~started & batch.mask
    if early.any():
        raise ValueError(
            "naive_split: batch must have reset True at the first step of every row, or None, got "
            f"False in row {int(early.any(axis=1).argmax())}, which would start from the carry of "
            "the row before; to continue a stream use lanes"
        )
    return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[2:]), batch)


def batchify(
    inputs: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    batch_size: int,
    steps: int,
    reset: ArrayLike | None = None,
) -> list[Batch]:
    """Lay one long stream into lanes, as for a language model, and cut them into batches.

    Lane i is the i-th part of the stream. The parts differ by one step at most; shorter ones are
    padded at their end, as in `lanes`.

    Args:
      inputs: [N, ...], the stream.
      targets: [N, ...]; None: the next step's input, which the last step lacks: N - 1 steps.
      batch_size: B, the number of lanes.
      steps: T of each batch.
      reset: bool [N], True at the first step of a document. None: lanes are reset at their first
        step, and nowhere else. If targets are None, the target of the last step of a document is
        the first step of the next.

    Returns:
      Batches [B, T, ...] as of `lanes`, ceil(ceil(M / B) / T) of them for M steps with a target.

    Raises:
      TypeError: a size is not an integer, reset is not bool [N], or an array holds no numbers.
      ValueError: a size is below 1, targets or reset are of another length than inputs, or there
        are fewer steps than lanes.

    Examples:
      >>> first, last = batchify(np.arange(11), batch_size=2, steps=3)
      >>> first.inputs
      array([[0, 1, 2],
             [5, 6, 7]])
      >>> last.inputs
      array([[3, 4, 0],
             [8, 9, 0]])
    """
    for name, size in (("batch_size", batch_size), ("steps", steps)):
        check_count("batchify", name, size)
    arguments = {"inputs": inputs, "targets": targets, "reset": reset}
    fields = {n: array_of("batchify", n, x) for n, x in arguments.items() if x is not None}
    for name, x in fields.items():
        if x.ndim == 0:
            raise ValueError(f"batchify: {name} must have the shape [N, ...], got []")
        if len(x) != len(fields["inputs"]):
            ahead = "; to look h steps ahead pass inputs[:-h] and targets[h:]"
            raise ValueError(
                f"batchify: {name} must have as many steps as inputs, {len(fields['inputs'])}, got "
                f"{len(x)}{ahead if name == 'targets' else ''}"
            )
    if reset is not None and (fields["reset"].dtype != bool or fields["reset"].ndim != 1):
        raise TypeError(
            "batchify: reset must be bool [N], True at the first step of each document, got "
            f"{fields['reset'].dtype}{list(fields['reset'].shape)}"
        )
    stream = fields.pop("inputs")
    if targets is None:
        fields = {name: x[:-1] for name, x in fields.items()} | {"targets": stream[1:]}
        stream = stream[:-1]
    if len(stream) < batch_size:
        raise ValueError(
            f"batchify: inputs must have a step for each of batch_size={batch_size} lanes, got "
            f"{len(stream)} steps with a target; use fewer lanes"
        )
    parts = {name: np.array_split(x, batch_size) for name, x in fields.items()}
    batch = whole_sequences(np.array_split(stream, batch_size), parts["targets"], align="start")
    if reset is not None:
        marks, _ = pad_arrays(parts["reset"], batch.inputs.shape[1], "start")
        marks[:, 0] = True
        batch = batch._replace(reset=marks)
    return lanes(batch, steps=steps)


def _divisible(caller: str, batch: Batch, steps: int) -> Batch:
    """The batch in NumPy, with a reset, padded at the end to a multiple of `steps`."""
    check_count(caller, "steps", steps)
    rows, length = check_batch(batch)
    missing = -length % steps
    mask, reset = batch.mask, batch.reset
    if missing and mask is None:
        mask = np.ones((rows, length), bool)
    if reset is None:
        reset = np.zeros((rows, length), bool)
        reset[:, 0] = True

    def longer(x: Array) -> np.ndarray:
        x = np.asarray(x)
        return np.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x

    return jax.tree.map(longer, batch._replace(mask=mask, reset=reset))
