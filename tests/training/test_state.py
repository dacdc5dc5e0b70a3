"""What a state holds: whose arrays are donated, copies, and the carry of a stream."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tests.networks import (
    HIDDEN,
    LOSSES,
    as_numpy,
    assert_close,
    carry_of,
    make_batch,
    make_model,
    make_state,
)

ROWS, PLAN = 2, tbptt.Truncation(2, 3)


def stream(length: int = 4, rows: int = ROWS, first: bool = False, seed: int = 0) -> tbptt.Batch:
    batch = make_batch(length, rows=rows, seed=seed)
    reset = np.zeros((rows, length), bool)
    reset[:, 0] = first
    return batch._replace(reset=reset)


def started() -> tbptt.TrainState:
    state, _ = tbptt.train_step(make_state("lstm"), stream(), PLAN)
    return state


# ------------------------------------------------------------------------------------ whose arrays


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
def test_a_carry_that_a_user_puts_in_stays_the_users(kind):
    carry = tuple(kind(np.full((ROWS, HIDDEN), value)) for value in (0.3, -0.2))
    before = as_numpy(jax.tree.map(np.array, carry))
    for _ in range(2):  # from a replay buffer, say
        state = dataclasses.replace(started(), stream=tbptt.Stream(carry))
        state, _ = tbptt.train_step(state, stream(), PLAN)
        assert_close(as_numpy(carry), before, tolerance=0)


@pytest.mark.parametrize("field", ["params", "opt_state", "step", "rng", "stream"])
def test_no_array_that_a_user_puts_in_is_deleted(field):
    model, optimizer = make_model("lstm"), optax.adam(0.1)
    state = tbptt.TrainState.create(model, optimizer, LOSSES["xent"])
    state, _ = tbptt.train_step(state, stream(), PLAN)
    if field == "rng":
        state = dataclasses.replace(state, rng=jax.random.key(3))
    mine = jax.tree.map(lambda a: jnp.array(a, copy=True), getattr(state, field))
    assert jax.tree.leaves(mine)
    tbptt.train_step(dataclasses.replace(state, **{field: mine}), stream(), PLAN)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(mine))


def test_a_copy_is_left_alone():
    state = started()
    kept = state.copy()
    names = "params", "opt_state", "step", "stream"
    values = [jax.tree.map(np.array, getattr(kept, name)) for name in names]
    tbptt.train_step(state, stream(), PLAN)
    assert_close([as_numpy(getattr(kept, name)) for name in names], values, tolerance=0)
    again, _ = tbptt.train_step(kept, stream(), PLAN)  # and is trained as the other was
    expected, _ = tbptt.train_step(started(), stream(), PLAN)
    assert_close(again.params, expected.params, tolerance=0)


def test_parameters_that_were_donated_say_what_to_keep():
    state = started()
    best = state.params
    newest, _ = tbptt.train_step(state, stream(), PLAN)
    message = r"state\.params .*train_step.*state\.copy\(\)"
    with pytest.raises(ValueError, match=message):
        tbptt.evaluate(dataclasses.replace(newest, params=best), make_batch(4))
    with pytest.raises(ValueError, match=message):
        state.copy()


def test_prediction_needs_the_parameters_alone():
    state = started()
    best = state.copy()
    tbptt.train_step(state, stream(), PLAN)
    only_params = dataclasses.replace(state, params=best.params)  # its step is donated
    batch = make_batch(4)
    expected = tbptt.predict(best, batch)
    assert_close(tbptt.predict(only_params, batch), expected, tolerance=0)
    assert tbptt.evaluate(only_params, batch) == tbptt.evaluate(best, batch)


def test_a_step_of_training_does_not_copy_what_is_ours(monkeypatch):
    """States that train_step returns are donated: no array of one is there twice."""
    state = started()
    leaves = jax.tree.leaves(state)
    tbptt.train_step(state, stream(), PLAN)
    assert all(leaf.is_deleted() for leaf in leaves)


# ------------------------------------------------------------------------------------- the carry


@pytest.mark.parametrize("rows", [1, 5])
def test_new_streams_may_be_more_or_fewer(rows):
    batch = stream(rows=rows, first=True, seed=3)
    expected, _ = tbptt.train_step(started().restart(), batch, PLAN)
    found, _ = tbptt.train_step(started(), batch, PLAN)
    assert_close(found.params, expected.params, tolerance=0)
    assert_close(carry_of(found), carry_of(expected), tolerance=0)
    state = started()
    parts = [stream(first=True), batch]
    together = tbptt.evaluate(state, parts)
    alone = [tbptt.evaluate(state, part) for part in parts]
    weight = sum(a["weight"] for a in alone)
    assert together["loss"] == pytest.approx(sum(a["loss"] * a["weight"] for a in alone) / weight)
    assert_close(
        tbptt.gradient(state, batch, PLAN),
        tbptt.gradient(state.restart(), batch, PLAN),
    )


@pytest.mark.parametrize("first", [False, "some"])
def test_streams_that_continue_keep_their_number(first):
    batch = stream(rows=5)
    if first == "some":
        batch.reset[:3, 0] = True
    with pytest.raises(ValueError, match="inputs .* 2 rows .* got 5 rows"):
        tbptt.train_step(started(), batch, PLAN)
    with pytest.raises(ValueError, match="inputs .* 2 rows .* got 5 rows"):
        tbptt.evaluate(started(), [stream(first=True), batch])


CARRIES: dict[str, Any] = {
    "structure": jnp.zeros((ROWS, HIDDEN)),
    "shape": (jnp.zeros((ROWS, HIDDEN + 1)),) * 2,
    "dtype": (jnp.zeros((ROWS, HIDDEN), jnp.float32),) * 2,
}


@pytest.mark.parametrize("wrong", CARRIES)
def test_a_carry_of_another_form_is_refused(wrong):
    state = dataclasses.replace(started(), stream=tbptt.Stream(CARRIES[wrong]))
    for function in (tbptt.train_step, tbptt.gradient):
        with pytest.raises(TypeError, match="^state: .*carry"):
            function(state, stream(), PLAN)
    batch = make_batch(4)
    with pytest.raises(TypeError, match="^window_value_and_grad: .*carry"):
        tbptt.window_value_and_grad(
            state.functions, state.loss, state.params, CARRIES[wrong], tbptt.Window(*batch[:2])
        )


# --------------------------------------------------------------------------- losses and targets


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda y, t: y.argmax(-1) != t, TypeError, "loss must .* got bool"),
        (lambda y, t: y.argmax(-1) - t, TypeError, "loss must .* got int"),
        (lambda y, t: (y[..., 0], 1.0), TypeError, "loss must .* got tuple"),
        (lambda y, t: {"loss": y[..., 0]}, TypeError, "loss must .* got dict"),
        (lambda y, t: y.sum(), ValueError, r"loss must .* \[2, 4\].* got \[\]"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(loss, error, message):
    state = tbptt.TrainState.create(make_model("rnn"), optax.sgd(0.1), loss)
    for function in (tbptt.train_step, tbptt.gradient):
        with pytest.raises(error, match=message):
            function(state, make_batch(4), PLAN)


@pytest.mark.parametrize(("rows", "length"), [(1, 4), (4, 4), (3, 1)])
def test_outputs_that_broadcast_against_targets_are_refused(rows, length):
    """[B, T, 1] less [B, T] has three axes, and its mean over the last is [B, T] by chance."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        nnx.Linear(3, 2, rngs=rngs), nnx.SimpleCell(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
    )
    batch = make_batch(length, loss="mse", rows=rows)
    batch = batch._replace(targets=batch.targets[..., 0])

    def mean(outputs, targets):
        return jnp.square(outputs - targets).mean(-1)

    with jax.numpy_rank_promotion("allow"):
        state = tbptt.TrainState.create(model, optax.sgd(0.1), mean)
        with pytest.raises(ValueError, match="loss .*broadcast|loss must "):
            tbptt.train_step(state, batch, tbptt.Truncation(length, length))
        right = tbptt.TrainState.create(model, optax.sgd(0.1), lambda y, t: (y[..., 0] - t) ** 2)
        tbptt.train_step(right, batch, tbptt.Truncation(length, length))


def test_prediction_needs_no_targets():
    state, batch = make_state("gru"), make_batch(5, "mr")
    expected = tbptt.predict(state, batch)
    assert_close(tbptt.predict(state, batch._replace(targets=None)), expected, tolerance=0)
    bare = tbptt.Batch(batch.inputs, mask=batch.mask, reset=batch.reset)
    assert_close(tbptt.predict(state, bare), expected, tolerance=0)
    for function in (tbptt.train_step, tbptt.gradient):
        with pytest.raises(TypeError, match="targets must .* got none"):
            function(state, bare, PLAN)
    with pytest.raises(TypeError, match="targets must .* got none"):
        tbptt.evaluate(state, bare)


# --------------------------------------------------------------------------------------- warnings


def test_a_short_interval_of_a_stream_says_that_it_reaches_back():
    message = "last interval of T=4 .* 1 of k1=3.* k2=3"
    with pytest.warns(UserWarning, match=message):
        tbptt.train_step(make_state("rnn"), stream(), tbptt.Truncation(3, 3))


@pytest.mark.parametrize(
    "plan", [(2, 2, "update"), (3, 1, "update"), (3, 4, "update"), (3, 3, "loss")]
)
def test_nothing_is_said_of_windows_that_reach_back_as_asked_or_not_at_all(plan, recwarn):
    tbptt.gradient(make_state("rnn"), stream(), tbptt.Truncation(*plan))
    tbptt.gradient(make_state("rnn"), make_batch(4), tbptt.Truncation(3, 3))  # whole sequences
    assert not [w for w in recwarn.list if "last interval" in str(w.message)]


def test_programs_are_dropped_before_they_use_up_the_memory_maps(monkeypatch):
    from tbptt_jax.training import programs

    monkeypatch.setattr(programs, "MANY", 3)
    monkeypatch.setattr(programs, "MOST", 4)
    monkeypatch.setattr(programs, "traced", {"ever": 0, "kept": 0})
    programs.clear()
    state, sizes = make_state("rnn"), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for length in range(1, 8):
            state, _ = tbptt.train_step(state, make_batch(length), tbptt.Truncation(1, 1))
            sizes.append(programs.traced["kept"])
    (message,) = [str(w.message) for w in said]
    assert "has compiled 3 programs" in message
    assert "Pad sequences to few lengths" in message
    assert sizes == [1, 2, 3, 4, 1, 2, 3]
