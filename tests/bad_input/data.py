"""Bad input: what makes batches of data."""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import numpy as np

import tbptt_jax as tbptt
from tbptt_jax import data
from tests.bad_input.calls import (
    IDS,
    LABELS,
    MARKS,
    NOISE,
    RAGGED,
    STREAM,
    TEXT,
    B,
    Row,
    T,
    buckets,
    stretches,
)

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
