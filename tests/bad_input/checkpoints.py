"""Bad input: checkpoints."""

# The rows are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax.numpy as jnp
import numpy as np

import tbptt_jax as tbptt
from tests.bad_input.calls import Row, an_empty_file, checkpoints

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
