"""Optimizers that need the loss, those that are refused by name, and updates of several windows."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from optax import contrib

import tbptt_jax as tbptt
from tests import oracle
from tests.networks import LOSSES, as_numpy, assert_close, cut, make_batch, make_model, randomize

XENT = LOSSES["xent"]
PLAN = tbptt.Truncation(3, 3)
PRIVATE = contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0))
PERTURB = optax.chain(contrib.normalize(), optax.sgd(0.05))


def make(optimizer: Any) -> tbptt.TrainState:
    return randomize(tbptt.TrainState.create(make_model("gru"), optimizer, XENT))


def by_hand(optimizer: Any, batch: tbptt.Batch) -> Any:
    """The parameters after an update for each window, given the loss of the window."""
    state = make(optax.sgd(1.0))
    optimizer = optax.with_extra_args_support(optimizer)
    params, opt_state, carry = state.params, optimizer.init(state.params), None
    for start in range(0, 6, 3):
        window = tbptt.Window(*cut(batch, start, start + 3)[:2])

        def mean(params, carry=carry, window=window):
            value, _ = tbptt.window_value_and_grad(state.functions, XENT, params, carry, window)
            return value.loss / value.weight

        value, grads = tbptt.window_value_and_grad(state.functions, XENT, params, carry, window)
        grads = jax.tree.map(lambda g, w=value.weight: g / w, grads)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=value.loss / value.weight, grad=grads, value_fn=mean
        )
        params, carry = optax.apply_updates(params, updates), value.carry
    return params


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(20.0), optax.scale_by_backtracking_linesearch(10)),
        optax.polyak_sgd(max_learning_rate=0.3),
    ],
    ids=["lbfgs", "backtracking", "polyak"],
)
def test_an_optimizer_is_given_the_loss_of_its_window(optimizer):
    batch = make_batch(6)
    state, metrics = tbptt.train_step(make(optimizer), batch, PLAN)
    assert metrics.finite.all()
    expected = by_hand(optimizer, batch)
    plain = by_hand(optax.sgd(1.0), batch)
    assert not np.allclose(
        expected["core"]["dense_h"]["kernel"], plain["core"]["dense_h"]["kernel"]
    )
    assert_close(state.params, expected, tolerance=1e-8)


def test_sharpness_aware_minimization_alternates():
    optimizer = contrib.sam(optax.sgd(0.1), PERTURB, sync_period=2)
    state, _ = tbptt.train_step(make(optimizer), make_batch(6), PLAN)
    plain, _ = tbptt.train_step(make(optax.sgd(0.1)), make_batch(6), PLAN)
    assert int(state.step) == 2
    assert not np.allclose(*(s.params["readout"]["kernel"] for s in (state, plain)))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optimizer lookahead fails: .*'fast'"),
        (contrib.sophia(1e-3), r"optimizer chain\(scale_by_sophia, .* fails: obj_fn"),
        (
            contrib.sam(optax.sgd(0.1), PERTURB, opaque_mode=True),
            "optimizer sam fails: .*grad_fn",
        ),
        (
            PRIVATE,
            "optimizer differentially_private_aggregate fails: .*batch dimension",
        ),
        (
            optax.chain(PRIVATE, optax.sgd(0.1)),
            r"optimizer chain\(differentially_private_aggregate, .* fails: .*batch dimension",
        ),
        (
            tbptt.accumulate(optax.lbfgs(), windows=2),
            ".*scale_by_zoom_linesearch.* fails: .*value_fn",
        ),
    ],
    ids=["lookahead", "sophia", "opaque sam", "private", "private sgd", "accumulated search"],
)
def test_an_optimizer_that_needs_more_is_refused_by_name(optimizer, message):
    with pytest.raises(ValueError, match="TrainState.create: " + message):
        tbptt.TrainState.create(make_model("rnn"), optimizer, XENT)


# ------------------------------------------------------------------------ several windows at once


def ragged(length: int = 6, seed: int = 0) -> tbptt.Batch:
    return make_batch(length, "mw", seed=seed)


@pytest.mark.parametrize("anchor", ["update", "loss"])
def test_windows_are_accumulated_by_the_weight_of_their_losses(anchor):
    """One update of all windows is the gradient of the whole batch at fixed parameters."""
    batch, plan = ragged(), tbptt.Truncation(2, 2, anchor)
    state = make(tbptt.accumulate(optax.sgd(0.3), windows=3))
    before = as_numpy(state.params)
    expected, info = oracle.gradient("gru", "xent", before, batch, 2, 2, anchor)
    weights = [w.sum() for w in np.split(np.where(batch.mask, batch.weights, 0), 3, axis=1)]
    assert len(set(weights)) == 3  # the mean of means would be another
    state, metrics = tbptt.train_step(state, batch, plan)
    np.testing.assert_allclose(metrics.weight.sum(), info["weight"], rtol=1e-12)
    assert int(state.step) == 1
    assert_close(
        as_numpy(state.params), jax.tree.map(lambda p, g: p - 0.3 * g, before, expected), 1e-10
    )
    mean = make(optax.MultiSteps(optax.sgd(0.3), 3))
    mean, _ = tbptt.train_step(mean, batch, plan)
    assert not np.allclose(mean.params["readout"]["bias"], state.params["readout"]["bias"], 1e-6)


def test_a_window_without_losses_does_not_count():
    batch = ragged()
    weights = np.array(batch.weights)
    weights[:, 2:4] = 0
    batch = batch._replace(weights=weights)
    state, _ = tbptt.train_step(
        make(tbptt.accumulate(optax.sgd(0.3), windows=3)), batch, tbptt.Truncation(2, 2)
    )
    opt_state: Any = state.opt_state
    assert (int(state.step), int(opt_state.done)) == (0, 2)
    assert_close(state.params, make(optax.sgd(0.3)).params, tolerance=0)


def test_batches_are_accumulated_whatever_their_windows():
    state = make(tbptt.accumulate(optax.sgd(0.3), batches=2))
    before = as_numpy(state.params)
    batches = [ragged(6, seed=1), ragged(4, seed=2)]
    parts = [oracle.gradient("gru", "xent", before, b, 2, 2) for b in batches]
    total = sum(info["weight"] for _, info in parts)
    expected = jax.tree.map(
        lambda p, *g: (
            p - 0.3 * sum(a * i["weight"] for a, (_, i) in zip(g, parts, strict=True)) / total
        ),
        before,
        *(grads for grads, _ in parts),
    )
    for i, batch in enumerate(batches):
        assert int(state.step) == 0, i
        state, _ = tbptt.train_step(state, batch, tbptt.Truncation(2, 2))
    assert int(state.step) == 1
    assert_close(as_numpy(state.params), expected, tolerance=1e-10)


def test_batches_without_losses_make_no_update():
    state = make(tbptt.accumulate(optax.sgd(0.3), batches=1))
    before = as_numpy(state.params)
    batch = ragged()._replace(weights=np.zeros((2, 6)), reset=np.zeros((2, 6), bool))
    with pytest.warns(UserWarning, match="no step is scored"):
        state, _ = tbptt.train_step(state, batch, tbptt.Truncation(2, 2))
    assert int(state.step) == 0
    assert_close(as_numpy(state.params), before, tolerance=0)


def test_an_optimizer_may_keep_the_parameters_twice():
    """Two places of one array cannot both be donated."""
    sgd = optax.sgd(0.3)

    def update(updates, state, params: Any = None):
        return sgd.update(updates, sgd.init(params))[0], state

    keeping = optax.GradientTransformation(lambda params: (params, params), update)
    state, expected = make(keeping), make(sgd)
    before = as_numpy(state.params)
    for _ in range(2):
        state, _ = tbptt.train_step(state, ragged(), tbptt.Truncation(2, 2))
        expected, _ = tbptt.train_step(expected, ragged(), tbptt.Truncation(2, 2))
    assert_close(state.params, expected.params, tolerance=0)
    assert_close(as_numpy(state.opt_state), (before, before), tolerance=0)


def test_an_accumulated_update_is_saved_halfway(tmp_path):
    optimizer, plan = tbptt.accumulate(optax.adam(0.1), windows=2), tbptt.Truncation(6, 6)
    batches = [ragged(seed=i) for i in range(3)]
    state = make(optimizer)
    for batch in batches:
        state, _ = tbptt.train_step(state, batch, plan)
    expected = as_numpy(state.params)
    state, _ = tbptt.train_step(make(optimizer), batches[0], plan)
    with tbptt.Checkpoints(tmp_path / "kept") as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        saved = checkpoints.restore(state)
    assert saved is not None
    state = saved.tree
    for batch in batches[1:]:
        state, _ = tbptt.train_step(state, batch, plan)
    assert_close(as_numpy(state.params), expected, tolerance=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "accumulate: .* windows=None, batches=None"),
        ({"windows": 2, "batches": 2}, TypeError, "accumulate: .* windows=2, batches=2"),
        ({"windows": 0}, ValueError, "accumulate: windows must .* got 0"),
        ({"batches": 1.5}, TypeError, "accumulate: batches must .* got 1.5"),
    ],
)
def test_what_cannot_be_accumulated_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        tbptt.accumulate(optax.sgd(0.1), **options)


def test_an_accumulation_of_something_else_is_refused():
    with pytest.raises(TypeError, match="optimizer must .* got float"):
        tbptt.TrainState.create(make_model("rnn"), tbptt.accumulate(0.1, windows=2), XENT)  # pyright: ignore
