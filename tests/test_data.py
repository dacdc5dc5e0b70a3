"""Padding and buckets: every step exactly once, in order, with its label and its losses."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbptt_jax.data import bucketed_batches, pad


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
        (lambda: pad([np.arange(4)], 3), "1 to length=3 steps, got 4 in number 0"),
        (lambda: pad([np.arange(2), np.arange(0)], 3), "got 0 in number 1"),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(2), batch_size=1, multiple=1),
            "2 labels for 1 sequences",
        ),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(1), batch_size=0, multiple=1),
            "batch_size must be at least 1, got 0",
        ),
        (
            lambda: bucketed_batches([np.arange(2)], np.arange(1), batch_size=1, multiple=0),
            "multiple must be at least 1, got 0",
        ),
        (
            lambda: bucketed_batches(
                [np.arange(2)], np.arange(1), batch_size=1, multiple=1, loss_every=0
            ),
            "loss_every must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
