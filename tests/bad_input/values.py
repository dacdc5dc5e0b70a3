"""Bad input: values, in batches that are of the right shape."""

# The rows are what the types forbid.
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
    Row,
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
