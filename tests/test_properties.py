"""What holds for any plan, mask, reset and cut: hypothesis looks for what breaks it.

The properties of the data functions that move whole sequences are in test_data.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tbptt_jax as tbptt
from tbptt_jax import data
from tbptt_jax.checkpoints.arrays import pack, unpack
from tbptt_jax.estimators.window import forward, loss_weights, scored_sum
from tests.networks import (
    LOSSES,
    as_numpy,
    assert_close,
    carry_of,
    cut,
    make_batch,
    make_model,
    make_state,
    randomize,
)

ROWS = 2
# Each plan and shape is compiled: few of them, in many combinations. For the same reason what fails
# is reported as found: to shrink it takes minutes.
properties = functools.partial(
    settings, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
anchors = st.sampled_from(["update", "loss"])
marks = st.sampled_from(["", "m", "r", "w", "mrw"])


def flags(length, rows=ROWS):
    return hnp.arrays(bool, (rows, length))


def as_stream(batch):
    """The batch as a stream that begins with it, with the resets it has."""
    shape = np.shape(batch.targets)[:2]
    reset = np.zeros(shape, bool) if batch.reset is None else np.array(batch.reset)
    reset[:, 0] = True
    return batch._replace(reset=reset)


# ------------------------------------------------------------------- the definition of a truncation

# Each step adds a parameter of its own to the carry, which is the output: d y_t / d theta_s is 1
# where the gradient passes from t to s, and 0 elsewhere.
ADDING = tbptt.Model(
    initialize_carry=lambda params, shape: jnp.zeros(shape),
    encode=lambda params, inputs, rng: params[inputs],
    step=lambda params, carry, x: (carry + x, carry + x),
    readout=lambda params, ys, rng: ys,
)
DESCENT = optax.sgd(1.0)


def times(outputs, targets):
    return outputs * targets


def defined(plan, lengths, batch):
    """What a stream in batches of these lengths trains its parameters with, as DESIGN.md has it.

    Step t of a row has the loss 2**t y_t, so that the sum over t says which of them are in it.
    """
    rows, total = batch.inputs.shape
    moved = np.zeros((rows, total))
    ends, start = [], 0
    for length in lengths:
        ends += [(start + i, start + min(i + plan.k1, length)) for i in range(0, length, plan.k1)]
        start += length
    for previous, e in ends:
        part, weight = np.zeros((rows, total)), 0.0
        for t in range(previous + 1, e + 1):
            anchor = e if plan.anchor == "update" else t
            reached = [s for s in range(1, t + 1) if s > anchor - plan.k2]
            for b in range(rows):
                if not (reached and batch.mask[b, t - 1]):
                    continue
                weight += batch.weights[b, t - 1]
                for s in reached:
                    # A reset before step r cuts off what is earlier than r.
                    if batch.mask[b, s - 1] and not batch.reset[b, s:t].any():
                        part[b, s - 1] += batch.weights[b, t - 1] * 2.0**t
        if weight > 0:
            moved += part / weight
    return moved.reshape(-1)


@given(
    k1=st.sampled_from([1, 2, 3]),
    k2=st.sampled_from([1, 2, 4]),
    anchor=anchors,
    lengths=st.sampled_from([(7,), (4, 3)]),
    seed=st.integers(0, 999),
)
@properties(max_examples=22)
def test_what_is_trained_with_is_the_definition(k1, k2, anchor, lengths, seed):
    plan, rng = tbptt.Truncation(k1, k2, anchor), np.random.default_rng(seed)
    batch = as_stream(
        tbptt.Batch(
            inputs=np.arange(ROWS * 7).reshape(ROWS, 7),
            targets=np.broadcast_to(2.0 ** np.arange(1, 8), (ROWS, 7)),
            mask=rng.random((ROWS, 7)) > 0.2,
            reset=rng.random((ROWS, 7)) < 0.2,
            weights=rng.choice([0.0, 0.5, 1.0, 2.0], (ROWS, 7)),
        )
    )
    params = np.linspace(-1, 1, ROWS * 7)
    state = tbptt.TrainState.create(ADDING, DESCENT, times, params=params)
    start = 0
    for length in lengths:
        state, _ = tbptt.train_step(state, cut(batch, start, start + length), plan)
        start += length
    expected = defined(plan, lengths, batch)
    np.testing.assert_allclose(params - state.params, expected, rtol=0, atol=1e-10)


def plain_loss(graph, rest, batch, params):
    """The mean loss of whole sequences, written out by flax alone."""
    model: Any = nnx.merge(graph, params, rest)
    rows, length = batch.targets.shape
    initial = carry = model.core.initialize_carry((rows, 2), nnx.Rngs(0))
    total = 0.0
    for t in range(length):
        if batch.reset is not None:
            carry = choose(batch.reset[:, t], initial, carry)
        new, y = model.core(carry, model.encoder(batch.inputs[:, t]))
        carry = new if batch.mask is None else choose(batch.mask[:, t], new, carry)
        total += jnp.sum(
            LOSSES["xent"](model.readout(y), batch.targets[:, t]) * weights_of(batch)[:, t]
        )
    return total / weights_of(batch).sum()


def choose(flags, on_true, on_false):
    return jax.tree.map(lambda a, b: jnp.where(flags[:, None], a, b), on_true, on_false)


def weights_of(batch):
    weights = np.ones(batch.targets.shape) if batch.weights is None else batch.weights
    return weights if batch.mask is None else weights * batch.mask


@given(
    core=st.sampled_from(["rnn", "lstm"]),
    beyond=st.sampled_from([0, 4]),
    anchor=anchors,
    marks=marks,
    seed=st.integers(0, 9),
)
@properties(max_examples=5)
def test_credit_over_the_whole_sequence_is_full_bptt(core, beyond, anchor, marks, seed):
    batch = make_batch(5, marks, seed=seed)
    graph, _, rest = nnx.split(make_model(core), nnx.Param, ...)
    state = make_state(core)
    expected = jax.jit(jax.grad(functools.partial(plain_loss, graph, rest, batch)))(state.params)
    plan = tbptt.Truncation(5, 5 + beyond, anchor)
    assert_close(as_numpy(tbptt.gradient(state, batch, plan)), as_numpy(expected))


# ------------------------------------------------------------ what changes nothing


@given(
    plan=st.sampled_from([(2, 2, "update"), (3, 2, "update"), (2, 5, "update"), (2, 3, "loss")]),
    stream=st.booleans(),
    mask=flags(6),
    garbage=st.sampled_from([np.nan, 1e9]),
)
@properties(max_examples=7)
def test_padding_at_the_end_changes_nothing(plan, stream, mask, garbage):
    """An update falls on the last step with and without it: after that there is only padding."""
    mask[0, 5] = True  # so that something is scored
    plan, batch = tbptt.Truncation(*plan), make_batch(6, "w", "mse")._replace(mask=mask)
    batch = as_stream(batch) if stream else batch

    def longer(x):
        widths = [(0, 0), (0, 4)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=False if x.dtype == bool else garbage)

    (state, metrics), (padded, more) = (
        tbptt.train_step(make_state("rnn", "mse"), given, plan)
        for given in (batch, jax.tree.map(longer, batch))
    )
    count = 6 // plan.k1
    assert_close((padded.params, padded.step), (state.params, state.step), tolerance=1e-12)
    assert_close(jax.tree.map(lambda m: m[:count], more), metrics, tolerance=1e-12)
    assert not more.weight[count:].any()
    # With lookback the windows of the padding replay the carry with newer parameters.
    if plan.k2 <= plan.k1:
        assert_close(carry_of(padded), carry_of(state), tolerance=1e-12)


@given(
    plan=st.sampled_from([(3, 1, "update"), (2, 5, "update"), (2, 3, "loss")]),
    order=st.permutations(range(4)),
    marks=st.sampled_from(["", "mrw"]),
    seed=st.integers(0, 9),
)
@properties(max_examples=5)
def test_the_order_of_the_rows_is_that_of_the_carries_and_of_nothing_else(plan, order, marks, seed):
    plan, results = tbptt.Truncation(*plan), []
    pieces = [make_batch(5, marks, rows=4, seed=seed + i) for i in range(2)]
    pieces = [p if marks else p._replace(reset=np.zeros((4, 5), bool)) for p in pieces]
    for rows in (list(range(4)), order):
        state, metrics = make_state("rnn"), None
        for piece in pieces:
            piece = jax.tree.map(lambda x, rows=rows: x[rows], piece)
            state, metrics = tbptt.train_step(state, piece, plan)
        results.append(as_numpy((state.params, metrics, carry_of(state))))
    (*expected, carry), (*found, permuted) = results
    assert_close(found, expected, tolerance=1e-12)
    assert_close(permuted, jax.tree.map(lambda c: c[order], carry), tolerance=1e-12)


@given(
    k2=st.sampled_from([2, 5]),
    anchor=anchors,
    windows=st.sampled_from([(1, 1, 2), (2, 2), (3, 1), (1, 3)]),
    marks=st.sampled_from(["mw", "mrw"]),
    seed=st.integers(0, 9),
)
@properties(max_examples=5)
def test_a_stream_may_be_cut_anywhere_between_updates(k2, anchor, windows, marks, seed):
    plan, whole = tbptt.Truncation(2, k2, anchor), as_stream(make_batch(8, marks, seed=seed))
    expected, expected_metrics = tbptt.train_step(make_state("rnn"), whole, plan)
    state, start, metrics = make_state("rnn"), 0, []
    for count in windows:
        state, m = tbptt.train_step(state, cut(whole, start, start + 2 * count), plan)
        start += 2 * count
        metrics.append(m)
    assert_close(state.params, expected.params, tolerance=1e-12)
    assert_close(carry_of(state), carry_of(expected), tolerance=1e-12)
    joined = jax.tree.map(lambda *m: jnp.concatenate(m), *metrics)
    assert_close(joined, expected_metrics, tolerance=1e-12)


# -------------------------------------------------- where no gradient goes, and no update


@functools.partial(jax.jit, static_argnames="functions")
def gradient_of_inputs(functions, params, carry, window):
    """By one reverse pass, which for the fused cells is written by hand."""

    def loss(inputs):
        given = window._replace(inputs=inputs)
        _, ys, _ = forward(functions, params, carry, given)
        weights: Any = loss_weights(given)
        return scored_sum(functions, LOSSES["xent"], params, ys, given, weights, None)

    return jax.grad(loss)(window.inputs)


@functools.partial(jax.jit, static_argnames=("functions", "reach"))
def gradients_through_a_window(functions, params, carry, window, reach):
    """Of the loss that a window tells, with respect to its inputs and its carry."""

    def loss(inputs, carry):
        given = window._replace(inputs=inputs)
        value, _ = tbptt.window_value_and_grad(
            functions, LOSSES["xent"], params, carry, given, reach=reach
        )
        return value.loss

    return jax.grad(loss, argnums=(0, 1))(window.inputs, carry)


def window_of(batch):
    return tbptt.Window(
        batch.inputs, batch.targets, batch.weights, mask=batch.mask, reset=batch.reset
    )


def some_carry(core):
    part = np.full((ROWS, 3), 0.3)
    return part if core in ("rnn", "gru") else (part, -part)


cores = st.sampled_from(["rnn", "gru", "lstm", "flax_lstm"])


@given(
    core=cores,
    at=st.lists(st.integers(1, 5), min_size=ROWS, max_size=ROWS),
    mask=flags(6),
    reset=flags(6),
)
@properties(max_examples=25)
def test_no_gradient_of_an_input_crosses_a_reset_or_comes_from_a_masked_step(core, at, mask, reset):
    state, steps = make_state(core), np.arange(6)
    at = np.array(at)[:, None]
    # Losses from the reset on; the last step is there, so that there is one.
    mask, reset = mask | (steps == 5), reset | (steps == at)
    reset[:, -1] &= at[:, 0] == 5
    batch = make_batch(6)._replace(mask=mask, reset=reset, weights=np.where(steps >= at, 1.0, 0.0))
    grads = gradient_of_inputs(state.functions, state.params, some_carry(core), window_of(batch))
    felt = np.abs(grads).sum(-1)
    assert not felt[(steps < at) | ~mask].any()
    assert (felt[:, -1] > 0).all()


@pytest.mark.parametrize("core", ["rnn", "lstm"])
@pytest.mark.parametrize("reach", [None, 2])
def test_the_carry_before_a_window_is_a_constant(core, reach):
    """Also where someone differentiates through a window, as in meta-learning."""
    state, batch = make_state(core), make_batch(4)
    inputs, carry = gradients_through_a_window(
        state.functions, state.params, some_carry(core), window_of(batch), reach
    )
    assert np.abs(inputs).min() > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(carry))


def test_dropout_falls_on_steps_that_are_not_scored():
    """The only step that is scored is masked: the carry shows the others alone."""
    batch = as_stream(make_batch(4))._replace(mask=np.array([[True, True, True, False]] * ROWS))
    carries = []
    for rate, seed in ((0.5, 1), (0.5, 2), (0.0, 1)):
        model: Any = make_model("rnn")
        model.encoder = nnx.Sequential(model.encoder, nnx.Dropout(rate, rngs=nnx.Rngs(3)))
        state = randomize(tbptt.TrainState.create(model, DESCENT, LOSSES["xent"]), seed=1)
        state = tbptt.TrainState.create(
            state.functions, DESCENT, state.loss, params=state.params, seed=seed
        )
        with pytest.warns(UserWarning, match="no step is scored"):
            state, _ = tbptt.train_step(state, batch, tbptt.Truncation(4, 1))
        assert int(state.step) == 0
        carries.append(np.asarray(carry_of(state)))
    for i in range(3):
        assert np.any(carries[i] != carries[i - 1])


# --------------------------------------------------------------------------- data and what is kept


@given(
    length=st.integers(1, 12),
    steps=st.integers(1, 14),
    marked=st.sets(st.sampled_from(["mask", "reset", "weights"])),
    seed=st.integers(0, 99),
)
@properties(max_examples=80)
def test_pieces_joined_are_the_batch_and_padding(length, steps, marked, seed):
    rng = np.random.default_rng(seed)
    shape = 3, length
    batch = tbptt.Batch(
        {"a": rng.normal(size=(*shape, 2)), "b": rng.integers(1, 9, shape)},
        rng.integers(1, 9, shape),
        mask=rng.random(shape) > 0.4 if "mask" in marked else None,
        reset=rng.random(shape) > 0.6 if "reset" in marked else None,
        weights=rng.random(shape) if "weights" in marked else None,
    )
    pieces = data.lanes(batch, steps=steps)
    assert all(np.shape(leaf)[1] == steps for p in pieces for leaf in jax.tree.leaves(p))
    whole = jax.tree.map(lambda *p: np.concatenate(p, axis=1), *pieces)
    beyond = whole.reset.shape[1] - length
    assert 0 <= beyond < steps
    exists = np.ones(shape, bool) if batch.mask is None else batch.mask
    expected = batch._replace(mask=batch.mask if beyond == 0 else exists)
    if batch.reset is None:
        expected = expected._replace(reset=np.arange(length) < np.ones((3, 1)))
    padding = [(0, 0), (0, beyond)]
    expected = jax.tree.map(lambda x: np.pad(x, padding + [(0, 0)] * (x.ndim - 2)), expected)
    jax.tree.map(np.testing.assert_array_equal, whole, expected)
    begun = (
        batch
        if batch.reset is None
        else batch._replace(reset=batch.reset | (np.arange(length) == 0))
    )
    split = data.naive_split(begun, steps=steps)
    rows = jax.tree.map(
        lambda x: np.concatenate([x[i :: len(pieces)] for i in range(len(pieces))]), split
    )
    expected_rows = jax.tree.map(lambda *p: np.concatenate(p), *data.lanes(begun, steps=steps))
    jax.tree.map(np.testing.assert_array_equal, rows, expected_rows)


@given(
    length=st.integers(1, 9),
    every=st.none() | st.integers(1, 10),
    draw=st.data(),
)
@properties(max_examples=80)
def test_losses_are_marked_where_it_says(length, every, draw):
    mask = draw.draw(st.none() | flags(length))
    batch = tbptt.Batch(np.zeros((ROWS, length, 1)), np.zeros((ROWS, length)), mask=mask)
    weights = data.mark_losses(batch, every=every).weights
    for b in range(ROWS):
        there = [t for t in range(1, length + 1) if mask is None or mask[b, t - 1]]
        asked = {t for t in there if every is not None and t % every == 0} | set(there[-1:])
        assert [float(t in asked) for t in range(1, length + 1)] == weights[b].tolist()


@given(
    kind=st.sampled_from(["float32", "int32", "bool", "bfloat16", "key"]),
    seed=st.integers(0, 9),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
@properties(max_examples=40)
def test_a_changed_byte_of_an_array_is_noticed(kind, seed, where, bit):
    leaf = jax.random.key(seed)
    if kind != "key":
        leaf = jax.random.randint(leaf, (3, 2), 0, 2).astype(kind)
    array, metadata = pack("['w']", leaf)
    again = unpack(array, metadata)
    assert again.dtype == leaf.dtype
    assert bool((again == leaf).all())
    content = bytearray(array.tobytes())
    content[int(where * len(content))] ^= 1 << bit
    changed = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)
    with pytest.raises(ValueError, match=r"\['w'\]"):
        unpack(changed, metadata)
