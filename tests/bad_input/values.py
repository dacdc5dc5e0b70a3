"""Bad input: values, in batches that are of the right shape."""

# The cases are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tbptt_jax as tbptt
from tests.bad_input.calls import (
    CLASSES,
    FEATURES,
    FUNCTIONS,
    GOAL,
    IDS,
    LABELS,
    NONE,
    ONES,
    PARAMS,
    PLAN,
    SERIES,
    STATE,
    STREAM,
    TEXT,
    WORDS,
    XENT,
    B,
    Case,
    T,
    create,
    embed,
    misfit,
    network,
    numbers,
    put,
    rngs,
    stream_of_two_then_three,
    text,
    wrong,
)

VALUES: list[Case] = [
    ("inputs nan", numbers(inputs=put(np.nan, SERIES)), ValueError),
    ("inputs infinite", numbers(inputs=put(-np.inf, SERIES)), ValueError),
    ("inputs nan in one feature", numbers(inputs=put([1, np.nan], SERIES)), ValueError),
    ("inputs nan in a JAX array", numbers(inputs=jnp.asarray(put(np.nan, SERIES))), ValueError),
    (
        "inputs nan in 16 bits",
        numbers(inputs=jnp.asarray(put(np.nan, SERIES), jnp.bfloat16)),
        ValueError,
    ),
    ("inputs nan in a pytree", numbers(inputs={"x": put(np.nan, SERIES)}), ValueError),
    ("inputs nan to predict", wrong(tbptt.predict, inputs=put(np.nan, SERIES)), ValueError),
    ("inputs nan to evaluate", wrong(tbptt.evaluate, inputs=put(np.nan, SERIES)), ValueError),
    ("inputs nan to gradient", wrong(tbptt.gradient, PLAN, inputs=put(np.nan, SERIES)), ValueError),
    (
        "inputs nan to credit_by_lag",
        wrong(tbptt.credit_by_lag, 1, inputs=put(np.nan, SERIES)),
        ValueError,
    ),
    (
        "inputs nan to gradient_bias",
        wrong(tbptt.gradient_bias, PLAN, inputs=put(np.nan, SERIES)),
        ValueError,
    ),
    (
        "inputs nan for per-loss windows",
        wrong(tbptt.train_step, tbptt.Truncation(2, 2, "loss"), inputs=put(np.nan, SERIES)),
        ValueError,
    ),
    ("ids too large", text(inputs=put(WORDS, IDS)), ValueError),
    ("ids negative", text(inputs=put(-1, IDS)), ValueError),
    ("ids too large in a JAX array", text(inputs=jnp.asarray(put(WORDS, IDS))), ValueError),
    ("ids too large in unsigned integers", text(inputs=put(255, IDS.astype(np.uint8))), ValueError),
    (
        "ids too large before dropout",
        lambda: tbptt.predict(
            create(network(nnx.Sequential(embed(), nnx.Dropout(0.5, rngs=rngs())))),
            TEXT._replace(inputs=put(WORDS, IDS)),
        ),
        ValueError,
    ),
    (
        "ids too large for functions",
        lambda: tbptt.predict(
            create(FUNCTIONS, params=PARAMS), TEXT._replace(inputs=put(WORDS, IDS))
        ),
        ValueError,
    ),
    ("ids floating", text(inputs=IDS.astype(np.float32)), TypeError),
    ("targets nan", numbers(targets=put(np.nan, GOAL)), ValueError),
    ("targets infinite", numbers(targets=put(np.inf, GOAL)), ValueError),
    ("targets nan to evaluate", wrong(tbptt.evaluate, targets=put(np.nan, GOAL)), ValueError),
    ("labels too large", text(targets=put(CLASSES, LABELS)), ValueError),
    ("labels of -1", text(targets=put(-1, LABELS)), ValueError),
    (
        "labels too large to evaluate",
        lambda: tbptt.evaluate(STATE, TEXT._replace(targets=put(CLASSES, LABELS))),
        ValueError,
    ),
    (
        "labels too large for a partial loss",
        lambda: tbptt.evaluate(
            create(loss=functools.partial(XENT, axis=2)),
            TEXT._replace(targets=put(CLASSES, LABELS)),
        ),
        ValueError,
    ),
    ("labels floating", text(targets=LABELS.astype(np.float32)), TypeError),
    ("labels one-hot", text(targets=np.eye(CLASSES)[LABELS]), ValueError),
    ("weights negative", text(weights=put(-1, ONES)), ValueError),
    ("weights between -1 and 0", text(weights=put(-0.25, ONES)), ValueError),
    ("weights nan", text(weights=put(np.nan, ONES)), ValueError),
    ("weights infinite", text(weights=put(np.inf, ONES)), ValueError),
    ("no weight", text(weights=NONE), ValueError),
    (
        "no weight where a step exists",
        text(weights=put(1, NONE), mask=put(False, ~STREAM)),
        ValueError,
    ),
    ("no step exists", text(mask=STREAM), ValueError),
    ("no weight to gradient", wrong(tbptt.gradient, PLAN, weights=NONE), ValueError),
    ("no weight to credit_by_lag", wrong(tbptt.credit_by_lag, 1, weights=NONE), ValueError),
    (
        "weights that the plan leaves out",
        text(tbptt.Truncation(2, 1), weights=put(1, NONE)),
        ValueError,
    ),
    (
        "no weight in a stream",
        lambda: tbptt.train_step(create(), TEXT._replace(weights=NONE, reset=STREAM), PLAN),
        UserWarning,
    ),
    ("no weight to evaluate", wrong(tbptt.evaluate, weights=NONE), ValueError),
    ("another batch size in a stream", stream_of_two_then_three, ValueError),
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
    ),
    (
        "inputs of dates",
        numbers(inputs=np.full((B, T, FEATURES), "2026-11-27", "datetime64[D]")),
        TypeError,
    ),
    ("inputs of strings", numbers(inputs=np.full((B, T, FEATURES), "a")), TypeError),
    ("targets of objects", numbers(targets=np.full((B, T), None)), TypeError),
    ("inputs of other features", numbers(inputs=np.ones((B, T, 3), np.float32)), ValueError),
    ("a core of other features", misfit, ValueError),
    ("targets of other features", numbers(targets=np.zeros((B, T, CLASSES + 1))), ValueError),
]
