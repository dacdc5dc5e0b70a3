"""Bad batches and plans: what each public function says of them."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt_jax as tbptt
from tests.networks import CLASSES, FEATURES, as_numpy, assert_close, make_batch, make_state

B, T = 2, 4
PLAN = tbptt.Truncation(2, 2)
GOOD = make_batch(T, "mrw", rows=B)
FUNCTIONS = {
    "train_step": lambda state, batch: tbptt.train_step(state, batch, PLAN),
    "gradient": lambda state, batch: tbptt.gradient(state, batch, PLAN),
    "evaluate": lambda state, batch: tbptt.evaluate(state, [batch]),
    "predict": tbptt.predict,
}


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


# What is put into a good batch, the error, and what the message must say: what was expected of
# which argument, and what came.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "inputs list": ({"inputs": [[0.0] * T] * B}, TypeError, "inputs must be an array .* got float"),
    "inputs none": ({"inputs": None}, TypeError, "inputs must be an array .* got none"),
    "inputs 0-D": ({"inputs": zeros()}, ValueError, r"inputs must have shape \[B, T, ...\]"),
    "inputs 1-D": (
        {"inputs": zeros(T)},
        ValueError,
        rf"inputs must have shape \[B, T, ...\] .* got \[{T}\]",
    ),
    "inputs empty rows": (
        {"inputs": zeros(0, T, FEATURES)},
        ValueError,
        "inputs must hold at least one example and step",
    ),
    "inputs empty steps": (
        {"inputs": zeros(B, 0, FEATURES)},
        ValueError,
        rf"inputs must hold at least one example and step, got \[{B}, 0, {FEATURES}\]",
    ),
    "inputs unlike": (
        {"inputs": {"a": zeros(B, T, 1), "b": zeros(B, T + 1, 1)}},
        ValueError,
        rf"inputs must lead with \[B, T\] = \[{B}, {T}\]",
    ),
    "targets list": ({"targets": [[0] * T] * B}, TypeError, "targets must be an array .* got int"),
    "targets none": ({"targets": None}, TypeError, "targets must be an array .* got none"),
    "targets per row": (
        {"targets": zeros(B, dtype=int)},
        ValueError,
        rf"targets must have shape \[B, T, ...\] .* got \[{B}\]",
    ),
    "targets per row with features": (
        {"targets": zeros(B, CLASSES)},
        ValueError,
        r"targets must lead with \[B, T\] .* a label for a whole sequence is repeated",
    ),
    "targets T": (
        {"targets": zeros(B, T + 1, dtype=int)},
        ValueError,
        rf"targets must lead with \[B, T\] = \[{B}, {T}\] like the inputs, got \[{B}, {T + 1}\]",
    ),
    "targets B": (
        {"targets": zeros(B + 1, T, dtype=int)},
        ValueError,
        rf"targets must lead with .* got \[{B + 1}, {T}\]",
    ),
    "mask int": (
        {"mask": zeros(B, T, dtype=np.int32)},
        TypeError,
        r"mask must be boolean, got int32; use mask.astype\(bool\)",
    ),
    "reset float": (
        {"reset": zeros(B, T)},
        TypeError,
        r"reset must be boolean, got float32; use reset.astype\(bool\)",
    ),
    "reset True": ({"reset": True}, TypeError, r"reset must be an array \[B, T\], got bool"),
    "weights int": (
        {"weights": zeros(B, T, dtype=int)},
        TypeError,
        r"weights must be floating point, got int64; use weights.astype\(np.float32\)",
    ),
    "weights bool": ({"weights": zeros(B, T, dtype=bool)}, TypeError, "weights must be floating"),
}
for _name, _dtype in (("mask", bool), ("reset", bool), ("weights", np.float32)):
    BAD |= {
        f"{_name} list": (
            {_name: [[True] * T] * B},
            TypeError,
            rf"{_name} must be an array \[B, T\], got list; convert it with np.asarray",
        ),
        f"{_name} 1-D": (
            {_name: zeros(T, dtype=_dtype)},
            ValueError,
            rf"{_name} must have shape \[B, T\] .* got \[{T}\]",
        ),
        f"{_name} 3-D": (
            {_name: zeros(B, T, 1, dtype=_dtype)},
            ValueError,
            rf"{_name} must have shape \[B, T\] .* got \[{B}, {T}, 1\]",
        ),
        f"{_name} T": (
            {_name: zeros(B, T - 1, dtype=_dtype)},
            ValueError,
            rf"{_name} must lead with \[B, T\] = .* like the inputs, got \[{B}, {T - 1}\]",
        ),
        f"{_name} turned": (
            {_name: zeros(T, B, dtype=_dtype)},
            ValueError,
            rf"{_name} must lead with .* got \[{T}, {B}\]",
        ),
    }


@pytest.fixture(scope="module")
def state():
    return make_state("rnn")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_is_refused_by_name(state, function, case):
    fields, error, message = BAD[case]
    with pytest.raises(error, match="^Batch: " + message):
        FUNCTIONS[function](state, GOOD._replace(**fields))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wrong", [(GOOD.inputs, GOOD.targets), {"inputs": GOOD.inputs}, None])
def test_what_is_no_batch_is_refused(state, function, wrong):
    message = f"batch must be a tbptt_jax.Batch, got {type(wrong).__name__}; write Batch("
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        FUNCTIONS[function](state, wrong)


@pytest.mark.parametrize("function", [tbptt.train_step, tbptt.gradient])
@pytest.mark.parametrize("wrong", [(2, 2), 2, None])
def test_what_is_no_plan_is_refused(state, function, wrong):
    message = f"truncation must be a tbptt_jax.Truncation, got {type(wrong).__name__}; write "
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        function(state, GOOD, wrong)


def test_a_refused_call_leaves_the_state_usable():
    state = make_state("rnn")
    before = as_numpy(state.params)
    for fields, error, _ in BAD.values():
        with pytest.raises(error):
            tbptt.train_step(state, GOOD._replace(**fields), PLAN)
    assert_close(as_numpy(state.params), before, tolerance=0)
    _, metrics = tbptt.train_step(state, GOOD, PLAN)
    assert np.all(np.asarray(metrics.weight) > 0)


def test_arrays_of_either_library_and_weights_of_16_bits_are_accepted(state):
    # The good batch passes: what the tables above change in it is what is refused.
    expected = tbptt.gradient(state, GOOD, PLAN)
    other = jax.tree.map(jnp.asarray, GOOD._replace(weights=np.float16(GOOD.weights)))
    assert_close(tbptt.gradient(state, other, PLAN), expected)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(as_numpy(expected)))
