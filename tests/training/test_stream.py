"""What a stream carries between batches, and how to begin new ones."""

import dataclasses

import jax
import numpy as np
import pytest

import tbptt_jax as tbptt
from tests.networks import carry_of, make_batch, make_state

ROWS = 2
PLANS = [tbptt.Truncation(2, 5), tbptt.Truncation(3, 3), tbptt.Truncation(2, 3, "loss")]


def stream(seed: int = 0) -> tbptt.Batch:
    """A batch that resumes its streams."""
    return make_batch(6, seed=seed)._replace(reset=np.zeros((ROWS, 6), bool))


def trained(plan: tbptt.Truncation) -> tbptt.TrainState:
    return tbptt.train_step(make_state("lstm"), stream(), plan)[0]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_array_of_a_stream_leads_with_its_rows(plan):
    saved = trained(plan).stream
    assert saved is not None
    assert saved.lookback is not None
    assert all(leaf.shape[0] == ROWS for leaf in jax.tree.leaves(saved))
    size = plan.lookback_size
    assert all(c.shape[1] == size.carries for c in jax.tree.leaves(saved.lookback.carries))
    assert saved.lookback.mask.shape == (ROWS, size.steps)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_restart_begins_new_streams_and_changes_nothing_else(plan):
    state, other = trained(plan), trained(plan)
    restarted = state.restart()
    assert restarted.stream is None
    for field in ("params", "opt_state", "step", "rng"):
        assert getattr(restarted, field) is getattr(state, field)
    first = stream(1)._replace(reset=np.arange(6) == np.zeros((ROWS, 1)))
    found, _ = tbptt.train_step(restarted, stream(1), plan)
    expected, _ = tbptt.train_step(other, first, plan)
    jax.tree.map(np.testing.assert_array_equal, carry_of(found), carry_of(expected))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_stream_resumes_from_a_carry_alone():
    plan = PLANS[0]
    state, other = trained(plan), trained(plan)
    alone = dataclasses.replace(other, stream=tbptt.Stream(carry_of(other)))
    found, expected = (tbptt.gradient(s, stream(1), plan) for s in (alone, state))
    pair = (tbptt.gradient(s, stream(1), tbptt.Truncation(2, 2)) for s in (alone, state))
    jax.tree.map(np.testing.assert_array_equal, *pair)
    # The steps before the carry are gone, so that the gradient reaches less far.
    assert not np.allclose(found["readout"]["kernel"], expected["readout"]["kernel"])


@pytest.mark.parametrize("batch", [make_batch(6), stream()], ids=["sequences", "stream"])
def test_lower_is_the_program_of_a_step_and_leaves_the_state(batch):
    state, plan = make_state("lstm"), PLANS[1]
    if batch.reset is not None:
        state, _ = tbptt.train_step(state, batch, plan)
    lowered = tbptt.lower(state, batch, plan)
    assert isinstance(lowered, jax.stages.Lowered)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    _, metrics = lowered.out_info
    assert metrics.loss.shape == (2,)
    compiled = lowered.compile()
    assert compiled.memory_analysis() is not None
    tbptt.train_step(state, batch, plan)
