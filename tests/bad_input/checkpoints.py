"""Bad input: checkpoints."""

# The cases are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax.numpy as jnp
import numpy as np

import tbptt_jax as tbptt
from tests.bad_input.calls import Case, an_empty_file, checkpoints

CHECKPOINTS: list[Case] = [
    ("folder none", lambda folder: tbptt.Checkpoints(None), TypeError),
    ("config a list", lambda folder: tbptt.Checkpoints(folder, [1, 2]), TypeError),
    ("config of arrays", lambda folder: tbptt.Checkpoints(folder, {"a": np.ones(2)}), TypeError),
    (
        "progress of arrays",
        checkpoints(lambda kept: kept.save({"a": jnp.ones(2)}, np.ones(2))),
        TypeError,
    ),
    (
        "config of two names that become one",
        lambda folder: tbptt.Checkpoints(folder, {"of": {1: "a", "1": "b"}}),
        TypeError,
    ),
    ("tree of objects", checkpoints(lambda kept: kept.save({"a": np.array([None, 1])})), TypeError),
    (
        "tree of records",
        checkpoints(lambda kept: kept.save({"a": np.zeros(2, [("x", "f4")])})),
        TypeError,
    ),
    ("tree of numbers", checkpoints(lambda kept: kept.save({"a": 3})), TypeError),
    ("tree of nothing", checkpoints(lambda kept: kept.save(None)), ValueError),
    ("like nothing", checkpoints(lambda kept: kept.restore(None)), ValueError),
    ("like a number", checkpoints(lambda kept: kept.restore({"a": 1.0})), TypeError),
    (
        "like of another shape",
        checkpoints(lambda kept: kept.restore({"a": jnp.ones(4)})),
        ValueError,
    ),
    (
        "like under another name",
        checkpoints(lambda kept: kept.restore({"b": jnp.zeros(3)})),
        ValueError,
    ),
    ("folder a file", lambda folder: tbptt.Checkpoints(an_empty_file(folder)), NotADirectoryError),
]
