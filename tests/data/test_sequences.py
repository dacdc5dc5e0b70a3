"""From sequences to batches: every step once, in order, with its target and its losses."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_jax as tbptt
from tbptt_jax import Batch, Truncation
from tbptt_jax.arguments import check_batch
from tbptt_jax.data import (
    batchify,
    bucketed_batches,
    lanes,
    mark_losses,
    naive_split,
    pad,
    sentence_windows,
    whole_sequences,
)
from tests.networks import CLASSES, FEATURES, make_state


@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=17),
    batch_size=st.integers(1, 6),
    multiple=st.integers(1, 9),
    loss_every=st.none() | st.integers(1, 9),
    seed=st.none() | st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_each_sequence_is_in_one_batch_whole_with_its_label_and_losses(
    lengths, batch_size, multiple, loss_every, seed
):
    # Every token is unique, so that a row says which sequence it is.
    starts = np.cumsum([0, *lengths])
    sequences = [np.arange(a, b) + 1 for a, b in itertools.pairwise(starts)]
    labels = np.arange(len(lengths)) % 3
    rng = None if seed is None else np.random.default_rng(seed)
    batches = bucketed_batches(
        sequences,
        labels,
        batch_size=batch_size,
        multiple=multiple,
        loss_every=loss_every,
        rng=rng,
    )
    seen = []
    for batch in batches:
        rows, length = batch.inputs.shape
        assert rows == batch_size
        assert length % multiple == 0
        assert length - multiple < batch.mask.sum(1).max() <= length
        for tokens, mask, targets, weights in zip(
            batch.inputs, batch.mask, batch.targets, batch.weights, strict=True
        ):
            if not mask.any():
                assert not weights.any()
                continue
            number = int(np.searchsorted(starts, tokens[-1])) - 1
            seen.append(number)
            np.testing.assert_array_equal(tokens[mask], sequences[number])
            assert mask[length - lengths[number] :].all()
            assert (targets == labels[number]).all()
            positions = np.arange(1, length + 1)
            at = positions == length
            if loss_every is not None:
                at |= positions % loss_every == 0
            np.testing.assert_array_equal(weights, at & mask)
    assert sorted(seen) == list(range(len(lengths)))


def test_batches_hold_similar_lengths_and_shuffling_depends_on_the_rng_alone():
    rng = np.random.default_rng(0)
    sequences = [np.ones(n, np.int32) for n in rng.integers(1, 100, 200)]
    labels = np.arange(200)

    def make(seed):
        return bucketed_batches(
            sequences, labels, batch_size=8, multiple=10, rng=np.random.default_rng(seed)
        )

    padding = 1 - np.mean(np.concatenate([b.mask.ravel() for b in make(0)]))
    assert padding < 0.2  # 0.5 if the lengths were mixed
    first, again, other = (
        np.concatenate([b.targets[:, -1] for b in make(seed)]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_batches_without_an_rng_are_in_the_order_of_lengths():
    """Not of padded lengths, of which there are two: 4 and 8; ties stay in the given order."""
    lengths = [4, 3, 7, 5, 3]
    batches = bucketed_batches(
        [np.arange(n) for n in lengths], np.arange(5), batch_size=2, multiple=4
    )
    assert [b.targets[:, -1].tolist() for b in batches] == [[1, 4], [0, 3], [2, 0]]
    assert [b.mask.sum(1).tolist() for b in batches] == [[3, 3], [4, 5], [7, 0]]


def test_pad_at_the_start_or_the_end():
    sequences = [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])]
    array, mask = pad(sequences, 3, align="end")
    np.testing.assert_array_equal(array[0], [[0, 0], [0, 0], [1, 2]])
    np.testing.assert_array_equal(mask, [[False, False, True], [False, True, True]])
    array, mask = pad(sequences, 3, align="start")
    np.testing.assert_array_equal(array[1], [[3, 4], [5, 6], [0, 0]])
    np.testing.assert_array_equal(mask, [[True, False, False], [True, True, False]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pad([], 3), "sequences must hold at least one"),
        (lambda: pad([np.arange(4)], 3), "length=3 .* got 4 in number 0"),
        (lambda: pad([np.arange(2), np.arange(0)], 3), r"got shape \[0\] in number 1"),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(2), batch_size=1, multiple=1),
            r"shape \[1\], got \[2\]",
        ),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(1), batch_size=0, multiple=1),
            "batch_size must .* got 0",
        ),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(1), batch_size=1, multiple=0),
            "multiple must .* got 0",
        ),
        (
            lambda: bucketed_batches(
                [np.arange(2)], np.arange(1), batch_size=1, multiple=1, loss_every=0
            ),
            "loss_every must .* got 0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Preparing sequences for TBPTT: the usual shapes, in the usual order.


def first_step_only(rows, length):
    reset = np.zeros((rows, length), bool)
    reset[:, 0] = True
    return reset


def test_as_is():
    series = np.arange(100 * 25.0).reshape(100, 25, 1)
    batch = whole_sequences(series, 2 * series)
    assert batch.inputs.shape == (100, 25, 1)
    np.testing.assert_array_equal(batch.inputs, series)
    np.testing.assert_array_equal(batch.targets, 2 * series)
    assert batch.mask is batch.reset is batch.weights is None


def test_naive_split():
    series = np.arange(100 * 50_000).reshape(100, 50_000, 1)
    split = naive_split(Batch(series, series), steps=500)
    assert split.inputs.shape == (10_000, 500, 1)
    np.testing.assert_array_equal(split.inputs.ravel(), series.ravel())
    np.testing.assert_array_equal(np.flatnonzero(split.reset), np.arange(0, series.size, 50_000))
    pieces = lanes(Batch(series, series), steps=500)
    assert [piece.inputs.shape for piece in pieces] == [(100, 500, 1)] * 100
    np.testing.assert_array_equal(np.concatenate([p.inputs for p in pieces], axis=1), series)
    np.testing.assert_array_equal(pieces[0].reset, first_step_only(100, 500))
    assert not any(piece.reset.any() for piece in pieces[1:])
    # Nothing is padded, and no mask costs nothing.
    assert split.mask is pieces[0].mask is None


def test_one_step():
    series = np.arange(100 * 50).reshape(100, 50, 1)
    split = naive_split(Batch(series, series), steps=1)
    assert split.inputs.shape == (5_000, 1, 1)
    np.testing.assert_array_equal(split.inputs.ravel(), series.ravel())
    np.testing.assert_array_equal(np.flatnonzero(split.reset), np.arange(0, 5_000, 50))
    pieces = lanes(Batch(series, series), steps=1)
    assert [piece.inputs.shape for piece in pieces] == [(100, 1, 1)] * 50
    assert [piece.reset.all() for piece in pieces] == [True] + 49 * [False]
    assert not pieces[1].reset.any()


def test_a_length_that_does_not_divide_is_padded_and_masked():
    series = np.arange(2 * 7).reshape(2, 7) + 1
    batch = Batch(series, -series, weights=np.full((2, 7), 0.5, np.float32))
    split = naive_split(batch, steps=3)
    np.testing.assert_array_equal(split.inputs[2:4], [[7, 0, 0], [8, 9, 10]])
    np.testing.assert_array_equal(split.mask[2:4], [[True, False, False], [True] * 3])
    np.testing.assert_array_equal(split.weights[2:4], [[0.5, 0, 0], [0.5] * 3])
    last = lanes(batch, steps=3)[-1]
    np.testing.assert_array_equal(last.targets, [[-7, 0, 0], [-14, 0, 0]])
    np.testing.assert_array_equal(last.mask, [[True, False, False]] * 2)
    # With the padding before the sequences, the last piece is full.
    last = lanes(whole_sequences(series, -series, multiple=3), steps=3)[-1]
    np.testing.assert_array_equal(last.inputs, series[:, 4:])


# Every step once, with its target, in the order of the carry.


def unique_sequences(lengths):
    """Sequences whose steps are all different, and targets that tell the step, too."""
    starts = np.cumsum([0, *lengths])
    inputs = [np.arange(a, b) + 1 for a, b in itertools.pairwise(starts)]
    return inputs, [-x for x in inputs]


def pairs(inputs, targets):
    return list(zip(inputs.tolist(), targets.tolist(), strict=True))


def one_by_one(batch):
    """The rows of a batch, in order, as batches of one row."""

    def row(i):
        return jax.tree.map(lambda x: x[i : i + 1], batch)

    return [row(i) for i in range(len(batch.inputs))]


def follow(batches):
    """For each row, from batch to batch, the (input, target) that exist, from reset to reset."""
    rows = [[[]] for _ in batches[0].inputs]
    for batch in batches:
        check_batch(batch)
        shape = batch.inputs.shape
        reset = first_step_only(*shape) if batch.reset is None else batch.reset
        mask = np.ones(shape, bool) if batch.mask is None else batch.mask
        fields = batch.inputs.tolist(), batch.targets.tolist(), mask, reset
        for row, *steps in zip(rows, *fields, strict=True):
            for x, y, exists, begins in zip(*steps, strict=True):
                if begins:
                    row.append([])
                if exists:
                    row[-1].append((x, y))
    return [[sequence for sequence in row if sequence] for row in rows]


ragged = st.lists(st.integers(1, 17), min_size=1, max_size=6)
aligns = st.sampled_from(["start", "end"])


@given(lengths=ragged, multiple=st.integers(1, 5), steps=st.integers(1, 19), align=aligns)
@settings(max_examples=60, deadline=None)
def test_pieces_hold_every_step_of_ragged_sequences(lengths, multiple, steps, align):
    inputs, targets = unique_sequences(lengths)
    sequences = [pairs(x, y) for x, y in zip(inputs, targets, strict=True)]
    batch = whole_sequences(inputs, targets, multiple=multiple, align=align)
    length = -(-max(lengths) // multiple) * multiple
    assert batch.inputs.shape == (len(lengths), length)
    pieces = lanes(batch, steps=steps)
    assert len(pieces) == -(-length // steps)
    split = naive_split(batch, steps=steps)
    assert split.inputs.shape == (len(lengths) * len(pieces), steps)
    assert follow([batch]) == follow(pieces) == [[s] for s in sequences]
    assert follow(one_by_one(split)) == [sequences]


@given(
    length=st.integers(2, 60),
    batch_size=st.integers(1, 7),
    steps=st.integers(1, 9),
    with_targets=st.booleans(),
    begins=st.none() | st.sets(st.integers(0, 59)),
)
@settings(max_examples=80, deadline=None)
def test_a_stream_runs_through_its_lanes(length, batch_size, steps, with_targets, begins):
    stream = np.arange(length)
    used = length if with_targets else length - 1
    targets = stream * 10 if with_targets else None
    batch_size = min(batch_size, used)
    reset = None if begins is None else np.isin(stream, list(begins))
    batches = batchify(stream, targets, batch_size=batch_size, steps=steps, reset=reset)
    assert [b.inputs.shape for b in batches] == [(batch_size, steps)] * len(batches)
    assert len(batches) == math.ceil(math.ceil(used / batch_size) / steps)
    assert batches[0].reset[:, 0].all()
    rows = follow(batches)
    sizes = [sum(map(len, row)) for row in rows]
    assert max(sizes) - min(sizes) <= 1
    parts = list(itertools.chain(*rows))
    expected = stream * 10 if with_targets else stream + 1
    assert list(itertools.chain(*parts)) == pairs(stream[:used], expected[:used])
    # The carry restarts where a lane and where a document begins, and nowhere else.
    lane_starts = np.cumsum([0, *sizes[:-1]]).tolist()
    documents = [i for i in begins or () if i < used]
    assert [part[0][0] for part in parts] == sorted({*lane_starts, *documents})


@given(
    texts=st.lists(st.lists(st.booleans(), min_size=1, max_size=17), min_size=1, max_size=5),
    steps=st.integers(1, 6),
    align=aligns,
)
@settings(max_examples=80, deadline=None)
def test_sentences_have_windows_of_their_own(texts, steps, align):
    inputs, targets = unique_sequences([len(text) for text in texts])
    batch = sentence_windows(inputs, targets, texts, steps=steps, align=align)
    assert follow([batch]) == [[pairs(x, y)] for x, y in zip(inputs, targets, strict=True)]
    layouts = []
    for text, tokens in zip(texts, inputs, strict=True):
        layouts.append([])
        sentence = []
        for end, token in zip([*text[:-1], True], tokens.tolist(), strict=True):
            sentence.append(token)
            if end:
                padding = [0] * (-len(sentence) % steps)
                layouts[-1] += sentence + padding if align == "start" else padding + sentence
                sentence = []
    longest = max(map(len, layouts))
    np.testing.assert_array_equal(batch.inputs, [x + [0] * (longest - len(x)) for x in layouts])


def test_the_carry_runs_through_the_pieces():
    """As `train_step` and `evaluate` run them, pieces are what the whole sequences are."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, FEATURES)) for n in (8, 5)]
    targets = [rng.integers(0, CLASSES, n) for n in (8, 5)]
    whole = mark_losses(whole_sequences(inputs, targets, multiple=3), every=3)
    state = make_state()
    expected = tbptt.evaluate(state, whole)
    assert expected["weight"] == 5
    for pieces in (lanes(whole, steps=3), one_by_one(naive_split(whole, steps=3))):
        assert tbptt.evaluate(state, pieces) == pytest.approx(expected, rel=1e-12)

    trained = tbptt.train_step(make_state(), whole, Truncation(3, 3))[0]
    for piece in lanes(whole, steps=3):
        state, _ = tbptt.train_step(state, piece, Truncation(3, 3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), state.params, trained.params
    )


def test_labels_are_repeated_and_losses_marked():
    sequences = [np.arange(6), np.arange(2)]
    batch = whole_sequences(sequences, [3, 4], align="start")
    np.testing.assert_array_equal(batch.targets, [[3] * 6, [4, 4, 0, 0, 0, 0]])
    end = mark_losses(batch)
    np.testing.assert_array_equal(end.weights, [[0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]])
    fourth = mark_losses(batch, every=4)
    np.testing.assert_array_equal(fourth.weights, [[0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mark_losses(batch, every=1).weights, batch.mask)
    assert end.weights.dtype == np.float32
    # Counted from the first column, also where that is padding; and a row without steps has none.
    batch = whole_sequences(sequences, [3, 4])
    empty = batch._replace(mask=batch.mask & [[True], [False]])
    np.testing.assert_array_equal(
        mark_losses(empty, every=5).weights, [[0, 0, 0, 0, 1, 1], [0] * 6]
    )
    np.testing.assert_array_equal(
        mark_losses(batch._replace(mask=None), every=5).weights, [[0, 0, 0, 0, 1, 1]] * 2
    )


def test_whole_numbers_do_not_round_the_others():
    batch = whole_sequences([[1, 2], [0.5, 1.5]], [1, 0.25])
    np.testing.assert_array_equal(batch.inputs, [[1, 2], [0.5, 1.5]])
    np.testing.assert_array_equal(batch.targets, [[1, 1], [0.25, 0.25]])


def test_a_split_takes_pytrees_and_keeps_a_given_reset():
    series = np.arange(2 * 4).reshape(2, 4)
    reset = np.array([[True, False, True, False], [True, False, False, True]])
    batch = Batch({"x": series, "z": series[..., None]}, series, reset=reset)
    first, second = lanes(batch, steps=2)
    np.testing.assert_array_equal(second.inputs["z"], series[:, 2:, None])
    np.testing.assert_array_equal(first.reset, reset[:, :2])
    np.testing.assert_array_equal(second.reset, reset[:, 2:])
    np.testing.assert_array_equal(naive_split(batch, steps=2).reset, reset.reshape(4, 2))
    # A stream continues in lanes; row by row it would resume from the carry of another row.
    stream = batch._replace(reset=reset & [[True], [False]])
    assert not lanes(stream, steps=2)[0].reset[1, 0]
    with pytest.raises(ValueError, match="naive_split: batch must .*reset True.* False in row 1"):
        naive_split(stream, steps=2)
    # Padding may come before the first reset.
    padded = stream._replace(mask=series > 5)
    assert not naive_split(padded._replace(reset=series == 6), steps=2).reset[2, 0]


BATCH = Batch(np.zeros((2, 4)), np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whole_sequences([], []), "inputs must .* got none"),
        (lambda: whole_sequences([np.arange(2)], [1, 2]), "targets must .* got 2 for 1 inputs"),
        (
            lambda: whole_sequences(np.arange(2), [1, 2]),
            r"inputs must .* \[\] in number 0",
        ),
        (
            lambda: whole_sequences([[1, 2], []], [1, 2]),
            r"inputs must .* got shape \[0\] in number 1",
        ),
        (
            lambda: whole_sequences([[1, 2]], [[1, 2, 3]]),
            r"targets must .* 2 in number 0.*shape \[3\]",
        ),
        (
            lambda: whole_sequences([np.zeros((2, 3)), np.zeros((2, 1))], [1, 2]),
            r"inputs must .* got \[1\] in number 1 .* \[3\] in number 0",
        ),
        (lambda: whole_sequences([[1]], [1], multiple=0), "multiple must .* got 0"),
        (
            lambda: sentence_windows([[1, 2]], [[1, 2]], [[True]], steps=2),
            r"ends must .* shapes \[\[1\]\] for steps \[2\]",
        ),
        (
            lambda: sentence_windows([[1]], [[1]], [[True]], steps=0),
            "sentence_windows: steps must .* got 0",
        ),
        (lambda: mark_losses(BATCH, every=0), "every must .* got 0"),
        (lambda: lanes(BATCH, steps=0), "lanes: steps must .* got 0"),
        (lambda: naive_split(BATCH, steps=0), "naive_split: steps must .* got 0"),
        (
            lambda: lanes(Batch(np.zeros((2, 4)), np.zeros(2)), steps=2),
            r"Batch: targets must .* = \[2, 4\], .* got \[2\]",
        ),
        (
            lambda: lanes(BATCH._replace(mask=np.ones((2, 3), bool)), steps=2),
            r"Batch: mask must .* got \[2, 3\]",
        ),
        (lambda: lanes(Batch(np.zeros(3), np.zeros(3)), steps=2), r"inputs must .* got \[3\]"),
        (
            lambda: batchify(np.arange(9), batch_size=0, steps=2),
            "batchify: batch_size must .* got 0",
        ),
        (lambda: batchify(np.arange(9), batch_size=2, steps=0), "batchify: steps must .* got 0"),
        (
            lambda: batchify(np.arange(9), np.arange(8), batch_size=2, steps=2),
            "targets must .* 9, got 8",
        ),
        (
            lambda: batchify(np.arange(9), batch_size=2, steps=2, reset=np.zeros(8, bool)),
            "reset must .* 9, got 8",
        ),
        (
            lambda: batchify(np.arange(3), batch_size=3, steps=2),
            "inputs must .*batch_size=3 .* got 2",
        ),
    ],
)
def test_bad_sequences_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
