"""From raw sequences to `Batch`, in NumPy."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tbptt_jax.types import Batch


def pad(
    sequences: Sequence[np.ndarray], length: int, align: Literal["start", "end"] = "end"
) -> tuple[np.ndarray, np.ndarray]:
    """Lay ragged sequences side by side.

    Args:
      sequences: arrays [steps, ...] of one dtype, each at most `length` steps.
      length: T, the steps of the result.
      align: "end" puts the padding first, so that the last steps of all sequences meet in the last
        window; "start" puts it last.

    Returns:
      The sequences [B, T, ...], zero where padded, and the mask, bool [B, T].

    Raises:
      ValueError: a sequence is empty or longer than `length`, or there is none.

    Example:
      >>> pad([np.array([1, 2]), np.array([3])], length=3)[0]
      array([[0, 1, 2],
             [0, 0, 3]])
    """
    if len(sequences) == 0:
        raise ValueError("pad: sequences must hold at least one sequence, got none")
    shape = len(sequences), length
    padded = np.zeros(shape + sequences[0].shape[1:], sequences[0].dtype)
    mask = np.zeros(shape, bool)
    for i, sequence in enumerate(sequences):
        steps = len(sequence)
        if not 1 <= steps <= length:
            raise ValueError(
                f"pad: sequences must have 1 to length={length} steps, got {steps} in number {i}; "
                "cut, drop or lengthen it beforehand"
            )
        where = slice(length - steps, length) if align == "end" else slice(0, steps)
        padded[i, where] = sequence
        mask[i, where] = True
    return padded, mask


def bucketed_batches(
    sequences: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    batch_size: int,
    multiple: int,
    loss_every: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[Batch]:
    """Batches of whole sequences with one label each, of similar length within a batch.

    Sequences are padded at their start to the next multiple of `multiple`, so that there are few
    shapes to compile and all ends meet at the last step. Each sequence stands in exactly one
    batch. The last batch is filled up with rows whose mask is False throughout.

    Args:
      sequences: N arrays [steps, ...] of one dtype.
      labels: integers [N].
      batch_size: rows of every batch.
      multiple: the padded lengths are multiples of this.
      loss_every: a loss at the end of every chunk of so many steps, counted from the padded start,
        wherever the chunk's last step exists, and at the last step; None: at the last step only.
      rng: shuffles which sequences of similar length meet, and the order of the batches; None: by
        length, ties in the given order.

    Returns:
      The batches; inputs [B, T, ...], targets int32 [B, T] with the label at every step, mask,
      weights float32 [B, T] of 0 and 1, and reset None.

    Raises:
      ValueError: sequences and labels differ in number, a size is below 1, or a sequence is empty.
    """
    labels = np.asarray(labels, np.int32)
    if len(sequences) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"bucketed_batches: labels must be one for each of at least one sequence, got "
            f"{len(labels)} labels for {len(sequences)} sequences"
        )
    for name, size in (("batch_size", batch_size), ("multiple", multiple)):
        if size < 1:
            raise ValueError(f"bucketed_batches: {name} must be at least 1, got {size}")
    if loss_every is not None and loss_every < 1:
        raise ValueError(f"bucketed_batches: loss_every must be at least 1, got {loss_every}")
    lengths = np.array([len(s) for s in sequences])
    padded_lengths = -(-lengths // multiple) * multiple
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    by = lengths if rng is None else padded_lengths
    order = order[np.argsort(by[order], kind="stable")]
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if rng is not None:
        rng.shuffle(groups)

    batches = []
    for group in groups:
        length = int(padded_lengths[group].max())
        shape = batch_size, length
        inputs, mask = pad([sequences[i] for i in group], length)
        missing = [(0, batch_size - len(group))]
        inputs = np.pad(inputs, missing + [(0, 0)] * (inputs.ndim - 1))
        mask = np.pad(mask, [*missing, (0, 0)])
        weights = np.zeros(shape, np.float32)
        if loss_every is not None:
            weights[:, loss_every - 1 :: loss_every] = 1
        weights[:, -1] = 1
        column = np.pad(labels[group], missing)[:, None]
        targets = np.ascontiguousarray(np.broadcast_to(column, shape))
        batches.append(Batch(inputs, targets, mask=mask, weights=weights * mask))
    return batches
