"""What a careless caller gives, and what is said: a row for each bad input, a test for each row.

`test_checks` has the shapes and dtypes of a batch, for each function that takes one.
"""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import data, values
from tests.networks import assert_close, make_batch, make_state

B, T, WORDS, CLASSES, FEATURES = 2, 4, 10, 3, 2
PLAN = tbptt.Truncation(2, 2)
XENT = optax.losses.softmax_cross_entropy_with_integer_labels
IDS = np.arange(B * T).reshape(B, T)
LABELS = IDS % CLASSES
SERIES, GOAL = np.ones((B, T, FEATURES), np.float32), np.zeros((B, T, CLASSES), np.float32)
TEXT, NUMBERS = tbptt.Batch(IDS, LABELS), tbptt.Batch(SERIES, GOAL)
ONES, NONE, STREAM = np.ones((B, T)), np.zeros((B, T)), np.zeros((B, T), bool)
RAGGED = [np.arange(3), np.arange(5)]
MARKS = [np.array([False, True, False]), np.array([False] * 5)]
NOISE = np.random.default_rng(0).normal(size=50)


def mse(outputs, targets):
    return optax.losses.squared_error(outputs, targets).mean(-1)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def embed() -> nnx.Embed:
    return nnx.Embed(WORDS, 4, rngs=rngs())


def network(encoder: Any) -> tbptt.SequenceModel:
    core, readout = tbptt.LSTM(4, 4, rngs=rngs()), nnx.Linear(4, CLASSES, rngs=rngs())
    return tbptt.SequenceModel(encoder, core, readout)


def create(model: Any = None, optimizer: Any = None, loss: Any = XENT, **options: Any) -> Any:
    """A state for TEXT, with what is given in place of what is right."""
    model = network(embed()) if model is None else model
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return tbptt.TrainState.create(model, optimizer, loss, **options)


def for_numbers(loss: Any = mse) -> tbptt.TrainState:
    return create(network(nnx.Linear(FEATURES, 4, rngs=rngs())), loss=loss)


# They are given to train_step only where it refuses, which leaves them as they are.
STATE, STATE_FOR_NUMBERS = create(), for_numbers()
FUNCTIONS, PARAMS = tbptt.functional(network(embed()))


def put(value: Any, array: Any) -> Any:
    """A copy with another value in row 1 at step 2."""
    changed = np.array(array)
    changed[1, 2] = value
    return changed


def text(plan: tbptt.Truncation = PLAN, **fields: Any) -> Callable[[], Any]:
    """`train_step` on TEXT with other fields."""
    return lambda: tbptt.train_step(STATE, TEXT._replace(**fields), plan)


def numbers(**fields: Any) -> Callable[[], Any]:
    """`train_step` on NUMBERS with other fields."""
    return lambda: tbptt.train_step(STATE_FOR_NUMBERS, NUMBERS._replace(**fields), PLAN)


def wrong(function: Callable[..., Any], *args: Any, **fields: Any) -> Callable[[], Any]:
    """Another function on NUMBERS with other fields."""
    return lambda: function(STATE_FOR_NUMBERS, NUMBERS._replace(**fields), *args)


def misfit() -> Any:
    """A core that is not made for what the encoder gives."""
    state = create(tbptt.SequenceModel(embed(), tbptt.LSTM(5, 4, rngs=rngs())))
    return tbptt.train_step(state, TEXT, PLAN)


def donated() -> tbptt.TrainState:
    state = create()
    tbptt.train_step(state, TEXT, PLAN)
    return state


def stream_of_two_then_three() -> Any:
    batch = TEXT._replace(reset=STREAM)
    state, _ = tbptt.train_step(create(), batch, PLAN)
    return tbptt.train_step(state, jax.tree.map(lambda x: x[[0, 1, 1]], batch), PLAN)


def scored(metrics: Any) -> Callable[[], Any]:
    return lambda: tbptt.evaluate(STATE, TEXT, metrics)


def window(reach: Any = None, block: Any = None, carry: Any = None, **fields: Any) -> Any:
    """`window_value_and_grad` on the steps of TEXT with other fields."""
    given = tbptt.Window(IDS, LABELS)._replace(**fields)
    return lambda: tbptt.window_value_and_grad(
        FUNCTIONS, XENT, PARAMS, carry, given, reach=reach, block=block
    )


def buckets(sequences: Any = RAGGED, labels: Any = (0, 1), **options: Any) -> Callable[[], Any]:
    options = {"batch_size": 2, "multiple": 2, **options}
    return lambda: data.bucketed_batches(sequences, labels, **options)


def stretches(inputs: Any = IDS[0], **options: Any) -> Callable[[], Any]:
    return lambda: data.batchify(inputs, **{"batch_size": 1, "steps": 2, **options})


def checkpoints(use: Callable[[tbptt.Checkpoints], Any]) -> Callable[[pathlib.Path], Any]:
    """What is done with a folder of a checkpoint that holds three zeros as "a"."""

    def call(folder: pathlib.Path) -> Any:
        with tbptt.Checkpoints(folder) as kept:
            kept.save({"a": jnp.zeros(3)})
            kept.wait()
            use(kept)

    return call


def an_empty_file(folder: pathlib.Path) -> pathlib.Path:
    (folder / "file").touch()
    return folder / "file"


# ------------------------------------------------------------------------------- the table
#
# An id; a call; the error or warning; its message, or how it begins where JAX has the last word.

Row = tuple[str, Callable[..., Any], type[Exception], str]

VALUES: list[Row] = [
    (
        "inputs nan",
        numbers(inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs infinite",
        numbers(inputs=put(-np.inf, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got -inf in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan in one feature",
        numbers(inputs=put([1, np.nan], SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan in a JAX array",
        numbers(inputs=jnp.asarray(put(np.nan, SERIES))),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan in 16 bits",
        numbers(inputs=jnp.asarray(put(np.nan, SERIES), jnp.bfloat16)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan in a pytree",
        numbers(inputs={"x": put(np.nan, SERIES)}),
        ValueError,
        "Batch: inputs['x'] must be finite, got nan in row 1 at step 2 (both from 0); fill "
        "gaps, or set `mask` False there",
    ),
    (
        "inputs nan to predict",
        wrong(tbptt.predict, inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan to evaluate",
        wrong(tbptt.evaluate, inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan to gradient",
        wrong(tbptt.gradient, PLAN, inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan to credit_by_lag",
        wrong(tbptt.credit_by_lag, 1, inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan to gradient_bias",
        wrong(tbptt.gradient_bias, PLAN, inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "inputs nan for per-loss windows",
        wrong(tbptt.train_step, tbptt.Truncation(2, 2, "loss"), inputs=put(np.nan, SERIES)),
        ValueError,
        "Batch: inputs must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `mask` False there",
    ),
    (
        "ids too large",
        text(inputs=put(WORDS, IDS)),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got 10 in row"
        " 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids negative",
        text(inputs=put(-1, IDS)),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got -1 in row"
        " 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids too large in a JAX array",
        text(inputs=jnp.asarray(put(WORDS, IDS))),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got 10 in row"
        " 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids too large in unsigned integers",
        text(inputs=put(255, IDS.astype(np.uint8))),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got 255 in "
        "row 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids too large before dropout",
        lambda: tbptt.predict(
            create(network(nnx.Sequential(embed(), nnx.Dropout(0.5, rngs=rngs())))),
            TEXT._replace(inputs=put(WORDS, IDS)),
        ),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got 10 in row"
        " 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids too large for functions",
        lambda: tbptt.predict(
            create(FUNCTIONS, params=PARAMS), TEXT._replace(inputs=put(WORDS, IDS))
        ),
        ValueError,
        "Batch: inputs must be ids from 0 to 9, of the encoder's 10 embeddings, got 10 in row"
        " 1 at step 2 (both from 0); mask what is padded",
    ),
    (
        "ids floating",
        text(inputs=IDS.astype(np.float32)),
        TypeError,
        "Batch: inputs must be integers, ids from 0 to 9, of the encoder's 10 embeddings, got"
        " float32; use inputs.astype(np.int32)",
    ),
    (
        "targets nan",
        numbers(targets=put(np.nan, GOAL)),
        ValueError,
        "Batch: targets must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `weights` 0 there",
    ),
    (
        "targets infinite",
        numbers(targets=put(np.inf, GOAL)),
        ValueError,
        "Batch: targets must be finite, got inf in row 1 at step 2 (both from 0); fill gaps, "
        "or set `weights` 0 there",
    ),
    (
        "targets nan to evaluate",
        wrong(tbptt.evaluate, targets=put(np.nan, GOAL)),
        ValueError,
        "Batch: targets must be finite, got nan in row 1 at step 2 (both from 0); fill gaps, "
        "or set `weights` 0 there",
    ),
    (
        "labels too large",
        text(targets=put(CLASSES, LABELS)),
        ValueError,
        "Batch: targets must be labels from 0 to 2, of the model's 3 classes, got 3 in row 1 "
        "at step 2 (both from 0); unscored steps have weight 0",
    ),
    (
        "labels of -1",
        text(targets=put(-1, LABELS)),
        ValueError,
        "Batch: targets must be labels from 0 to 2, of the model's 3 classes, got -1 in row 1"
        " at step 2 (both from 0); unscored steps have weight 0",
    ),
    (
        "labels too large to evaluate",
        lambda: tbptt.evaluate(STATE, TEXT._replace(targets=put(CLASSES, LABELS))),
        ValueError,
        "Batch: targets must be labels from 0 to 2, of the model's 3 classes, got 3 in row 1 "
        "at step 2 (both from 0); unscored steps have weight 0",
    ),
    (
        "labels too large for a partial loss",
        lambda: tbptt.evaluate(
            create(loss=functools.partial(XENT, axis=2)),
            TEXT._replace(targets=put(CLASSES, LABELS)),
        ),
        ValueError,
        "Batch: targets must be labels from 0 to 2, of the model's 3 classes, got 3 in row 1 "
        "at step 2 (both from 0); unscored steps have weight 0",
    ),
    (
        "labels floating",
        text(targets=LABELS.astype(np.float32)),
        TypeError,
        "Batch: targets must be integers, labels from 0 to 2, of the model's 3 classes, got "
        "float32; use targets.astype(np.int32)",
    ),
    (
        "labels one-hot",
        text(targets=np.eye(CLASSES)[LABELS]),
        ValueError,
        "Batch: targets must be one label for each of the outputs, float32[2, 4, 3], got "
        "float64[2, 4, 3]; of one-hot labels take targets.argmax(-1)",
    ),
    (
        "weights negative",
        text(weights=put(-1, ONES)),
        ValueError,
        "Batch: weights must be 0 or more, got -1.0 in row 1 at step 2 (both from 0); a step "
        "without a loss has weight 0",
    ),
    (
        "weights nan",
        text(weights=put(np.nan, ONES)),
        ValueError,
        "Batch: weights must be finite, got nan in row 1 at step 2 (both from 0); a step "
        "without a loss has weight 0",
    ),
    (
        "weights infinite",
        text(weights=put(np.inf, ONES)),
        ValueError,
        "Batch: weights must be finite, got inf in row 1 at step 2 (both from 0); a step "
        "without a loss has weight 0",
    ),
    (
        "no weight",
        text(weights=NONE),
        ValueError,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see data.mark_losses",
    ),
    (
        "no weight where a step exists",
        text(weights=put(1, NONE), mask=put(False, ~STREAM)),
        ValueError,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see data.mark_losses",
    ),
    (
        "no step exists",
        text(mask=STREAM),
        ValueError,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see data.mark_losses",
    ),
    (
        "no weight to gradient",
        wrong(tbptt.gradient, PLAN, weights=NONE),
        ValueError,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see data.mark_losses",
    ),
    (
        "no weight to credit_by_lag",
        wrong(tbptt.credit_by_lag, 1, weights=NONE),
        ValueError,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see data.mark_losses",
    ),
    (
        "weights that the plan leaves out",
        text(tbptt.Truncation(2, 1), weights=put(1, NONE)),
        ValueError,
        "Batch: no step is scored: of k1=2 steps the plan scores the last k2=1, where "
        "`weights` are 0; raise k2, or move the losses",
    ),
    (
        "no weight in a stream",
        lambda: tbptt.train_step(create(), TEXT._replace(weights=NONE, reset=STREAM), PLAN),
        UserWarning,
        "Batch: no step is scored: `weights` or `mask` are 0 everywhere; see "
        "data.mark_losses. The batch only moves the carry of its stream, which is right if "
        "the losses come in later ones",
    ),
    (
        "no weight to evaluate",
        wrong(tbptt.evaluate, weights=NONE),
        ValueError,
        "evaluate: batches must have at least one step with a loss, got a total weight of "
        "0.0; see Batch.mask and Batch.weights, and whether the iterator is spent",
    ),
    (
        "another batch size in a stream",
        stream_of_two_then_three,
        ValueError,
        "Batch: inputs continue a stream of 2 rows (reset is given), got 3 rows; keep the "
        "batch size, or begin new streams with dataclasses.replace(state, carry=None, "
        "lookback=None)",
    ),
    (
        "another batch size in an evaluated stream",
        lambda: tbptt.evaluate(
            STATE,
            [
                TEXT._replace(reset=STREAM),
                jax.tree.map(lambda x: x[:1], TEXT._replace(reset=STREAM)),
            ],
        ),
        ValueError,
        "Batch: inputs continue a stream of 2 rows (reset is given), got 1 rows; keep the "
        "batch size, or evaluate other streams by themselves",
    ),
    (
        "inputs of strings",
        numbers(inputs=np.full((B, T, FEATURES), "a")),
        TypeError,
        "Batch: inputs must hold numbers, got <U1; give each symbol a number",
    ),
    (
        "targets of objects",
        numbers(targets=np.full((B, T), None)),
        TypeError,
        "Batch: targets must hold numbers, got object; give each symbol a number",
    ),
    (
        "inputs of other features",
        numbers(inputs=np.ones((B, T, 3), np.float32)),
        ValueError,
        "Batch: inputs float32[2, 4, 3] fail in the model's encoder: ",
    ),
    (
        "a core of other features",
        misfit,
        ValueError,
        "Batch: inputs int64[2, 4] fail in the model's core: ",
    ),
    (
        "targets of other features",
        numbers(targets=np.zeros((B, T, CLASSES + 1))),
        ValueError,
        "loss fails on outputs float32[2, 4, 3] and targets float64[2, 4, 4]: ",
    ),
]

TRAINING: list[Row] = [
    (
        "state a model",
        lambda: tbptt.train_step(network(embed()), TEXT, PLAN),
        TypeError,
        "state must be a tbptt_jax.TrainState, got SequenceModel; make it with "
        "TrainState.create, and go on with the first of the two that train_step returns",
    ),
    (
        "state with its metrics",
        lambda: tbptt.train_step(tbptt.train_step(create(), TEXT, PLAN), TEXT, PLAN),
        TypeError,
        "state must be a tbptt_jax.TrainState, got tuple; make it with TrainState.create, and"
        " go on with the first of the two that train_step returns",
    ),
    (
        "state a model to evaluate",
        lambda: tbptt.evaluate(network(embed()), TEXT),
        TypeError,
        "state must be a tbptt_jax.TrainState, got SequenceModel; make it with "
        "TrainState.create, and go on with the first of the two that train_step returns",
    ),
    (
        "state a model to predict",
        lambda: tbptt.predict(network(embed()), TEXT),
        TypeError,
        "state must be a tbptt_jax.TrainState, got SequenceModel; make it with "
        "TrainState.create, and go on with the first of the two that train_step returns",
    ),
    (
        "state a model to gradient_bias",
        lambda: tbptt.gradient_bias(network(embed()), TEXT, PLAN),
        TypeError,
        "state must be a tbptt_jax.TrainState, got SequenceModel; make it with "
        "TrainState.create, and go on with the first of the two that train_step returns",
    ),
    (
        "state donated",
        lambda: tbptt.train_step(donated(), TEXT, PLAN),
        ValueError,
        "state was given to train_step before, which donates it; go on with the state that it"
        " returned: state, metrics = train_step(state, batch, truncation)",
    ),
    (
        "state donated to evaluate",
        lambda: tbptt.evaluate(donated(), TEXT),
        ValueError,
        "state was given to train_step before, which donates it; go on with the state that it"
        " returned: state, metrics = train_step(state, batch, truncation)",
    ),
    (
        "state donated to predict",
        lambda: tbptt.predict(donated(), TEXT),
        ValueError,
        "state was given to train_step before, which donates it; go on with the state that it"
        " returned: state, metrics = train_step(state, batch, truncation)",
    ),
    (
        "loss of no arguments",
        lambda: tbptt.train_step(for_numbers(lambda: 0), NUMBERS, PLAN),
        ValueError,
        "loss fails on outputs float32[2, 4, 3] and targets float32[2, 4, 3]: ",
    ),
    (
        "loss a scalar",
        lambda: tbptt.train_step(for_numbers(lambda y, t: mse(y, t).mean()), NUMBERS, PLAN),
        ValueError,
        "loss must return one number for every step, shape [2, 4], got []; reduce the other "
        "axes, for instance lambda y, t: optax.squared_error(y, t).mean(-1)",
    ),
    (
        "loss of each feature",
        lambda: tbptt.train_step(for_numbers(optax.losses.squared_error), NUMBERS, PLAN),
        ValueError,
        "loss must return one number for every step, shape [2, 4], got [2, 4, 3]; reduce the "
        "other axes, for instance lambda y, t: optax.squared_error(y, t).mean(-1)",
    ),
    (
        "plan two numbers",
        lambda: tbptt.train_step(STATE, TEXT, (2, 2)),
        TypeError,
        "truncation must be a tbptt_jax.Truncation, got tuple; write Truncation(k1=30, k2=30)",
    ),
    (
        "batch two arrays",
        lambda: tbptt.evaluate(STATE, [(IDS, LABELS)]),
        TypeError,
        "batch must be a tbptt_jax.Batch, got tuple; write Batch(inputs, targets)",
    ),
    (
        "batch and state exchanged",
        lambda: tbptt.credit_by_lag(TEXT, STATE, 1),
        TypeError,
        "batch must be a tbptt_jax.Batch, got TrainState; write Batch(inputs, targets)",
    ),
    (
        "no batch",
        lambda: tbptt.evaluate(STATE, []),
        ValueError,
        "evaluate: batches must have at least one step with a loss, got a total weight of "
        "0.0; see Batch.mask and Batch.weights, and whether the iterator is spent",
    ),
    (
        "batches none",
        lambda: tbptt.evaluate(STATE, None),
        TypeError,
        "evaluate: batches must be a Batch or an iterable of them, got NoneType",
    ),
    (
        "metrics a list",
        scored([XENT]),
        TypeError,
        "evaluate: metrics must map names to functions (outputs, targets) -> [B, T], got list",
    ),
    (
        "metrics a number",
        scored({"accuracy": 3}),
        TypeError,
        "evaluate: metrics must be functions (outputs, targets) -> [B, T], got int for 'accuracy'",
    ),
    (
        "metrics named loss",
        scored({"loss": XENT}),
        ValueError,
        'evaluate: metrics must not be named "loss" or "weight", got \'loss\', which is '
        "returned anyway",
    ),
    (
        "metrics a mean",
        scored({"accuracy": lambda y, t: (y.argmax(-1) == t).mean()}),
        ValueError,
        "metric 'accuracy' must return one number for every step, shape [2, 4], got []; "
        "reduce the other axes, for instance lambda y, t: optax.squared_error(y, t).mean(-1)",
    ),
    (
        "metrics that fail",
        scored({"accuracy": lambda y, t: y - t}),
        ValueError,
        "metric 'accuracy' fails on outputs float32[2, 4, 3] and targets int64[2, 4]: ",
    ),
    (
        "optimizer not called",
        lambda: create(optimizer=optax.adam),
        TypeError,
        "TrainState.create: optimizer must be an optax transformation, for instance "
        "optax.adam(1e-3), got function",
    ),
    (
        "optimizer a rate",
        lambda: create(optimizer=1e-3),
        TypeError,
        "TrainState.create: optimizer must be an optax transformation, for instance "
        "optax.adam(1e-3), got float",
    ),
    (
        "loss a name",
        lambda: create(loss="mse"),
        TypeError,
        "TrainState.create: loss must be a function (outputs, targets) -> losses [B, T], got str",
    ),
    (
        "seed floating",
        lambda: create(seed=0.5),
        TypeError,
        "TrainState.create: seed must be an integer, got float",
    ),
    (
        "seed a key",
        lambda: create(seed=jax.random.key(0)),
        TypeError,
        "TrainState.create: seed must be an integer, got PRNGKeyArray",
    ),
    (
        "params missing",
        lambda: create(FUNCTIONS),
        TypeError,
        "TrainState.create: params must be given with a Model, got None",
    ),
    (
        "params superfluous",
        lambda: create(params=PARAMS),
        TypeError,
        "TrainState.create: params are the SequenceModel's own; give them only with a Model "
        "of pure functions",
    ),
    (
        "params of integers",
        lambda: create(FUNCTIONS, params={"a": np.ones(3, np.int32)}),
        TypeError,
        "TrainState.create: params['a'] must be floating point, got int32; make what is not "
        "trained part of the functions",
    ),
    (
        "params of strings",
        lambda: create(FUNCTIONS, params=["a"]),
        TypeError,
        "TrainState.create: params[0] must be floating point, got str; make what is not "
        "trained part of the functions",
    ),
    (
        "no module of functions",
        lambda: create(FUNCTIONS, params=PARAMS).model(),
        TypeError,
        "TrainState.model: this state was made from pure functions, there is no nnx module; "
        "use state.params",
    ),
    (
        "model a cell",
        lambda: create(tbptt.LSTM(2, 2, rngs=rngs())),
        TypeError,
        "model must be a SequenceModel or a Model, got LSTM; wrap the cell: "
        "SequenceModel(encoder, core, readout)",
    ),
    (
        "model a class",
        lambda: create(tbptt.SequenceModel),
        TypeError,
        "model must be a SequenceModel or a Model, got the class SequenceModel; wrap the "
        "cell: SequenceModel(encoder, core, readout)",
    ),
    (
        "functional of a cell",
        lambda: tbptt.functional(tbptt.LSTM(2, 2, rngs=rngs())),
        TypeError,
        "model must be a SequenceModel or a Model, got LSTM; wrap the cell: "
        "SequenceModel(encoder, core, readout)",
    ),
    (
        "core missing",
        lambda: tbptt.SequenceModel(embed()),
        TypeError,
        "SequenceModel: core must be a recurrent cell with (carry, x) -> (carry, y) and "
        "initialize_carry(input_shape, rngs), got NoneType; use tbptt_jax.LSTM, a flax nnx "
        "cell or tbptt_jax.Stack",
    ),
    (
        "core a layer",
        lambda: tbptt.SequenceModel(core=nnx.Linear(2, 2, rngs=rngs())),
        TypeError,
        "SequenceModel: core must be a recurrent cell with (carry, x) -> (carry, y) and "
        "initialize_carry(input_shape, rngs), got Linear; use tbptt_jax.LSTM, a flax nnx cell"
        " or tbptt_jax.Stack",
    ),
    (
        "core a class",
        lambda: tbptt.SequenceModel(core=tbptt.LSTM),
        TypeError,
        "SequenceModel: core must be a recurrent cell with (carry, x) -> (carry, y) and "
        "initialize_carry(input_shape, rngs), got the class LSTM; use tbptt_jax.LSTM, a flax "
        "nnx cell or tbptt_jax.Stack",
    ),
    (
        "core a name",
        lambda: tbptt.SequenceModel(core="lstm"),
        TypeError,
        "SequenceModel: core must be a recurrent cell with (carry, x) -> (carry, y) and "
        "initialize_carry(input_shape, rngs), got str; use tbptt_jax.LSTM, a flax nnx cell or"
        " tbptt_jax.Stack",
    ),
    (
        "encoder a number",
        lambda: network(10),
        TypeError,
        "SequenceModel: encoder must be an nnx layer or a function, or None, got int",
    ),
    (
        "readout a class",
        lambda: tbptt.SequenceModel(core=tbptt.LSTM(2, 2, rngs=rngs()), readout=nnx.Linear),
        TypeError,
        "SequenceModel: readout must be an nnx layer or a function, or None, got the class Linear",
    ),
    (
        "stack of none",
        lambda: tbptt.Stack([]),
        ValueError,
        "Stack: cells must hold at least one cell, got none",
    ),
    (
        "stack of a cell",
        lambda: tbptt.Stack(tbptt.LSTM(2, 2, rngs=rngs())),
        TypeError,
        "Stack: cells must be a list of cells, got LSTM; write Stack([cell])",
    ),
    (
        "stack of numbers",
        lambda: tbptt.Stack([3]),
        TypeError,
        "Stack: cells[0] must be a recurrent cell with (carry, x) -> (carry, y) and "
        "initialize_carry(input_shape, rngs), got int; use tbptt_jax.LSTM, a flax nnx cell or"
        " tbptt_jax.Stack",
    ),
    (
        "cell of no input",
        lambda: tbptt.LSTM(0, 3, rngs=rngs()),
        ValueError,
        "LSTM: in_features must be at least 1, got 0",
    ),
    (
        "cell of half a unit",
        lambda: tbptt.LSTM(2, 2.5, rngs=rngs()),
        TypeError,
        "LSTM: hidden_features must be an integer, got 2.5",
    ),
]

PLANS: list[Row] = [
    (
        "k1 zero",
        lambda: tbptt.Truncation(0, 1),
        ValueError,
        "Truncation: k1 must be at least 1 step, got 0; for full BPTT give k1 = k2 = the "
        "length of the sequence",
    ),
    (
        "k2 negative",
        lambda: tbptt.Truncation(1, -1),
        ValueError,
        "Truncation: k2 must be at least 1 step, got -1; for full BPTT give k1 = k2 = the "
        "length of the sequence",
    ),
    (
        "k1 floating",
        lambda: tbptt.Truncation(2.0, 1),
        TypeError,
        "Truncation: k1 must be an integer number of steps, got 2.0",
    ),
    (
        "k2 none",
        lambda: tbptt.Truncation(1, None),
        TypeError,
        "Truncation: k2 must be an integer number of steps, got None",
    ),
    (
        "k1 bool",
        lambda: tbptt.Truncation(True, 1),
        TypeError,
        "Truncation: k1 must be an integer number of steps, got True",
    ),
    (
        "anchor unknown",
        lambda: tbptt.Truncation(2, 1, "losses"),
        ValueError,
        'Truncation: anchor must be "update" or "loss", got \'losses\'',
    ),
    (
        "block zero",
        lambda: tbptt.Truncation(2, 1, "loss", block=0),
        ValueError,
        "Truncation: block must be at least 1 step, got 0; for full BPTT give k1 = k2 = the "
        "length of the sequence",
    ),
    (
        "block without its anchor",
        lambda: tbptt.Truncation(2, 1, block=2),
        ValueError,
        "Truncation: block goes with anchor=\"loss\", got block=2 with anchor='update'; leave "
        "it out",
    ),
    (
        "credit_matrix without a plan",
        lambda: tbptt.credit_matrix((2, 2), 3),
        TypeError,
        "truncation must be a tbptt_jax.Truncation, got tuple; write Truncation(k1=30, k2=30)",
    ),
    (
        "length zero",
        lambda: tbptt.credit_matrix(PLAN, 0),
        ValueError,
        "credit_matrix: length must be at least 1, got 0",
    ),
    (
        "length floating",
        lambda: tbptt.credit_matrix(PLAN, 2.5),
        TypeError,
        "credit_matrix: length must be an integer, got 2.5",
    ),
    (
        "max_lag too large",
        lambda: tbptt.credit_by_lag(STATE, TEXT, 4),
        ValueError,
        "credit_by_lag: max_lag must be an integer from 0 to T - 1 = 3, got 4",
    ),
    (
        "max_lag floating",
        lambda: tbptt.credit_by_lag(STATE, TEXT, 1.0),
        ValueError,
        "credit_by_lag: max_lag must be an integer from 0 to T - 1 = 3, got 1.0",
    ),
    (
        "max_lag bool",
        lambda: tbptt.credit_by_lag(STATE, TEXT, True),
        ValueError,
        "credit_by_lag: max_lag must be an integer from 0 to T - 1 = 3, got True",
    ),
    (
        "no plan to compare",
        lambda: tbptt.gradient_bias(STATE, TEXT, []),
        ValueError,
        "gradient_bias: truncation must hold at least one plan, got none",
    ),
    (
        "plan to compare none",
        lambda: tbptt.gradient_bias(STATE, TEXT, None),
        TypeError,
        "truncation must be a tbptt_jax.Truncation, got NoneType; write Truncation(k1=30, k2=30)",
    ),
    (
        "plans to compare numbers",
        lambda: tbptt.gradient_bias(STATE, TEXT, [2, 3]),
        TypeError,
        "truncation must be a tbptt_jax.Truncation, got int; write Truncation(k1=30, k2=30)",
    ),
    (
        "no gradient to compare",
        lambda: tbptt.compare_gradients([], {"a": 1.0}),
        ValueError,
        "compare_gradients: estimates must hold at least one gradient, got none",
    ),
    (
        "one gradient to compare",
        lambda: tbptt.compare_gradients({"a": 1.0}, {"a": 1.0}),
        TypeError,
        "compare_gradients: estimates must be a list of gradients, got dict; one is given as "
        "[gradient]",
    ),
    (
        "gradients of other shapes",
        lambda: tbptt.compare_gradients([{"a": np.ones(2)}], {"a": np.ones(3)}),
        ValueError,
        "compare_gradients: estimates must be pytrees like full, {\"['a']\": (3,)}, got "
        "{\"['a']\": (2,)} in number 0",
    ),
    (
        "gradient of nothing",
        lambda: tbptt.compare_gradients([{}], {}),
        ValueError,
        "compare_gradients: full must hold at least one array, got none",
    ),
    (
        "reach zero",
        window(reach=0),
        ValueError,
        "window_value_and_grad: reach must be at least 1, got 0",
    ),
    (
        "reach floating",
        window(reach=1.5),
        TypeError,
        "window_value_and_grad: reach must be an integer, got 1.5",
    ),
    (
        "block zero in a window",
        window(reach=2, block=0),
        ValueError,
        "window_value_and_grad: block must be at least 1, got 0",
    ),
    (
        "block without reach",
        window(block=2),
        ValueError,
        "window_value_and_grad: block goes with reach, which is None; leave it out",
    ),
    (
        "window a batch",
        lambda: tbptt.window_value_and_grad(FUNCTIONS, XENT, PARAMS, None, TEXT),
        TypeError,
        "window_value_and_grad: window must be a tbptt_jax.Window, got Batch; write "
        "Window(inputs, targets)",
    ),
    (
        "window of a module",
        lambda: tbptt.window_value_and_grad(
            network(embed()), XENT, PARAMS, None, tbptt.Window(IDS, LABELS)
        ),
        TypeError,
        "window_value_and_grad: model must be a tbptt_jax.Model, got SequenceModel; make it "
        "with functional(module)",
    ),
    (
        "first too large",
        window(targets=LABELS[:, :2], first=3),
        ValueError,
        "window_value_and_grad: window.first must be 0 to 2, so that each of 2 losses belongs"
        " to one of 4 steps, got 3",
    ),
    (
        "more losses than steps",
        window(inputs=IDS[:, :2]),
        ValueError,
        "window_value_and_grad: window.targets must have at most the 2 steps of its inputs, got 4",
    ),
    (
        "weights of a window too short",
        window(weights=ONES[:, :3]),
        ValueError,
        "window_value_and_grad: window.weights must have the shape of the losses, [2, 4], got"
        " [2, 3]",
    ),
    (
        "mask of a window int",
        window(mask=np.ones((B, T), np.int32)),
        TypeError,
        "window_value_and_grad: window.mask must be bool[2, 4], got int32[2, 4]",
    ),
    (
        "reset of a window too short",
        window(reset=STREAM[:, :3]),
        ValueError,
        "window_value_and_grad: window.reset must be bool[2, 4], got bool[2, 3]",
    ),
    (
        "carry of other rows",
        window(carry=(np.zeros((3, 4)),) * 2),
        ValueError,
        "window_value_and_grad: carry must lead with the 2 rows of the window, got [3, 4]",
    ),
    (
        "forward of a batch",
        lambda: tbptt.forward(FUNCTIONS, PARAMS, None, TEXT),
        TypeError,
        "forward: window must be a tbptt_jax.Window, got Batch; write Window(inputs, targets)",
    ),
]

DATA: list[Row] = [
    (
        "no sequence",
        lambda: data.whole_sequences([], []),
        ValueError,
        "whole_sequences: inputs must hold at least one sequence, got none",
    ),
    (
        "one sequence",
        lambda: data.whole_sequences(IDS[0], LABELS[0]),
        ValueError,
        "whole_sequences: inputs must be sequences [steps, ...] of at least one step, got "
        "shape [] in number 0; a single sequence is given as [sequence]",
    ),
    (
        "sequence of no step",
        lambda: data.whole_sequences([[1], []], [1, 2]),
        ValueError,
        "whole_sequences: inputs must be sequences [steps, ...] of at least one step, got "
        "shape [0] in number 1; a single sequence is given as [sequence]",
    ),
    (
        "sequences none",
        lambda: data.whole_sequences(None, [1]),
        TypeError,
        "whole_sequences: inputs must hold arrays, got NoneType",
    ),
    (
        "targets none",
        lambda: data.whole_sequences(RAGGED, None),
        TypeError,
        "whole_sequences: targets must hold arrays, got NoneType",
    ),
    (
        "sequences of strings",
        lambda: data.whole_sequences(["abc"], [1]),
        TypeError,
        "whole_sequences: inputs[0] must hold numbers, got <U3; give each symbol a number",
    ),
    (
        "sequence of ragged steps",
        lambda: data.whole_sequences([[[1], [2, 3]]], [1]),
        ValueError,
        "whole_sequences: inputs[0] must be an array, got lists of different lengths",
    ),
    (
        "targets too few",
        lambda: data.whole_sequences(RAGGED, [1]),
        ValueError,
        "whole_sequences: targets must be one for each of the inputs, got 1 for 2 inputs",
    ),
    (
        "targets too short",
        lambda: data.whole_sequences(RAGGED, [np.arange(3), np.arange(4)]),
        ValueError,
        "whole_sequences: targets must have a step for each step of the inputs, 5 in number "
        "1, or be one number, got shape [4]",
    ),
    (
        "targets of different features",
        lambda: data.whole_sequences(RAGGED, [np.ones((3, 2)), np.ones((5, 1))]),
        ValueError,
        "whole_sequences: targets must have features of one shape, got [1] in number 1 but "
        "[2] in number 0",
    ),
    (
        "features that differ",
        lambda: data.whole_sequences([np.ones((2, 3)), np.ones((2, 1))], [1, 2]),
        ValueError,
        "whole_sequences: inputs must have features of one shape, got [1] in number 1 but [3]"
        " in number 0",
    ),
    (
        "multiple zero",
        lambda: data.whole_sequences(RAGGED, [1, 2], multiple=0),
        ValueError,
        "whole_sequences: multiple must be at least 1, got 0",
    ),
    (
        "multiple floating",
        lambda: data.whole_sequences(RAGGED, [1, 2], multiple=2.5),
        TypeError,
        "whole_sequences: multiple must be an integer, got 2.5",
    ),
    (
        "align unknown",
        lambda: data.whole_sequences(RAGGED, [1, 2], align="left"),
        ValueError,
        'whole_sequences: align must be "start" or "end", got \'left\'',
    ),
    (
        "align unknown to pad",
        lambda: data.pad(RAGGED, 5, "right"),
        ValueError,
        'pad: align must be "start" or "end", got \'right\'',
    ),
    (
        "pad to no length",
        lambda: data.pad(RAGGED, None),
        TypeError,
        "pad: length must be an integer, got None",
    ),
    (
        "pad to less than there is",
        lambda: data.pad(RAGGED, 4),
        ValueError,
        "pad: sequences must have at most length=4 steps, got 5 in number 1; cut or drop it "
        "beforehand",
    ),
    (
        "labels too few",
        buckets(labels=[1]),
        ValueError,
        "bucketed_batches: labels must be one for each of the sequences, shape [2], got [1]",
    ),
    (
        "labels of fractions",
        buckets(labels=[0.5, 1.7]),
        TypeError,
        "bucketed_batches: labels must be integers, got float64; number the classes",
    ),
    (
        "labels of names",
        buckets(labels=["good", "bad"]),
        TypeError,
        "bucketed_batches: labels must be integers, got <U4; number the classes",
    ),
    (
        "bucket of no row",
        buckets(batch_size=0),
        ValueError,
        "bucketed_batches: batch_size must be at least 1, got 0",
    ),
    (
        "bucket of half a step",
        buckets(multiple=2.5),
        TypeError,
        "bucketed_batches: multiple must be an integer, got 2.5",
    ),
    (
        "loss_every zero",
        buckets(loss_every=0),
        ValueError,
        "bucketed_batches: loss_every must be at least 1, got 0",
    ),
    (
        "rng a seed",
        buckets(rng=3),
        TypeError,
        "bucketed_batches: rng must be an np.random.Generator, got int; use "
        "np.random.default_rng(seed)",
    ),
    (
        "bucket of an empty sequence",
        buckets([[1], []]),
        ValueError,
        "bucketed_batches: sequences must be sequences [steps, ...] of at least one step, got"
        " shape [0] in number 1; a single sequence is given as [sequence]",
    ),
    (
        "ends as places",
        lambda: data.sentence_windows(RAGGED, [0, 1], [[0, 2, 2], [1, 3, 4, 4, 4]], steps=2),
        TypeError,
        "sentence_windows: ends must be boolean, True at each mark, got int64 in number 0",
    ),
    (
        "ends too few",
        lambda: data.sentence_windows(RAGGED, [0, 1], MARKS[:1], steps=2),
        ValueError,
        "sentence_windows: ends must hold a bool [steps] for each of the inputs, got shapes "
        "[[3]] for steps [3, 5]",
    ),
    (
        "sentences of half steps",
        lambda: data.sentence_windows(RAGGED, [0, 1], MARKS, steps=2.5),
        TypeError,
        "sentence_windows: steps must be an integer, got 2.5",
    ),
    (
        "sentences aligned at the left",
        lambda: data.sentence_windows(RAGGED, [0, 1], MARKS, steps=2, align="left"),
        ValueError,
        'sentence_windows: align must be "start" or "end", got \'left\'',
    ),
    (
        "every zero",
        lambda: data.mark_losses(TEXT, every=0),
        ValueError,
        "mark_losses: every must be at least 1, got 0",
    ),
    (
        "every floating",
        lambda: data.mark_losses(TEXT, every=1.5),
        TypeError,
        "mark_losses: every must be an integer, got 1.5",
    ),
    (
        "mask of numbers to mark",
        lambda: data.mark_losses(TEXT._replace(mask=2 * np.ones((B, T), np.int64))),
        TypeError,
        "mark_losses: mask must be boolean, got int64; use mask.astype(bool)",
    ),
    (
        "no inputs to mark",
        lambda: data.mark_losses(tbptt.Batch(None, LABELS)),
        TypeError,
        "mark_losses: inputs must be an array [B, T, ...], got none",
    ),
    (
        "lanes of two arrays",
        lambda: data.lanes((IDS, LABELS), steps=2),
        TypeError,
        "lanes: batch must be a Batch, got tuple; write Batch(inputs, targets)",
    ),
    (
        "lanes of no step",
        lambda: data.lanes(TEXT, steps=0),
        ValueError,
        "lanes: steps must be at least 1, got 0",
    ),
    (
        "lanes of true",
        lambda: data.lanes(TEXT, steps=True),
        TypeError,
        "lanes: steps must be an integer, got True",
    ),
    (
        "reset of numbers",
        lambda: data.naive_split(TEXT._replace(reset=np.ones((B, T), np.int64)), steps=2),
        TypeError,
        "naive_split: reset must be boolean, got int64; use reset.astype(bool)",
    ),
    (
        "rows that go on",
        lambda: data.naive_split(TEXT._replace(reset=STREAM), steps=2),
        ValueError,
        "naive_split: batch must have reset True at the first step of every row, or None, got"
        " False in row 0, which would go on with the carry of the row before; to go on with a"
        " stream use lanes",
    ),
    (
        "more lanes than steps",
        stretches(batch_size=9),
        ValueError,
        "batchify: inputs must give each of batch_size=9 lanes a step, got 3 steps with a "
        "target; use fewer lanes",
    ),
    (
        "half a lane",
        stretches(batch_size=1.5),
        TypeError,
        "batchify: batch_size must be an integer, got 1.5",
    ),
    (
        "no steps of a stream",
        stretches(steps=0),
        ValueError,
        "batchify: steps must be at least 1, got 0",
    ),
    (
        "a stream of text",
        stretches("hello world"),
        TypeError,
        "batchify: inputs must hold numbers, got <U11; give each symbol a number",
    ),
    (
        "a stream that is a number",
        stretches(3),
        ValueError,
        "batchify: inputs must have the shape [N, ...], got []",
    ),
    (
        "targets of another stream",
        stretches(targets=np.arange(3)),
        ValueError,
        "batchify: targets must have as many steps as inputs, 4, got 3",
    ),
    (
        "reset as places",
        stretches(reset=[0, 3]),
        ValueError,
        "batchify: reset must have as many steps as inputs, 4, got 2",
    ),
    (
        "reset as numbers",
        stretches(reset=np.arange(4)),
        TypeError,
        "batchify: reset must be bool [N], True at the first step of each document, got int64[4]",
    ),
    (
        "series constant",
        lambda: data.suggest_steps(np.ones(50)),
        ValueError,
        "suggest_steps: series must be [T], finite numbers that are not all equal, got shape "
        "[50]; fill gaps, and give one channel of one sequence at a time",
    ),
    (
        "series nan",
        lambda: data.suggest_steps([1.0, np.nan] * 25),
        ValueError,
        "suggest_steps: series must be [T], finite numbers that are not all equal, got shape "
        "[50]; fill gaps, and give one channel of one sequence at a time",
    ),
    (
        "series of channels",
        lambda: data.suggest_steps(np.stack([NOISE, NOISE])),
        ValueError,
        "suggest_steps: series must be [T], finite numbers that are not all equal, got shape "
        "[2, 50]; fill gaps, and give one channel of one sequence at a time",
    ),
    (
        "series of names",
        lambda: data.suggest_steps(["a", "b"]),
        TypeError,
        "suggest_steps: series must be real numbers [T], got <U1",
    ),
    (
        "series complex",
        lambda: data.suggest_steps(NOISE + 1j),
        TypeError,
        "suggest_steps: series must be real numbers [T], got complex128",
    ),
    (
        "series too short",
        lambda: data.suggest_steps([1.0, 2.0]),
        ValueError,
        "suggest_steps: max_lag must be 1 to T // 2 = 1, got 0; give it or a longer series",
    ),
    (
        "rule unknown",
        lambda: data.suggest_steps(NOISE, rule="acf"),
        ValueError,
        'suggest_steps: rule must be "order" or "period", got \'acf\'',
    ),
    (
        "alpha in percent",
        lambda: data.suggest_steps(NOISE, alpha=5),
        ValueError,
        "suggest_steps: alpha must be between 0 and 1, got 5",
    ),
    (
        "max_lag of half a step",
        lambda: data.suggest_steps(NOISE, max_lag=2.5),
        TypeError,
        "suggest_steps: max_lag must be an integer, got 2.5",
    ),
    (
        "max_lag beyond the series",
        lambda: data.suggest_steps(NOISE, max_lag=49),
        ValueError,
        "suggest_steps: max_lag must be 1 to T // 2 = 25, got 49; give it or a longer series",
    ),
    (
        "no text",
        lambda: data.sentence_steps([]),
        ValueError,
        "sentence_steps: ends must hold a bool [steps] of at least one step for each of at "
        "least one text, got shapes []; a single text is given as [ends]",
    ),
    (
        "ends of sentences as places",
        lambda: data.sentence_steps([np.array([3, 7, 9])]),
        TypeError,
        "sentence_steps: ends must be boolean, True at each mark, got int64 in number 0",
    ),
    (
        "candidates of nothing",
        lambda: data.candidate_steps(0),
        ValueError,
        "candidate_steps: length must be at least 1, got 0",
    ),
    (
        "candidates of text",
        lambda: data.candidate_steps("10"),
        TypeError,
        "candidate_steps: length must be an integer, got '10'",
    ),
    (
        "candidates none",
        lambda: data.candidate_steps(10, minimum=None),
        TypeError,
        "candidate_steps: minimum must be an integer, got None",
    ),
    (
        "candidates beyond the length",
        lambda: data.candidate_steps(10, maximum=30),
        ValueError,
        "candidate_steps: maximum must be minimum=1 to length=10, got 30",
    ),
    (
        "no candidates",
        lambda: data.candidate_steps(10, count=0),
        ValueError,
        "candidate_steps: count must be at least 1, got 0",
    ),
    (
        "reset of two axes",
        stretches(reset=np.zeros((4, 2), bool)),
        TypeError,
        "batchify: reset must be bool [N], True at the first step of each document, got bool[4, 2]",
    ),
    (
        "alpha a string",
        lambda: data.suggest_steps(NOISE, alpha="5%"),
        ValueError,
        "suggest_steps: alpha must be between 0 and 1, got '5%'",
    ),
    (
        "candidates up to half a step",
        lambda: data.candidate_steps(10, maximum=2.5),
        TypeError,
        "candidate_steps: maximum must be an integer, got 2.5",
    ),
]

CHECKPOINTS: list[Row] = [
    (
        "folder none",
        lambda folder: tbptt.Checkpoints(None),
        TypeError,
        "Checkpoints: folder must be a path, got NoneType",
    ),
    (
        "config a list",
        lambda folder: tbptt.Checkpoints(folder, [1, 2]),
        TypeError,
        "Checkpoints: config must map names to values, got list",
    ),
    (
        "config of arrays",
        lambda folder: tbptt.Checkpoints(folder, {"a": np.ones(2)}),
        TypeError,
        "Checkpoints: config must be JSON (numbers, strings, lists, dicts), got Object of "
        "type ndarray is not JSON serializable; arrays belong into the tree",
    ),
    (
        "progress of arrays",
        checkpoints(lambda kept: kept.save({"a": jnp.ones(2)}, np.ones(2))),
        TypeError,
        "Checkpoints: progress must be JSON (numbers, strings, lists, dicts), got Object of "
        "type ndarray is not JSON serializable; arrays belong into the tree",
    ),
    (
        "tree of numbers",
        checkpoints(lambda kept: kept.save({"a": 3})),
        TypeError,
        "Checkpoints: tree must hold arrays, got int at tree['a']; numbers belong into progress",
    ),
    (
        "tree of nothing",
        checkpoints(lambda kept: kept.save(None)),
        ValueError,
        "Checkpoints: tree must hold at least one array, got none",
    ),
    (
        "like nothing",
        checkpoints(lambda kept: kept.restore(None)),
        ValueError,
        "Checkpoints: like must hold at least one array, got none",
    ),
    (
        "like a number",
        checkpoints(lambda kept: kept.restore({"a": 1.0})),
        TypeError,
        "Checkpoints: like must hold arrays, got float at like['a']; numbers belong into progress",
    ),
    (
        "like of another shape",
        checkpoints(lambda kept: kept.restore({"a": jnp.ones(4)})),
        ValueError,
        "checkpoint 0 in {folder} is of another training:\n"
        "  ['a']: {float}[3] in the checkpoint, {float}[4] now\n"
        "Go on with what it was made with, or give another folder to begin anew",
    ),
    (
        "like under another name",
        checkpoints(lambda kept: kept.restore({"b": jnp.zeros(3)})),
        ValueError,
        "checkpoint 0 in {folder} is of another training:\n"
        "  ['a']: {float}[3] in the checkpoint, nothing now\n"
        "  ['b']: nothing in the checkpoint, {float}[3] now\n"
        "Go on with what it was made with, or give another folder to begin anew",
    ),
    (
        "folder a file",
        lambda folder: tbptt.Checkpoints(an_empty_file(folder)),
        NotADirectoryError,
        "[Errno 20] Checkpoints: folder must be a folder, got a file: '{folder}/file'",
    ),
]

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
