"""Credit by lag and the bias of a truncation are those of the oracle's per-step gradients."""

import jax
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tests import oracle
from tests.models.test_sequence_model import Counting, with_core
from tests.networks import CORES, LOSSES, as_numpy, carry_of, make_batch, make_state

LENGTH = 7


def whole(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    ("core", "marks", "loss"),
    [
        ("rnn", "", "xent"),
        ("gru", "mrw", "mse"),
        ("learnt_lstm", "mw", "xent"),
        pytest.param("learnt_rnn", "mrw", "mse", marks=pytest.mark.slow),
        pytest.param("flax_lstm", "r", "xent", marks=pytest.mark.slow),
        pytest.param("lstm", "mr", "mse", marks=pytest.mark.slow),
    ],
)
def test_credit_by_lag_equals_the_oracle(core, marks, loss):
    cell, state, batch = CORES[core][0], make_state(core, loss), make_batch(LENGTH, marks, loss)
    params = as_numpy(state.params)
    G, _, weights = oracle.per_step_gradients(cell, loss, params, batch)
    d_carry = np.concatenate(oracle.carry_gradients(cell, loss, params, batch), axis=-1)
    sizes = np.linalg.norm(d_carry, axis=-1).sum(-1)
    for_params, for_carry = [], []
    for lag in range(LENGTH):
        part = jax.tree.map(lambda g, k=lag: sum(g[t, t - k] for t in range(k, LENGTH)), G)
        for_params.append(np.linalg.norm(whole(part)) / weights.sum())
        for_carry.append(np.trace(sizes, -lag) / weights.sum())
    actual = tbptt.credit_by_lag(state, batch, max_lag=LENGTH - 1)
    np.testing.assert_allclose(actual.params, for_params, rtol=1e-10)
    np.testing.assert_allclose(actual.carry, for_carry, rtol=1e-10)
    shorter = tbptt.credit_by_lag(state, batch, max_lag=2)
    np.testing.assert_allclose(shorter.params, for_params[:3], rtol=1e-10)


def test_credit_by_lag_of_a_stream_goes_on_from_its_carry():
    state, plan = make_state("lstm"), tbptt.Truncation(4, 4)
    state, _ = tbptt.train_step(state, make_batch(4, "r"), plan)
    params, carry, batch = (
        as_numpy(state.params),
        as_numpy(carry_of(state)),
        make_batch(4, "r", seed=3),
    )
    reset = np.array(batch.reset)
    reset[:, 0] = False
    batch = batch._replace(reset=reset)
    G, _, weights = oracle.per_step_gradients("lstm", "xent", params, batch, carry)
    part = jax.tree.map(lambda g: sum(g[t, t - 1] for t in range(1, 4)), G)
    actual = tbptt.credit_by_lag(state, batch, max_lag=1)
    expected = np.linalg.norm(whole(part)) / weights.sum()
    np.testing.assert_allclose(actual.params[1], expected, rtol=1e-10)


def test_nothing_scored_has_no_credit():
    batch = make_batch(4, "r")._replace(weights=np.zeros((2, 4)))
    with pytest.warns(UserWarning, match="no step is scored"):
        credit = tbptt.credit_by_lag(make_state("rnn"), batch, max_lag=3)
    np.testing.assert_array_equal(credit, np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("max_lag", "error", "message"),
    [
        (-1, ValueError, "credit_by_lag: max_lag must .* 0, got -1"),
        (4, ValueError, "credit_by_lag: max_lag must .* 3, got 4"),
        (1.5, TypeError, "credit_by_lag: max_lag must .*integer.* got 1.5"),
        (None, TypeError, "credit_by_lag: max_lag must .*integer.* got None"),
    ],
)
def test_a_lag_that_the_batch_does_not_have_is_refused(max_lag, error, message):
    with pytest.raises(error, match=message):
        tbptt.credit_by_lag(make_state("rnn"), make_batch(4), max_lag)


PLANS = [(2, 3, "update"), (3, 2, "update"), (3, 2, "loss")]


def bias(full, draws):
    """By the definitions."""
    mean = np.sum(draws, axis=0) / len(draws)
    size = np.sqrt(full @ full)
    return {
        "relative": np.sqrt((mean - full) @ (mean - full)) / size,
        "cosine": mean @ full / size / np.sqrt(mean @ mean),
        "norm_ratio": np.sqrt(mean @ mean) / size,
        "variance": sum((d - mean) @ (d - mean) for d in draws) / len(draws) / size**2,
    }


@pytest.mark.parametrize("plans", [PLANS[:1], PLANS[1:2], PLANS])
def test_gradient_bias_equals_the_oracle(plans):
    state, batch = make_state("gru"), make_batch(LENGTH, "mw")
    params = as_numpy(state.params)

    def truth(k1, k2, anchor="update"):
        return oracle.gradient("gru", "xent", params, batch, k1, k2, anchor)[0]

    full, draws = truth(LENGTH, LENGTH), [truth(*plan) for plan in plans]
    given = [tbptt.Truncation(*plan) for plan in plans]
    actual = tbptt.gradient_bias(state, batch, given if len(given) > 1 else given[0])
    assert set(actual) == {"all", "encoder", "core", "readout"}
    for name, found in actual.items():
        first, *rest = (whole(tree if name == "all" else tree[name]) for tree in (full, *draws))
        expected = bias(first, rest)
        assert found._asdict() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert actual["all"].relative > 0.01


def test_full_bptt_has_no_bias_and_no_plan_is_refused():
    state, batch = make_state("rnn"), make_batch(5)
    full = tbptt.Truncation(5, 5)
    for found in tbptt.gradient_bias(state, batch, full).values():
        assert found == pytest.approx((0, 1, 1, 0), abs=1e-12)
    with pytest.raises(ValueError, match="truncation must .* got none"):
        tbptt.gradient_bias(state, batch, [])


def test_a_cell_with_integers_in_its_carry_has_credit():
    state = tbptt.TrainState.create(with_core(Counting()), optax.sgd(0.1), LOSSES["xent"])
    batch = make_batch(5)
    credit = tbptt.credit_by_lag(state, batch, max_lag=4)
    # The parts of all lags are the whole: its norm is at most the sum of theirs.
    norm = optax.tree.norm(tbptt.gradient(state, batch, tbptt.Truncation(5, 5)))
    assert 0 < float(norm) <= float(credit.params.sum())
    assert bool((credit.params > 0).all())


def test_gradients_found_elsewhere_are_compared_by_group():
    full = {"core": {"w": np.array([3.0, 0.0])}, "readout": np.array([[4.0]])}
    one = {"core": {"w": np.array([0.0, 3.0])}, "readout": np.array([[8.0]])}
    other = {"core": {"w": np.array([0.0, 1.0])}, "readout": np.array([[8.0]])}
    found = tbptt.compare_gradients([one, other], full)
    assert set(found) == {"all", "core", "readout"}
    # The mean is (0, 2) of (3, 0), and 8 of 4.
    np.testing.assert_allclose(found["core"], (np.sqrt(13) / 3, 0, 2 / 3, 1 / 9))
    np.testing.assert_allclose(found["readout"], (1, 1, 2, 0))
    np.testing.assert_allclose(
        found["all"], (np.sqrt(13 + 16) / 5, 32 / 5 / np.sqrt(68), np.sqrt(68) / 5, 1 / 25)
    )


@pytest.mark.parametrize(
    ("estimates", "message"),
    [
        ([], "got none"),
        ([{"a": np.ones(2)}, {"a": np.ones(3)}], r"\(3,\).* in number 1"),
        ([{"b": np.ones(2)}], "in number 0"),
    ],
)
def test_gradients_that_cannot_be_compared_are_refused(estimates, message):
    with pytest.raises(ValueError, match=f"compare_gradients: estimates must .*{message}"):
        tbptt.compare_gradients(estimates, {"a": np.ones(2)})
