"""Bad input: plans, windows and diagnostics."""

# The cases are what the types forbid.
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
    Case,
    T,
    embed,
    network,
    window,
)

PLANS: list[Case] = [
    ("k1 zero", lambda: tbptt.Truncation(0, 1), ValueError),
    ("k2 negative", lambda: tbptt.Truncation(1, -1), ValueError),
    ("k1 floating", lambda: tbptt.Truncation(2.0, 1), TypeError),
    ("k2 none", lambda: tbptt.Truncation(1, None), TypeError),
    ("k1 bool", lambda: tbptt.Truncation(True, 1), TypeError),
    ("anchor unknown", lambda: tbptt.Truncation(2, 1, "losses"), ValueError),
    ("block zero", lambda: tbptt.Truncation(2, 1, "loss", block=0), ValueError),
    ("block without its anchor", lambda: tbptt.Truncation(2, 1, block=2), ValueError),
    ("credit_matrix without a plan", lambda: tbptt.credit_matrix((2, 2), 3), TypeError),
    ("length zero", lambda: tbptt.credit_matrix(PLAN, 0), ValueError),
    ("length floating", lambda: tbptt.credit_matrix(PLAN, 2.5), TypeError),
    ("max_lag too large", lambda: tbptt.credit_by_lag(STATE, TEXT, 4), ValueError),
    ("max_lag floating", lambda: tbptt.credit_by_lag(STATE, TEXT, 1.0), TypeError),
    ("max_lag bool", lambda: tbptt.credit_by_lag(STATE, TEXT, True), TypeError),
    ("no plan to compare", lambda: tbptt.gradient_bias(STATE, TEXT, []), ValueError),
    ("plan to compare none", lambda: tbptt.gradient_bias(STATE, TEXT, None), TypeError),
    ("plans to compare numbers", lambda: tbptt.gradient_bias(STATE, TEXT, [2, 3]), TypeError),
    ("no gradient to compare", lambda: tbptt.compare_gradients([], {"a": 1.0}), ValueError),
    ("one gradient to compare", lambda: tbptt.compare_gradients({"a": 1.0}, {"a": 1.0}), TypeError),
    (
        "gradients of other shapes",
        lambda: tbptt.compare_gradients([{"a": np.ones(2)}], {"a": np.ones(3)}),
        ValueError,
    ),
    ("gradient of nothing", lambda: tbptt.compare_gradients([{}], {}), ValueError),
    ("reach zero", window(reach=0), ValueError),
    ("reach floating", window(reach=1.5), TypeError),
    ("block zero in a window", window(reach=2, block=0), ValueError),
    ("block without reach", window(block=2), ValueError),
    (
        "window a batch",
        lambda: tbptt.window_value_and_grad(FUNCTIONS, XENT, PARAMS, None, TEXT),
        TypeError,
    ),
    (
        "window of a module",
        lambda: tbptt.window_value_and_grad(
            network(embed()), XENT, PARAMS, None, tbptt.Window(IDS, LABELS)
        ),
        TypeError,
    ),
    ("first too large", window(targets=LABELS[:, :2], first=3), ValueError),
    ("more losses than steps", window(inputs=IDS[:, :2]), ValueError),
    ("weights of a window too short", window(weights=ONES[:, :3]), ValueError),
    ("mask of a window int", window(mask=np.ones((B, T), np.int32)), TypeError),
    ("reset of a window too short", window(reset=STREAM[:, :3]), ValueError),
    ("carry of other rows", window(carry=(np.zeros((3, 4)),) * 2), ValueError),
    ("forward of a batch", lambda: tbptt.forward(FUNCTIONS, PARAMS, None, TEXT), TypeError),
]
