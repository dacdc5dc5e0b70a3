"""Bad input: plans, windows and diagnostics."""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import numpy as np

import tbptt_jax as tbptt
from tests.bad_input.calls import (
    FUNCTIONS,
    IDS,
    LABELS,
    ONES,
    PARAMS,
    PLAN,
    STATE,
    STREAM,
    TEXT,
    XENT,
    B,
    Row,
    T,
    embed,
    network,
    window,
)

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
