"""Whole sequences side by side: padded, by length, at sentences, and where losses count."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tbptt_jax.arguments import check_batch, check_choice, check_count
from tbptt_jax.data.coerce import Sequences, marks_of, per_step, sequences_of, some
from tbptt_jax.types import Batch

Align: TypeAlias = Literal["start", "end"]


def pad(sequences: Sequences, length: int, align: Align = "end") -> tuple[np.ndarray, np.ndarray]:
    """Lay ragged sequences side by side.

    Args:
      sequences: arrays [steps, ...], each at most `length` steps.
      length: T, the steps of the result.
      align: "end" puts the padding first, so that the last steps of all sequences meet in the last
        window; "start" puts it last.

    Returns:
      The sequences [B, T, ...], zero where padded, and the mask, bool [B, T].

    Raises:
      TypeError: sequences hold no numbers, or length is not an integer.
      ValueError: a sequence is empty or longer than `length`, there is none, their features differ
        in shape, or align is neither of the two.

    Examples:
      >>> pad([np.array([1, 2]), np.array([3])], length=3)[0]
      array([[0, 1, 2],
             [0, 0, 3]])
    """
    check_count("pad", "length", length)
    check_choice("pad", "align", align, "start", "end")
    arrays = sequences_of("pad", "sequences", sequences)
    for i, array in enumerate(arrays):
        if len(array) > length:
            raise ValueError(
                f"pad: sequences must have at most length={length} steps, got {len(array)} in "
                f"number {i}; cut or drop it beforehand"
            )
    return pad_arrays(arrays, length, align)


def pad_arrays(
    arrays: list[np.ndarray], length: int, align: Align
) -> tuple[np.ndarray, np.ndarray]:
    """`pad` without its checks."""
    shape = len(arrays), length
    padded = np.zeros(shape + arrays[0].shape[1:], arrays[0].dtype)
    mask = np.zeros(shape, bool)
    for row, exists, array in zip(padded, mask, arrays, strict=True):
        steps = slice(length - len(array), length) if align == "end" else slice(0, len(array))
        row[steps], exists[steps] = array, True
    return padded, mask


def bucketed_batches(
    sequences: Sequences,
    labels: ArrayLike,
    *,
    batch_size: int,
    multiple: int,
    loss_every: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[Batch]:
    """Batches of whole sequences with one label each, of similar length within a batch.

    Sequences are padded at their start to the next multiple of `multiple`, so that there are few
    shapes to compile and all sequences end at the last step. Each sequence is in exactly one batch.
    The last batch is filled up with rows whose mask is False throughout.

    Args:
      sequences: N arrays [steps, ...].
      labels: integers [N].
      batch_size: rows of every batch.
      multiple: the padded lengths are multiples of this.
      loss_every: a loss at the end of every chunk of so many steps, counted from the padded start,
        wherever the chunk's last step exists, and at the last step; None: at the last step only.
      rng: shuffles which sequences of similar length meet, and the order of the batches; None: by
        length, ties in the order of `sequences`.

    Returns:
      The batches; inputs [B, T, ...], targets int32 [B, T] with the label at every step, mask,
      weights float32 [B, T] of 0 and 1, and reset None.

    Raises:
      TypeError: labels or a size are not integers, rng is no Generator, or sequences hold no
        numbers.
      ValueError: sequences and labels differ in number, a size is below 1, or a sequence is empty.
    """
    check_count("bucketed_batches", "batch_size", batch_size)
    check_count("bucketed_batches", "multiple", multiple)
    if loss_every is not None:
        check_count("bucketed_batches", "loss_every", loss_every)
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"bucketed_batches: rng must be an np.random.Generator, got {type(rng).__name__}; use "
            "np.random.default_rng(seed)"
        )
    arrays = sequences_of("bucketed_batches", "sequences", sequences)
    numbers = _labels(labels, len(arrays))
    lengths = np.array([len(array) for array in arrays])
    padded_lengths = -(-lengths // multiple) * multiple
    batches = []
    for group in _groups(lengths, padded_lengths, batch_size, rng):
        length = int(padded_lengths[group].max())
        inputs, mask = pad_arrays([arrays[i] for i in group], length, "end")
        missing = (0, batch_size - len(group))
        inputs = np.pad(inputs, [missing] + [(0, 0)] * (inputs.ndim - 1))
        mask = np.pad(mask, [missing, (0, 0)])
        targets = np.repeat(np.pad(numbers[group], missing)[:, None], length, axis=1)
        weights = _loss_weights(mask, loss_every)
        batches.append(Batch(inputs, targets, mask=mask, weights=weights))
    return batches


def _labels(labels: ArrayLike, count: int) -> np.ndarray:
    """One label for each sequence, int32 [N]."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(
            f"bucketed_batches: labels must be one for each of the sequences, shape {[count]}, got "
            f"{list(array.shape)}"
        )
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"bucketed_batches: labels must be integers, got {array.dtype}; number the classes"
        )
    return array.astype(np.int32)


def _groups(
    lengths: np.ndarray,
    padded_lengths: np.ndarray,
    batch_size: int,
    rng: np.random.Generator | None,
) -> list[np.ndarray]:
    """The numbers of the sequences of each batch."""
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    by = lengths if rng is None else padded_lengths
    order = order[np.argsort(by[order], kind="stable")]
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if rng is not None:
        rng.shuffle(groups)
    return groups


def whole_sequences(
    inputs: Sequences, targets: Sequences, *, multiple: int = 1, align: Align = "end"
) -> Batch:
    """One batch of all sequences as they are, padded to the longest.

    Args:
      inputs: N arrays [steps, ...], or an array [N, T, ...]. Values without features get an
        axis for them by `x[..., None]`; tokens need none.
      targets: N arrays [steps, ...]; or N numbers, labels of whole sequences, which are repeated
        at every step.
      multiple: T, the padded length, is a multiple of this. The steps of a later split, so that
        it has nothing to pad.
      align: "end" puts the padding first, so that all sequences end at the last step; "start"
        puts it last.

    Returns:
      The batch, [N, T, ...]; mask is None if nothing is padded, reset and weights are None.

    Raises:
      TypeError: sequences hold no numbers, or multiple is not an integer.
      ValueError: there is no sequence, one is empty, features differ in shape, targets differ from
        inputs in number or length, multiple is below 1, or align is neither of the two.

    Examples:
      >>> whole_sequences([np.array([1, 2, 3]), np.array([4])], [7, 8])
      Batch(inputs=array([[1, 2, 3], [0, 0, 4]]), targets=array([[7, 7, 7], [0, 0, 8]]),
            mask=array([[ True,  True,  True], [False, False,  True]]), reset=None, weights=None)
    """
    check_count("whole_sequences", "multiple", multiple)
    check_choice("whole_sequences", "align", align, "start", "end")
    xs, ys = per_step("whole_sequences", inputs, targets)
    length = -(-max(len(x) for x in xs) // multiple) * multiple
    padded, mask = pad_arrays(xs, length, align)
    mask = None if mask.all() else mask
    return Batch(padded, pad_arrays(ys, length, align)[0], mask=mask)


def sentence_windows(
    inputs: Sequences,
    targets: Sequences,
    ends: Sequences,
    *,
    steps: int,
    align: Align = "end",
) -> Batch:
    """One batch of all texts, padded between sentences so that each has windows of its own.

    A sentence is padded to `steps`; one that is longer takes several windows. The carry runs on
    through a text, held where it is padded. Train with `Truncation(k1=steps, k2=steps)`, or split
    with `lanes(batch, steps=steps)`. `sentence_steps(ends)` is the average length.

    Args:
      inputs, targets: N texts, as in `whole_sequences`.
      ends: N arrays, bool [steps]: True at the last token of a sentence. What follows the last of
        them is a sentence too.
      steps: steps of a window.
      align: "end" puts a sentence's padding before it, so that it ends where a window ends;
        "start" puts it after.

    Returns:
      The batch, [N, T, ...] with T a multiple of `steps`; mask is None if nothing is padded, reset
      and weights are None.

    Raises:
      TypeError: as in `whole_sequences`, also if ends are not boolean.
      ValueError: as in `whole_sequences`, also if ends differ from inputs or steps is below 1.

    Examples:
      >>> tokens, stop = np.array([5, 6, 9, 7, 9]), 9
      >>> sentence_windows([tokens], [tokens], [tokens == stop], steps=3).inputs
      array([[5, 6, 9, 0, 7, 9]])
    """
    check_count("sentence_windows", "steps", steps)
    check_choice("sentence_windows", "align", align, "start", "end")
    xs, ys = per_step("sentence_windows", inputs, targets)
    marks = marks_of("sentence_windows", "ends", ends)
    if [m.shape for m in marks] != [x.shape[:1] for x in xs]:
        raise ValueError(
            "sentence_windows: ends must hold a bool [steps] for each of the inputs, got shapes "
            f"{some([list(m.shape) for m in marks])} for steps {some([len(x) for x in xs])}"
        )
    slots, lengths = [], []
    for mark in marks:
        first = np.append(0, np.flatnonzero(mark[:-1]) + 1)
        sizes = np.diff(np.append(first, len(mark)))
        rooms = -(-sizes // steps) * steps
        where = np.cumsum(rooms) - (sizes if align == "end" else rooms)
        slots.append(np.repeat(where - first, sizes) + np.arange(len(mark)))
        lengths.append(int(rooms.sum()))

    def place(texts: list[np.ndarray]) -> np.ndarray:
        placed = np.zeros((len(slots), max(lengths), *texts[0].shape[1:]), texts[0].dtype)
        for row, slot, text in zip(placed, slots, texts, strict=True):
            row[slot] = text
        return placed

    mask = place([np.ones(len(m), bool) for m in marks])
    return Batch(place(xs), place(ys), mask=None if mask.all() else mask)


def mark_losses(batch: Batch, *, every: int | None = None) -> Batch:
    """Set the weights: where the losses of a batch count.

    Args:
      batch: [B, T, ...].
      every: None: many-to-one, at the last existing step of each row. A number: also at the steps
        `every`, 2 * `every`, ... where they exist, counted from the first column as the updates
        of `Truncation(k1=every, ...)` are. 1: many-to-many, at every step.

    Returns:
      The batch with weights float32 [B, T] of 0 and 1.

    Raises:
      TypeError: batch is not a Batch of arrays, a field has a wrong dtype, or every is not an
        integer.
      ValueError: every is below 1, or an array does not lead with the inputs' [B, T].

    Examples:
      >>> batch = whole_sequences([np.arange(5), np.arange(3)], [0, 1], align="start")
      >>> mark_losses(batch, every=2).weights
      array([[0., 1., 0., 1., 1.],
             [0., 1., 1., 0., 0.]], dtype=float32)
    """
    shape = check_batch(batch)
    if every is not None:
        check_count("mark_losses", "every", every)
    mask = np.ones(shape, bool) if batch.mask is None else np.asarray(batch.mask)
    return batch._replace(weights=_loss_weights(mask, every))


def _loss_weights(mask: np.ndarray, every: int | None) -> np.ndarray:
    """Weights float32 [B, T] of 0 and 1, as `mark_losses` sets them."""
    rows, length = mask.shape
    weights = np.zeros((rows, length), np.float32)
    if every is not None:
        weights[:, every - 1 :: every] = 1
    weights[np.arange(rows), length - 1 - mask[:, ::-1].argmax(axis=1)] = 1
    return weights * mask
