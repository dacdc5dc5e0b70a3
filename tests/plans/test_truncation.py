"""Plans and their credit matrices, against the oracle's definition and tables made by hand."""

import itertools

import numpy as np
import pytest

import tbptt_jax as tbptt
from tbptt_jax import Interval, intervals
from tests import oracle

ANCHORS = ("update", "loss")


@pytest.mark.parametrize("name", ["k1", "k2"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "{} must .* 1.* got 0; for full BPTT"),
        (-3, ValueError, "{} must .* 1.* got -3"),
        (np.int32(0), ValueError, "{} must .* 1.* got 0"),
        (2.5, TypeError, "{} must .* integer.* got 2.5"),
        (2.0, TypeError, "{} must .* integer.* got 2.0"),
        (True, TypeError, "{} must .* integer.* got True"),
        (np.True_, TypeError, "{} must .* integer.* got .*True"),
        ("3", TypeError, "{} must .* integer.* got '3'"),
        (None, TypeError, "{} must .* integer.* got None"),
    ],
)
def test_a_number_of_steps_is_a_positive_integer(name, value, error, message):
    with pytest.raises(error, match="^Truncation: " + message.format(name)):
        tbptt.Truncation(**{"k1": 2, "k2": 2, name: value})


@pytest.mark.parametrize("anchor", ["x", None, "Update"])
def test_an_unknown_anchor_is_refused(anchor):
    with pytest.raises(ValueError, match=f'anchor must .*"update".*"loss".* got {anchor!r}'):
        tbptt.Truncation(k1=2, k2=2, anchor=anchor)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block": 0, "anchor": "loss"}, ValueError, "block must .* 1.* got 0"),
        ({"block": 2.0, "anchor": "loss"}, TypeError, "block must .* integer.* got 2.0"),
        ({"block": 4}, ValueError, 'block .*anchor="loss".* got block=4'),
    ],
)
def test_a_block_is_a_number_of_steps_and_goes_with_one_anchor(arguments, error, message):
    with pytest.raises(error, match="^Truncation: " + message):
        tbptt.Truncation(2, 2, **arguments)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_numpy_integers_make_the_same_plan_as_integers(kind):
    plan, same = tbptt.Truncation(k1=3, k2=5), tbptt.Truncation(k1=kind(3), k2=kind(5))
    assert plan == same
    assert hash(plan) == hash(same)
    assert repr(plan) == repr(same)
    assert type(same.k1) is type(same.k2) is int


def test_plans_that_differ_in_anything_are_not_equal():
    plan = tbptt.Truncation(k1=3, k2=5)
    for other in ((4, 5), (3, 4), (5, 3), (3, 5, "loss")):
        assert plan != tbptt.Truncation(*other)  # pyright: ignore


@pytest.mark.parametrize("anchor", ANCHORS)
def test_credit_matrix_equals_the_oracle(anchor):
    for k1, k2, length in itertools.product(range(1, 7), range(1, 10), range(1, 14)):
        matrix = tbptt.credit_matrix(tbptt.Truncation(k1, k2, anchor), length)
        expected = oracle.credit(k1, k2, length, anchor)
        np.testing.assert_array_equal(matrix, expected, err_msg=f"{k1=} {k2=} {length=}")
        assert matrix.dtype == np.float64


# Columns are parameters, rows are losses.
TABLES = {
    # The last interval, steps 4 and 5, is shorter than k2, and so its window reaches step 3.
    "short last interval": ((3, 3, "update"), ["1", "11", "111", "0011", "00111"]),
    "scored at the end only": ((3, 2, "update"), ["0", "01", "011", "0000", "00001", "000011"]),
    "lookback": ((2, 4, "update"), ["1", "11", "111", "1111", "00111", "001111"]),
    "each loss on its own": ((3, 2, "loss"), ["1", "11", "011", "0011", "00011"]),
    "k1 beyond the end": ((9, 2, "update"), ["0", "01", "011"]),
    "k2 beyond the start": ((1, 9, "loss"), ["1", "11", "111"]),
}


@pytest.mark.parametrize("case", TABLES)
def test_credit_matrix_by_hand(case):
    (k1, k2, anchor), rows = TABLES[case]
    expected = [[float(c) for c in row.ljust(len(rows), "0")] for row in rows]
    plan = tbptt.Truncation(k1, k2, anchor)  # pyright: ignore
    np.testing.assert_array_equal(tbptt.credit_matrix(plan, len(rows)), expected)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_special_cases_of_the_credit_matrix(anchor):
    def matrix(k1, k2):
        return tbptt.credit_matrix(tbptt.Truncation(k1, k2, anchor), 6)

    ones = np.ones((6, 6))
    np.testing.assert_array_equal(matrix(6, 6), np.tril(ones))  # full BPTT
    np.testing.assert_array_equal(matrix(2, 6), np.tril(ones))
    np.testing.assert_array_equal(matrix(1, 1), np.eye(6))
    banded = np.tril(ones) - np.tril(ones, -3)
    np.testing.assert_array_equal(matrix(1, 3), banded)
    blocks = np.kron(np.eye(3), np.tril(np.ones((2, 2))))
    if anchor == "update":
        np.testing.assert_array_equal(matrix(2, 2), blocks)  # the loop that detaches
    else:
        np.testing.assert_array_equal(matrix(2, 3), banded)  # each loss reaches back 3 steps


def test_the_anchors_agree_at_k1_1_and_differ_above():
    for k2, length in itertools.product(range(1, 10), range(1, 14)):
        update, loss = (
            tbptt.credit_matrix(tbptt.Truncation(1, k2, anchor), length) for anchor in ANCHORS
        )
        np.testing.assert_array_equal(update, loss)
    update, loss = (tbptt.credit_matrix(tbptt.Truncation(2, 2, anchor), 4) for anchor in ANCHORS)
    assert not np.array_equal(update, loss)


def test_credit_matrix_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="credit_matrix: length must .* got 0"):
        tbptt.credit_matrix(tbptt.Truncation(2, 2), length=0)


def test_intervals_by_hand():
    assert intervals(tbptt.Truncation(3, 3), 7) == [(0, 3, 0), (3, 6, 3), (6, 7, 6)]
    assert intervals(tbptt.Truncation(4, 1), 6) == [(0, 4, 3), (4, 6, 5)]
    assert intervals(tbptt.Truncation(4, 1, "loss"), 6) == [(0, 4, 0), (4, 6, 4)]
    assert intervals(tbptt.Truncation(9, 5), 4) == [(0, 4, 0)]
    assert intervals(tbptt.Truncation(9, 2), 4) == [(0, 4, 2)]


@pytest.mark.parametrize("anchor", ANCHORS)
def test_intervals_tile_the_steps_as_the_oracle_does(anchor):
    for k1, k2, length in itertools.product(range(1, 7), range(1, 10), range(1, 14)):
        clock = intervals(tbptt.Truncation(k1, k2, anchor), length)
        assert [(i.start, i.end) for i in clock] == oracle.intervals(k1, length)
        assert all(isinstance(i, Interval) for i in clock)
        # The rows of the matrix that are not empty are the losses that the clock calls scored.
        scored = np.any(oracle.credit(k1, k2, length, anchor), axis=1)
        expected = [t + 1 for t in range(length) if scored[t]]
        assert [t for i in clock for t in range(i.scored + 1, i.end + 1)] == expected
