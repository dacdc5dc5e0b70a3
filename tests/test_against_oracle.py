"""`gradient` and `train_step` are what the oracle says, over the grid of plans."""

import itertools

import numpy as np
import pytest

import tbptt_jax as tbptt
from tests import oracle
from tests.networks import CORES, as_numpy, assert_close, make_batch, make_state

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


FAST = _grid(CORES, (1, 2, 3, 5), (1, 2, 3, 7))
FULL = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in _grid(("rnn", "gru", "lstm"), range(1, 7), range(1, 13))
    if case not in FAST
]


@pytest.mark.parametrize("anchor", ["update", "loss"])
@pytest.mark.parametrize(("core", "k1", "k2", "length", "marks", "loss"), FAST + FULL)
def test_gradient_and_train_step_equal_the_oracle(core, k1, k2, length, marks, loss, anchor):
    cell, plan = CORES[core][0], tbptt.Truncation(k1, k2, anchor)
    state = make_state(core, loss)
    params = as_numpy(state.params)
    batch = make_batch(length, marks, loss, seed=k1 * 100 + k2)

    expected, _ = oracle.gradient(cell, loss, params, batch, k1, k2, anchor)
    assert_close(tbptt.gradient(state, batch, plan), expected)

    # Two batches: with resets given, the second goes on from the first, lookback included.
    batches = [batch, make_batch(length, marks, loss, seed=7)]
    expected, updates, carry = oracle.train(cell, loss, params, batches, k1, k2, anchor, 0.3)
    metrics = []
    for batch in batches:
        state, m = tbptt.train_step(state, batch, plan)
        metrics.append(m)
    assert_close(as_numpy(state.params), expected)
    assert_close(as_numpy(state.carry), carry)
    assert int(state.step) == sum(u["weight"] > 0 for u in updates)
    for name in tbptt.Metrics._fields:
        actual = np.concatenate([getattr(m, name) for m in metrics])
        np.testing.assert_allclose(
            actual, [u[name] for u in updates], rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_the_grid_covers_every_length_mark_and_loss_for_every_core():
    cases = FAST + [case.values for case in FULL]
    for core in CORES:
        of_core = [case for case in cases if case[0] == core]
        assert {case[3] for case in of_core} == set(LENGTHS)
        assert {case[4] for case in of_core} == set(MARKS)
        assert {case[5] for case in of_core} == {"xent", "mse"}
    plans = {(core, k1, k2) for core, k1, k2, *_ in cases}
    assert plans >= set(itertools.product(("rnn", "gru", "lstm"), range(1, 7), range(1, 13)))
