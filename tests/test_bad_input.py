"""What a careless caller gives, and what is said: a row for each bad input, a test for each row.

`test_checks` has the shapes and dtypes of a batch, for each function that takes one.
"""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import values
from tests.bad_input.calls import (
    CLASSES,
    GOAL,
    IDS,
    LABELS,
    NONE,
    NUMBERS,
    ONES,
    PLAN,
    SERIES,
    STATE,
    STATE_FOR_NUMBERS,
    STREAM,
    TEXT,
    WORDS,
    XENT,
    B,
    T,
    create,
    embed,
    network,
    put,
    rngs,
)
from tests.bad_input.checkpoints import CHECKPOINTS
from tests.bad_input.data import DATA
from tests.bad_input.plans import PLANS
from tests.bad_input.training import TRAINING
from tests.bad_input.values import VALUES
from tests.networks import assert_close, make_batch, make_state

ROWS = [*VALUES, *TRAINING, *PLANS, *DATA]


def meant(said: str, message: str) -> bool:
    """Whether a message is the one of the table."""
    return said.startswith(message) if message.endswith(": ") else said == message


@pytest.mark.parametrize(
    ("call", "kind", "message"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind) as told:  # warnings are errors in the tests
        call()
    assert meant(str(told.value), message), told.value


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [row[1:] for row in CHECKPOINTS],
    ids=[row[0] for row in CHECKPOINTS],
)
def test_a_bad_checkpoint_is_named(tmp_path, call, kind, message):
    with pytest.raises(kind) as told:
        call(tmp_path)
    message = message.replace("{folder}", str(tmp_path)).replace("{float}", "float64")
    assert str(told.value) == message


def test_every_row_has_a_name_of_its_own():
    names = [row[0] for row in (*ROWS, *CHECKPOINTS)]
    assert len(set(names)) == len(names) >= 70


# ------------------------------------------------------------------------------- no false alarm


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_padding_may_hold_anything(to):
    mask = put(False, ~STREAM)
    bad = TEXT._replace(inputs=put(-7, IDS), targets=put(99, LABELS), weights=put(-np.inf, ONES))
    good, bad = (jax.tree.map(to, batch._replace(mask=mask)) for batch in (TEXT, bad))
    assert_close(tbptt.gradient(STATE, bad, PLAN), tbptt.gradient(STATE, good, PLAN), 0)
    assert tbptt.evaluate(STATE, bad) == tbptt.evaluate(STATE, good)
    series = NUMBERS._replace(inputs=put(np.nan, SERIES), targets=put(np.inf, GOAL), mask=mask)
    assert np.isfinite(tbptt.evaluate(STATE_FOR_NUMBERS, jax.tree.map(to, series))["loss"])


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_targets_without_weight_may_be_anything(to):
    weights = put(0, ONES)
    bad = TEXT._replace(targets=put(-1, LABELS), weights=weights)
    good, bad = (jax.tree.map(to, b) for b in (TEXT._replace(weights=weights), bad))
    assert_close(tbptt.gradient(STATE, bad, PLAN), tbptt.gradient(STATE, good, PLAN), 0)
    series = NUMBERS._replace(targets=put(np.nan, GOAL), weights=weights)
    assert np.isfinite(tbptt.evaluate(STATE_FOR_NUMBERS, jax.tree.map(to, series))["loss"])


def test_predict_looks_at_inputs_alone():
    expected = tbptt.predict(STATE, TEXT)
    unknown = TEXT._replace(targets=np.full((B, T), -1), weights=NONE)
    np.testing.assert_array_equal(tbptt.predict(STATE, unknown), expected)


def test_the_edges_of_a_range_are_inside_it():
    batch = TEXT._replace(inputs=put(WORDS - 1, IDS), targets=put(CLASSES - 1, LABELS))
    assert np.isfinite(tbptt.evaluate(STATE, batch)["loss"])


def test_an_encoder_that_makes_its_ids_itself_takes_any():
    class Hashed(nnx.Embed):
        def __call__(self, inputs, out_sharding=None):
            return super().__call__(jnp.abs(inputs) % WORDS)

    state = create(network(Hashed(WORDS, 4, rngs=rngs())))
    assert state.functions.vocabulary is None
    assert np.isfinite(tbptt.evaluate(state, TEXT._replace(inputs=put(-12345, IDS)))["loss"])


def test_labels_along_another_axis_are_of_its_classes():
    """Outputs [B, T, classes, 2]: two labels for each step."""
    readout = nnx.Linear(4, 2 * CLASSES, rngs=rngs())
    model = tbptt.SequenceModel(
        embed(),
        tbptt.LSTM(4, 4, rngs=rngs()),
        lambda ys: readout(ys).reshape(*ys.shape[:2], CLASSES, 2),
    )

    def mean(outputs, targets):
        return functools.partial(XENT, axis=2)(outputs, targets).mean(-1)

    for loss in (mean, functools.partial(XENT, axis=(2, 3))):
        targets = np.stack([LABELS, LABELS], -1) if loss is mean else LABELS
        assert np.isfinite(
            tbptt.evaluate(create(model, loss=loss), TEXT._replace(targets=targets))["loss"]
        )


def test_traced_batches_have_no_values_to_look_at():
    step = jax.jit(tbptt.train_step, static_argnames="truncation")
    bad = TEXT._replace(inputs=put(WORDS, IDS))
    _, metrics = step(create(), bad, truncation=PLAN)
    np.testing.assert_array_equal(metrics.finite, [True, False])
    # What is known of an array that is traced is said all the same.
    with pytest.raises(TypeError, match="inputs must be integers, ids from 0 to 9"):
        step(create(), TEXT._replace(inputs=IDS.astype(np.float32)), truncation=PLAN)


@pytest.mark.parametrize("field", ["mask", "weights"])
def test_what_a_traced_mark_may_hide_is_no_error(field):
    mark = put(0, ONES).astype(bool if field == "mask" else float)
    bad = TEXT._replace(targets=put(-1, LABELS))

    def loss(mark):
        grads = tbptt.gradient(STATE, bad._replace(**{field: mark}), PLAN)
        return optax.tree.norm(grads)

    assert np.isfinite(jax.jit(loss)(mark))


def test_arrays_on_an_accelerator_are_not_read():
    class OnAccelerator:
        is_fully_addressable = True

        def devices(self):
            return {type("Device", (), {"platform": "gpu"})()}

        def __array__(self, *_):
            raise AssertionError("read")

    assert values._read(OnAccelerator()) is None


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="no step is scored") as told:
        tbptt.train_step(create(), TEXT._replace(weights=NONE, reset=STREAM), PLAN)
    assert told[0].filename == __file__


def test_a_sequence_shorter_than_a_window_trains():
    """Against the gradient of a recurrence that is written here, over all of its steps."""
    batch, state = make_batch(3), make_state("rnn")

    def mean_loss(params):
        def layer(part, x):
            return x @ part["kernel"] + part.get("bias", 0)

        core, h, outputs = params["core"], jnp.zeros((2, 3)), []
        for t in range(3):
            x = layer(params["encoder"], batch.inputs[:, t])
            h = jnp.tanh(layer(core["dense_i"], x) + layer(core["dense_h"], h))
            outputs.append(layer(params["readout"], h))
        return XENT(jnp.stack(outputs, axis=1), batch.targets).mean()

    with jax.numpy_rank_promotion("allow"):
        loss, expected = jax.value_and_grad(mean_loss)(state.params)
    assert_close(tbptt.gradient(state, batch, tbptt.Truncation(30, 30)), expected)
    assert_close(tbptt.gradient(state, batch, tbptt.Truncation(30, 30, "loss")), expected)
    updated = jax.tree.map(lambda p, g: p - 0.3 * g, state.params, expected)
    after, metrics = tbptt.train_step(state, batch, tbptt.Truncation(30, 30))
    assert_close(after.params, updated)
    np.testing.assert_allclose(metrics.loss, [loss], rtol=1e-10)


def test_a_state_of_numpy_arrays_is_a_state():
    state = jax.device_get(create())
    assert np.isfinite(tbptt.evaluate(state, TEXT)["loss"])
