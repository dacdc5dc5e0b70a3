"""Bad input raises an exception that names it: one test for each case of `tests.bad_input`.

`test_checks` has the shapes and dtypes of a batch, for each function that takes one.
"""

# The cases are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import difflib
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import data
from tbptt_jax.validation import values
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
from tests.bad_input.messages import CASES, raised, read
from tests.networks import assert_close, make_batch, make_state

# Messages that are not "argument must be so, got that", and what they name.
OTHER_FORMS = {
    "a core of other features": ("model", "core", "float32[2, 4]", "{cause}"),
    "a short last interval": ("T=4", "k1=3", "k2=3"),
    "another batch size in a stream": ("inputs", "2 rows", "3 rows", "reset"),
    "another batch size in an evaluated stream": ("inputs", "2 rows", "1 rows", "reset"),
    "batch statistics": ("model", "BatchStat", "nnx.LayerNorm"),
    "block without its anchor": ("block=2", 'anchor="loss"', "anchor='update'"),
    "block without reach": ("block", "reach", "None"),
    "carry of another dtype": ("carry[0]", "float32[2, 4]", "float16[2, 4]"),
    "core hides its cell": ("SequenceModel.core", "`cell`", "GRUCell"),
    "encoder counts steps": ("the encoder must", "step 0"),
    "encoder mixes steps": ("the encoder must", "at step "),
    "explicit axes": ("traced", "'rows'", "outside of jit", "AxisType.Auto"),
    "function of a model uses a layer": ("Model: readout", "`LAYER`", "Linear", "`params`"),
    "inputs of other features": ("inputs", "encoder", "float32[2, 4, 3]", "{cause}"),
    "like of another shape": ("{folder}", "['a']", "float64[3]", "float64[4]"),
    "like under another name": ("{folder}", "['a']", "['b']", "float64[3]"),
    "loss a layer": ("loss", "Linear", "nnx.merge"),
    "loss mixes steps": ("loss must", "at step "),
    "loss of no arguments": ("loss", "outputs float32[2, 4, 3]", "{cause}"),
    "loss uses a layer": ("loss", "`LAYER`", "Linear", "nnx.merge"),
    "metric mixes steps": ("metric 'total' must", "at step "),
    "metrics that fail": ("'accuracy'", "outputs float32[2, 4, 3]", "int64[2, 4]", "{cause}"),
    "no module of functions": ("state", "pure functions", "nnx", "state.params"),
    "no step exists": ("`weights`", "`mask`", "0", "data.mark_losses"),
    "no unroll to check": ("model", "unroll"),
    "no weight in a stream": ("`weights`", "`mask`", "0", "data.mark_losses", "stream"),
    "no weight to credit_by_lag": ("`weights`", "`mask`", "0", "data.mark_losses"),
    "no weight to gradient": ("`weights`", "`mask`", "0", "data.mark_losses"),
    "no weight where a step exists": ("`weights`", "`mask`", "0", "data.mark_losses"),
    "no weight": ("`weights`", "`mask`", "0", "data.mark_losses"),
    "optimizer of two arguments more": ("optimizer lookahead", "{cause}", "value_fn"),
    "params superfluous": ("params", "SequenceModel", "Model"),
    "readout mixes steps": ("the readout must", "at step "),
    "readout uses a layer": ("SequenceModel.readout", "`LAYER`", "Linear", "nnx.Module"),
    "state donated to evaluate": ("state.params", "train_step", "state.copy()"),
    "state donated to predict": ("state.params", "train_step", "state.copy()"),
    "state donated": ("state.params", "train_step", "state.copy()"),
    "targets of other features": ("loss", "targets float64[2, 4, 4]", "{cause}"),
    "unroll of other outputs": ("ys of unroll", "neither mask nor reset"),
    "unroll of two results": ("unroll must return", "got tuple"),
    "unroll with carries of rows first": ("carries of unroll", "[4, 2, 4]", "[2, 4, 4]"),
    "weights that the plan leaves out": ("k1=2", "k2=1", "`weights`", "0"),
}


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_named(case):
    expected, message = read().get(case[0], ""), raised(case)
    if message != expected:
        difference = "\n".join(difflib.ndiff(expected.splitlines(), message.splitlines()))
        pytest.fail(f"python -m tests.bad_input accepts this:\n{difference}", pytrace=False)


def test_the_file_has_each_case_once_in_order():
    assert list(read()) == sorted(case[0] for case in CASES)
    assert len(CASES) >= 238


def argument_names() -> set[str]:
    """The names of what the public functions and methods take."""
    public = [getattr(module, name) for module in (tbptt, data) for name in module.__all__]
    methods = [
        method
        for cls in filter(inspect.isclass, public)
        for name, method in inspect.getmembers(cls, inspect.isroutine)
        if name == "__init__" or not name.startswith("_")
    ]
    functions = [*filter(callable, public), *methods]
    return {name for function in functions for name in inspect.signature(function).parameters}


def test_messages_name_the_argument_what_it_must_be_and_what_came():
    names = {*argument_names(), "metric"}  # the latter is one of `metrics`
    for case, message in read().items():
        if case in OTHER_FORMS:
            assert all(part in message for part in OTHER_FORMS[case]), f"{case}: {message}"
        else:
            form = re.fullmatch(r"\w+: (.*: )?(\w+)\S*( '\w+')? must .+, got .+", message)
            assert form is not None, f"{case}: {message}"
            assert form[2] in names, f"{case}: {message}"


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
    readout = nnx.Sequential(
        nnx.Linear(4, 2 * CLASSES, rngs=rngs()),
        lambda ys: ys.reshape(*ys.shape[:2], CLASSES, 2),
    )
    model = tbptt.SequenceModel(embed(), tbptt.LSTM(4, 4, rngs=rngs()), readout)

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

    assert values.read(OnAccelerator()) is None


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="no step is scored") as warned:
        tbptt.train_step(create(), TEXT._replace(weights=NONE, reset=STREAM), PLAN)
    assert warned[0].filename == __file__


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
