"""Bad input: states, batches and networks that cannot be trained."""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt
from tests.bad_input.calls import (
    FUNCTIONS,
    IDS,
    LABELS,
    NUMBERS,
    PARAMS,
    PLAN,
    STATE,
    TEXT,
    XENT,
    Row,
    create,
    donated,
    embed,
    for_numbers,
    mse,
    network,
    rngs,
    scored,
)

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
