"""`gradient` and `train_step` are what the oracle says, over the grid of plans."""

import itertools

import numpy as np
import pytest

import tbptt_jax as tbptt
from tests import oracle
from tests.networks import CORES, as_numpy, assert_close, carry_of, make_batch, make_state

LENGTHS = (1, 5, 7, 12)
MARKS = ("", "m", "r", "w", "mr", "mrw")


def _grid(cores, k1s, k2s):
    """Every core with every plan; lengths, marks and losses are dealt out over it.

    The strides are prime to the tables' sizes, so that no mark is tied to one plan or length.
    """
    cases = []
    for i, (core, k1, k2) in enumerate(itertools.product(cores, k1s, k2s)):
        length, marks = LENGTHS[(i * 7 + i // 4) % 4], MARKS[(i * 5 + i // 6) % 6]
        cases.append((core, k1, k2, length, marks, ("xent", "mse")[i // 3 % 2]))
    return cases


CELLS = ("rnn", "gru", "lstm")
FAST = _grid(CORES, (1, 2, 5), (1, 3, 7))
FULL = [case for case in _grid(CELLS, range(1, 7), range(1, 13)) if case not in FAST]
# `gradient` walks the windows of `train_step`, and those of the anchors differ in their layout and
# estimator, which the cells do not know of: for these it is enough to deal the cells out over the
# full grid of plans.
DEALT = [case for case in FULL if case[0] == CELLS[(case[1] + case[2]) % 3]]


def over(**slow):
    """For each anchor the fast cases and the slow ones."""
    cases = [
        pytest.param(*case, anchor, marks=pytest.mark.slow if case in slow[anchor] else ())
        for anchor in slow
        for case in (*FAST, *slow[anchor])
    ]
    names = ("core", "k1", "k2", "length", "marks", "loss", "anchor")
    return pytest.mark.parametrize(names, cases)


@over(update=DEALT, loss=DEALT)
def test_gradient_equals_the_oracle(core, k1, k2, length, marks, loss, anchor):
    state = make_state(core, loss)
    batch = make_batch(length, marks, loss, seed=k1 * 100 + k2)
    expected, _ = oracle.gradient(
        CORES[core][0], loss, as_numpy(state.params), batch, k1, k2, anchor
    )
    assert_close(tbptt.gradient(state, batch, tbptt.Truncation(k1, k2, anchor)), expected)


@over(update=FULL, loss=DEALT)
def test_train_step_equals_the_oracle(core, k1, k2, length, marks, loss, anchor):
    cell, plan = CORES[core][0], tbptt.Truncation(k1, k2, anchor)
    state = make_state(core, loss)
    params = as_numpy(state.params)
    batch = make_batch(length, marks, loss, seed=k1 * 100 + k2)
    # Two batches: with resets given, the second resumes from the first, lookback included.
    batches = [batch, make_batch(length, marks, loss, seed=7)]
    expected, updates, carry = oracle.train(cell, loss, params, batches, k1, k2, anchor, 0.3)
    metrics = []
    for batch in batches:
        state, m = tbptt.train_step(state, batch, plan)
        metrics.append(m)
    assert_close(as_numpy(state.params), expected)
    assert_close(as_numpy(carry_of(state)), carry)
    assert int(state.step) == sum(u["weight"] > 0 for u in updates)
    for name in ("loss", "grad_norm", "weight", "scored"):
        actual = np.concatenate([getattr(m, name) for m in metrics])
        np.testing.assert_allclose(
            actual, [u[name] for u in updates], rtol=1e-9, atol=1e-12, err_msg=name
        )
    assert all(np.all(m.finite) for m in metrics)


def test_the_grid_covers_every_length_mark_and_loss_for_every_core():
    cases = FAST + FULL
    for core in CORES:
        of_core = [case for case in cases if case[0] == core]
        assert {case[3] for case in of_core} == set(LENGTHS)
        assert {case[4] for case in of_core} == set(MARKS)
        assert {case[5] for case in of_core} == {"xent", "mse"}
    plans = set(itertools.product(range(1, 7), range(1, 13)))
    assert {case[:3] for case in cases} >= {(cell, *plan) for cell in CELLS for plan in plans}
    assert {case[1:3] for case in FAST + DEALT} == plans | {case[1:3] for case in FAST}
