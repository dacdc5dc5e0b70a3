"""Bad input: states, batches and networks that cannot be trained."""

# The cases are what the types forbid.
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
    Case,
    create,
    donated,
    embed,
    for_numbers,
    mse,
    network,
    rngs,
    scored,
)

TRAINING: list[Case] = [
    ("state a model", lambda: tbptt.train_step(network(embed()), TEXT, PLAN), TypeError),
    (
        "state with its metrics",
        lambda: tbptt.train_step(tbptt.train_step(create(), TEXT, PLAN), TEXT, PLAN),
        TypeError,
    ),
    ("state a model to evaluate", lambda: tbptt.evaluate(network(embed()), TEXT), TypeError),
    ("state a model to predict", lambda: tbptt.predict(network(embed()), TEXT), TypeError),
    (
        "state a model to gradient_bias",
        lambda: tbptt.gradient_bias(network(embed()), TEXT, PLAN),
        TypeError,
    ),
    ("state donated", lambda: tbptt.train_step(donated(), TEXT, PLAN), ValueError),
    ("state donated to evaluate", lambda: tbptt.evaluate(donated(), TEXT), ValueError),
    ("state donated to predict", lambda: tbptt.predict(donated(), TEXT), ValueError),
    (
        "loss of no arguments",
        lambda: tbptt.train_step(for_numbers(lambda: 0), NUMBERS, PLAN),
        ValueError,
    ),
    (
        "loss a scalar",
        lambda: tbptt.train_step(for_numbers(lambda y, t: mse(y, t).mean()), NUMBERS, PLAN),
        ValueError,
    ),
    (
        "loss of each feature",
        lambda: tbptt.train_step(for_numbers(optax.losses.squared_error), NUMBERS, PLAN),
        ValueError,
    ),
    ("plan two numbers", lambda: tbptt.train_step(STATE, TEXT, (2, 2)), TypeError),
    ("batch two arrays", lambda: tbptt.evaluate(STATE, [(IDS, LABELS)]), TypeError),
    ("batch and state exchanged", lambda: tbptt.credit_by_lag(TEXT, STATE, 1), TypeError),
    ("no batch", lambda: tbptt.evaluate(STATE, []), ValueError),
    ("batches none", lambda: tbptt.evaluate(STATE, None), TypeError),
    ("metrics a list", scored([XENT]), TypeError),
    ("metrics a number", scored({"accuracy": 3}), TypeError),
    ("metrics named loss", scored({"loss": XENT}), ValueError),
    ("metrics a mean", scored({"accuracy": lambda y, t: (y.argmax(-1) == t).mean()}), ValueError),
    ("metrics that fail", scored({"accuracy": lambda y, t: y - t}), ValueError),
    ("optimizer not called", lambda: create(optimizer=optax.adam), TypeError),
    ("optimizer a rate", lambda: create(optimizer=1e-3), TypeError),
    ("loss a name", lambda: create(loss="mse"), TypeError),
    ("seed floating", lambda: create(seed=0.5), TypeError),
    ("seed a key", lambda: create(seed=jax.random.key(0)), TypeError),
    ("params missing", lambda: create(FUNCTIONS), TypeError),
    ("params superfluous", lambda: create(params=PARAMS), TypeError),
    (
        "params of integers",
        lambda: create(FUNCTIONS, params={"a": np.ones(3, np.int32)}),
        TypeError,
    ),
    ("params of strings", lambda: create(FUNCTIONS, params=["a"]), TypeError),
    ("no module of functions", lambda: create(FUNCTIONS, params=PARAMS).model(), TypeError),
    ("model a cell", lambda: create(tbptt.LSTM(2, 2, rngs=rngs())), TypeError),
    ("model a class", lambda: create(tbptt.SequenceModel), TypeError),
    ("functional of a cell", lambda: tbptt.functional(tbptt.LSTM(2, 2, rngs=rngs())), TypeError),
    ("core missing", lambda: tbptt.SequenceModel(embed()), TypeError),
    ("core a layer", lambda: tbptt.SequenceModel(core=nnx.Linear(2, 2, rngs=rngs())), TypeError),
    ("core a class", lambda: tbptt.SequenceModel(core=tbptt.LSTM), TypeError),
    ("core a name", lambda: tbptt.SequenceModel(core="lstm"), TypeError),
    ("encoder a number", lambda: network(10), TypeError),
    (
        "readout a class",
        lambda: tbptt.SequenceModel(core=tbptt.LSTM(2, 2, rngs=rngs()), readout=nnx.Linear),
        TypeError,
    ),
    ("stack of none", lambda: tbptt.Stack([]), ValueError),
    ("stack of a cell", lambda: tbptt.Stack(tbptt.LSTM(2, 2, rngs=rngs())), TypeError),
    ("stack of numbers", lambda: tbptt.Stack([3]), TypeError),
    ("cell of no input", lambda: tbptt.LSTM(0, 3, rngs=rngs()), ValueError),
    ("cell of half a unit", lambda: tbptt.LSTM(2, 2.5, rngs=rngs()), TypeError),
]
