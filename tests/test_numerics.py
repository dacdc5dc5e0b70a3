"""What is not finite is never trained on: it changes nothing and is reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tests.networks import (
    ENCODED,
    F64,
    FEATURES,
    HIDDEN,
    LOSSES,
    as_numpy,
    assert_close,
    carry_of,
    cut,
    make_batch,
    make_model,
    randomize,
)

LENGTH, BEYOND = 10, 1e300
PLANS = [
    tbptt.Truncation(2, 2),
    tbptt.Truncation(2, 4),
    tbptt.Truncation(2, 3),
    tbptt.Truncation(2, 4, "loss"),
]


def ids(plan):
    return f"{plan.k1}-{plan.k2}-{plan.anchor}"


class Fragile(nnx.Module):
    """A linear layer; NaN for an input beyond what it can do."""

    def __init__(self):
        self.linear = nnx.Linear(FEATURES, ENCODED, rngs=nnx.Rngs(0), **F64)

    def __call__(self, inputs):
        return self.linear(inputs) * jnp.where(inputs[..., :1] == BEYOND, jnp.nan, 1.0)


def make(core="lstm"):
    model = make_model(core)
    model.encoder = Fragile()
    return randomize(tbptt.TrainState.create(model, optax.adam(0.1), LOSSES["mse"]))


def stream():
    batch = make_batch(LENGTH, loss="mse", rows=3)
    return batch._replace(reset=np.arange(LENGTH) == np.zeros((3, 1)), weights=np.ones((3, LENGTH)))


def without_interval(batch, *intervals):
    weights = np.array(batch.weights)
    for j in intervals:
        weights[:, 2 * j : 2 * j + 2] = 0
    return batch._replace(weights=weights)


@pytest.mark.parametrize("plan", PLANS, ids=ids)
@pytest.mark.parametrize("core", ["lstm", "learnt_rnn"])
def test_a_window_whose_loss_is_not_finite_changes_nothing(core, plan):
    batch = stream()
    targets = np.array(batch.targets)
    targets[1, 5] = BEYOND  # its square is infinite
    found, metrics = tbptt.train_step(make(core), batch._replace(targets=targets), plan)
    expected, others = tbptt.train_step(make(core), without_interval(batch, 2), plan)
    assert metrics.finite.tolist() == [True, True, False, True, True]
    assert int(found.step) == 4
    for read in (lambda s: (s.params, s.opt_state), carry_of):
        assert_close(read(found), read(expected))
    np.testing.assert_allclose(metrics.loss[metrics.finite], others.loss[metrics.finite])
    assert np.all(metrics.weight == 6)
    assert not np.isfinite(metrics.loss[2])


@pytest.mark.parametrize("plan", PLANS, ids=ids)
@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_a_row_whose_carry_is_lost_begins_anew(core, plan):
    batch = stream()
    inputs = np.array(batch.inputs)
    inputs[1, 3] = BEYOND
    found, metrics = tbptt.train_step(make(core), batch._replace(inputs=inputs), plan)
    # What replays step 3 in its lookback is not finite again; the next starts where it starts.
    span = plan.k2 + (plan.k1 - 1 if plan.anchor == "loss" else 0)
    starts = [2 * j + 2 - span for j in range(5)]
    bad = [j for j in range(1, 5) if starts[j] <= 3]
    assert np.flatnonzero(~metrics.finite).tolist() == bad
    reset = np.array(batch.reset)
    reset[1, starts[bad[-1] + 1]] = True
    same = without_interval(batch._replace(reset=reset), *bad)
    expected, _ = tbptt.train_step(make(core), same, plan)
    assert int(found.step) == 5 - len(bad)
    for read in (lambda s: (s.params, s.opt_state), carry_of):
        assert_close(read(found), read(expected))


def test_a_row_is_lost_with_any_leaf_of_its_carry():
    """An LSTM whose c is infinite has a finite h, which restarts with it."""
    plan, batch = tbptt.Truncation(2, 2), cut(stream(), 0, 2)
    state, _ = tbptt.train_step(make("lstm"), batch, plan)
    c, h = as_numpy(carry_of(state))
    lost = jnp.asarray(c).at[1].set(jnp.inf), jnp.asarray(h)
    assert state.stream is not None
    state = dataclasses.replace(state, stream=state.stream._replace(carry=lost))
    state, metrics = tbptt.train_step(state, batch._replace(reset=np.zeros((3, 2), bool)), plan)
    assert metrics.finite.tolist() == [False]
    for leaf in as_numpy(carry_of(state)):
        np.testing.assert_array_equal(leaf[1], np.zeros(HIDDEN))
        assert np.isfinite(leaf).all()
        assert np.all(leaf[[0, 2]] != 0)


def test_a_stream_goes_on_in_the_next_batch_after_a_lost_carry():
    plan, batch = tbptt.Truncation(2, 4), stream()
    inputs = np.array(batch.inputs)
    inputs[1, 9] = BEYOND  # in the last window, so that the next batch begins with what it left
    state, _ = tbptt.train_step(make(), batch._replace(inputs=inputs), plan)
    assert all(np.isfinite(c).all() for c in jax.tree.leaves((state.params, carry_of(state))))
    state, metrics = tbptt.train_step(
        state, batch._replace(reset=np.zeros((3, LENGTH), bool)), plan
    )
    # The first window replays the step that spoilt it, the others do not.
    assert metrics.finite.tolist() == [False, True, True, True, True]
    assert all(np.isfinite(c).all() for c in jax.tree.leaves((state.params, carry_of(state))))


def test_a_batch_that_is_never_finite_leaves_every_bit():
    batch, state = stream(), make()
    before = jax.tree.map(np.array, (state.params, state.opt_state, state.step))
    wrong = batch._replace(targets=np.full_like(batch.targets, BEYOND))
    state, metrics = tbptt.train_step(state, wrong, tbptt.Truncation(2, 4))
    assert not metrics.finite.any()
    after = jax.tree.map(np.array, (state.params, state.opt_state, state.step))
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_trained_on():
    def root(outputs, targets):
        # Its value at 0 is 0, its slope there infinite.
        return jnp.sqrt(jnp.abs(outputs - targets)).mean(-1)

    state = tbptt.TrainState.create(make_model("rnn"), optax.sgd(0.1), root)
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    batch = make_batch(2, loss="mse")._replace(targets=np.zeros((2, 2, 2)))
    state, metrics = tbptt.train_step(state, batch, tbptt.Truncation(2, 2))
    assert np.isfinite(metrics.loss).all()
    assert not metrics.finite.any()
    assert int(state.step) == 0
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


@pytest.mark.parametrize("plan", PLANS, ids=ids)
def test_a_gradient_that_misses_a_window_is_nan_throughout(plan):
    batch = stream()
    targets = np.array(batch.targets)
    targets[1, 5] = BEYOND
    grads = tbptt.gradient(make(), batch._replace(targets=targets), plan)
    assert all(np.isnan(g).all() for g in jax.tree.leaves(grads))
