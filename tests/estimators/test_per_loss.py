"""Windows of each loss: blocks, streams, any cell, memory. The grid is in test_against_oracle."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tests import oracle
from tests.models.test_sequence_model import make, plain_losses
from tests.networks import (
    CORES,
    FEATURES,
    LOSSES,
    as_numpy,
    assert_close,
    carry_of,
    cut,
    make_batch,
    make_state,
    randomize,
)

LENGTH = 9


@pytest.mark.parametrize(
    ("core", "block", "marks"),
    [
        ("learnt_lstm", 1, "mw"),  # no reset: the first carry has its gradient
        ("gru", 4, "m"),
        pytest.param("rnn", 3, "", marks=pytest.mark.slow),  # divides the length
        pytest.param("learnt_rnn", 8, "rw", marks=pytest.mark.slow),
        pytest.param("lstm", 40, "mr", marks=pytest.mark.slow),  # no block at all
    ],
)
def test_blocks_change_nothing(core, block, marks):
    state, batch, cell = make_state(core), make_batch(LENGTH, marks), CORES[core][0]
    for k1 in (LENGTH, 4):
        plan = tbptt.Truncation(k1, 3, anchor="loss", block=block)
        expected, _ = oracle.gradient(cell, "xent", as_numpy(state.params), batch, k1, 3, "loss")
        assert_close(as_numpy(tbptt.gradient(state, batch, plan)), expected)


def test_a_step_that_is_singular_at_zero_has_blocks():
    """The last of four blocks of 2 has one step of seven: what fills it must be no zero."""

    def step(params, h, x):
        x = params["x"] * x
        h = jnp.tanh(params["h"] * h + x / jnp.linalg.norm(x, axis=-1, keepdims=True))
        return h, h

    model = tbptt.Model(
        initialize_carry=lambda params, shape: jnp.zeros(shape),
        encode=lambda params, inputs, rng: inputs,
        step=step,
        readout=lambda params, ys, rng: ys,
    )
    params = {"x": jnp.array([[1.0, 2.0, 3.0]]), "h": jnp.array([[0.5, -0.4, 0.3]])}
    state = tbptt.TrainState.create(model, optax.sgd(0.1), LOSSES["mse"], params=params)
    inputs, targets = np.random.default_rng(0).uniform(0.5, 1.5, (2, 2, 7, 3))
    found, expected = (
        tbptt.gradient(state, tbptt.Batch(inputs, targets), tbptt.Truncation(7, 3, "loss", block))
        for block in (2, None)
    )
    assert np.all(np.asarray(expected["x"]) != 0)
    assert_close(found, expected, tolerance=1e-12)


@pytest.mark.parametrize("k2", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_batch_may_be_cut_at_multiples_of_k1(k2):
    plan = tbptt.Truncation(2, k2, anchor="loss")
    whole = make_batch(7, "mrw", seed=2)
    reset = np.array(whole.reset)
    reset[:, [2, 4, 6]] = False
    whole = whole._replace(reset=reset)
    expected, losses = tbptt.train_step(make_state("lstm"), whole, plan)
    state, metrics = make_state("lstm"), []
    for start, stop in ((0, 2), (2, 6), (6, 7)):
        state, m = tbptt.train_step(state, cut(whole, start, stop), plan)
        metrics.append(m)
    assert_close(state.params, expected.params, tolerance=1e-12)
    assert_close(carry_of(state), carry_of(expected), tolerance=1e-12)
    assert_close(jax.tree.map(lambda *m: jnp.concatenate(m), *metrics), losses, tolerance=1e-12)


def test_a_stream_may_change_its_anchor():
    state, params, carry = make_state("gru"), None, None
    batches = [make_batch(5, "r", seed=seed) for seed in range(3)]
    params = as_numpy(state.params)
    for batch, anchor in zip(batches, ("loss", "update", "loss"), strict=True):
        expected, _, carry = oracle.train(
            "gru", "xent", params, [batch], 3, 4, anchor, 0.3, carry=carry
        )
        state, _ = tbptt.train_step(state, batch, tbptt.Truncation(3, 4, anchor))  # pyright: ignore
        assert_close(as_numpy(state.params), expected)
        assert_close(as_numpy(carry_of(state)), carry)
        params = expected


@pytest.mark.parametrize(
    "name",
    [
        "own cell",
        "stack of three",
        "plain JAX",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("no encoder", "no readout")),
    ],
)
def test_any_cell_has_windows_of_each_loss(name):
    length, k2 = 8, 3
    state, batch = make(name), make_batch(length)
    losses = plain_losses(name, state, batch)
    _, pull = jax.vjp(losses, [state.params] * length)
    G = [pull(row)[0] for row in np.eye(length)]
    W = oracle.credit(length, k2, length, "loss")
    terms = [G[t][s] for t in range(length) for s in range(length) if W[t, s]]
    expected = jax.tree.map(lambda *g: sum(g) / (2 * length), *terms)
    for k1 in (length, 3):
        actual = tbptt.gradient(state, batch, tbptt.Truncation(k1, k2, anchor="loss"))
        assert_close(as_numpy(actual), as_numpy(expected))


def test_the_public_window_reaches_as_far_as_it_is_told():
    """A window of one's own: 3 steps of lookback, and losses that reach back 2."""
    state, batch, first, reach = make_state("lstm"), make_batch(7), 3, 2
    carry = (np.full((2, 3), 0.3), np.full((2, 3), -0.2))
    window = tbptt.Window(batch.inputs, batch.targets[:, first:], first=first)
    value, grads = tbptt.window_value_and_grad(
        state.functions, state.loss, state.params, carry, window, reach=reach
    )
    whole = batch._replace(reset=np.zeros((2, 7), bool))
    G, losses, _ = oracle.per_step_gradients("lstm", "xent", as_numpy(state.params), whole, carry)
    W = oracle.credit(1, reach, 7, "loss") * (np.arange(7) >= first)[:, None]
    assert_close(as_numpy(grads), jax.tree.map(lambda g: np.tensordot(W, g, axes=2), G))
    np.testing.assert_allclose(value.loss, losses[first:].sum(), rtol=1e-12)


def test_dropout_falls_on_the_same_places_as_in_a_reverse_pass():
    from tests.training.test_step import dropping

    state = randomize(tbptt.TrainState.create(dropping(), optax.sgd(0.3), LOSSES["xent"]))
    window, key = tbptt.Window(*make_batch(6)[:2]), jax.random.key(3)
    # Reaching over the whole window but for one pair of steps, a reset between makes both equal.
    reset = np.zeros((2, 6), bool)
    reset[:, 3] = True
    results = [
        tbptt.window_value_and_grad(
            state.functions,
            state.loss,
            state.params,
            None,
            window._replace(reset=reset),
            key,
            reach=reach,
        )
        for reach in (None, 5)
    ]
    assert_close(*results, tolerance=1e-12)


def temporary_bytes(length: int, block: int | None) -> int:
    """What a compiled step with one window over the whole sequence needs."""
    state = make_state("lstm")
    batch = tbptt.Batch(np.zeros((4, length, FEATURES)), np.zeros((4, length), np.int32))
    plan = tbptt.Truncation(length, 10, anchor="loss", block=block)
    analysis: Any = tbptt.lower(state, batch, plan).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_a_block_bounds_what_the_adjoints_keep():
    plain = [temporary_bytes(length, None) for length in (2_000, 4_000)]
    blocks = [temporary_bytes(length, 50) for length in (2_000, 4_000)]
    # The carries, inputs and outputs of the window grow with it all the same.
    assert blocks[1] - blocks[0] < 0.65 * (plain[1] - plain[0])
