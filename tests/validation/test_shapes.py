"""Bad batches and plans: what each public function says of them."""

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


# What is put into a good batch, the error, and what the message must name.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "inputs list": ({"inputs": [[0.0] * T] * B}, TypeError, "inputs must .* got float"),
    "inputs none": ({"inputs": None}, TypeError, "inputs must .* got none"),
    "inputs 0-D": ({"inputs": zeros()}, ValueError, r"inputs must .* got \[\]"),
    "inputs 1-D": (
        {"inputs": zeros(T)},
        ValueError,
        rf"inputs must .* got \[{T}\]",
    ),
    "inputs empty rows": (
        {"inputs": zeros(0, T, FEATURES)},
        ValueError,
        rf"inputs must .* got \[0, {T}, {FEATURES}\]",
    ),
    "inputs empty steps": (
        {"inputs": zeros(B, 0, FEATURES)},
        ValueError,
        rf"inputs must .* got \[{B}, 0, {FEATURES}\]",
    ),
    "inputs unlike": (
        {"inputs": {"a": zeros(B, T, 1), "b": zeros(B, T + 1, 1)}},
        ValueError,
        rf"inputs must .* \[{B}, {T}\].* got .*\[{B}, {T + 1}, 1\]",
    ),
    "targets list": ({"targets": [[0] * T] * B}, TypeError, "targets must .* got int"),
    "targets none": ({"targets": None}, TypeError, "targets must .* got none"),
    "targets per row": (
        {"targets": zeros(B, dtype=int)},
        ValueError,
        rf"targets must .* got \[{B}\]",
    ),
    "targets per row with features": (
        {"targets": zeros(B, CLASSES)},
        ValueError,
        rf"targets must .* got \[{B}, {CLASSES}\]",
    ),
    "targets T": (
        {"targets": zeros(B, T + 1, dtype=int)},
        ValueError,
        rf"targets must .* \[{B}, {T}\].* got \[{B}, {T + 1}\]",
    ),
    "targets B": (
        {"targets": zeros(B + 1, T, dtype=int)},
        ValueError,
        rf"targets must .* got \[{B + 1}, {T}\]",
    ),
    "mask int": (
        {"mask": zeros(B, T, dtype=np.int32)},
        TypeError,
        "mask must .* got int32",
    ),
    "reset float": (
        {"reset": zeros(B, T)},
        TypeError,
        "reset must .* got float32",
    ),
    "reset True": ({"reset": True}, TypeError, "reset must .* got bool"),
    "weights int": (
        {"weights": zeros(B, T, dtype=int)},
        TypeError,
        "weights must .* got int64",
    ),
    "weights bool": ({"weights": zeros(B, T, dtype=bool)}, TypeError, "weights must .* got bool"),
}
for _name, _dtype in (("mask", bool), ("reset", bool), ("weights", np.float32)):
    BAD |= {
        f"{_name} list": (
            {_name: [[True] * T] * B},
            TypeError,
            f"{_name} must .* got list",
        ),
        f"{_name} 1-D": (
            {_name: zeros(T, dtype=_dtype)},
            ValueError,
            rf"{_name} must .* \[B, T\].* got \[{T}\]",
        ),
        f"{_name} 3-D": (
            {_name: zeros(B, T, 1, dtype=_dtype)},
            ValueError,
            rf"{_name} must .* \[B, T\].* got \[{B}, {T}, 1\]",
        ),
        f"{_name} T": (
            {_name: zeros(B, T - 1, dtype=_dtype)},
            ValueError,
            rf"{_name} must .* got \[{B}, {T - 1}\]",
        ),
        f"{_name} turned": (
            {_name: zeros(T, B, dtype=_dtype)},
            ValueError,
            rf"{_name} must .* got \[{T}, {B}\]",
        ),
    }


@pytest.fixture(scope="module")
def state():
    return make_state("rnn")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_is_refused_by_name(state, function, case):
    fields, error, message = BAD[case]
    if (case, function) == ("targets none", "predict"):
        pytest.skip("predict does without")
    with pytest.raises(error, match="^Batch: " + message):
        FUNCTIONS[function](state, GOOD._replace(**fields))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wrong", [(GOOD.inputs, GOOD.targets), {"inputs": GOOD.inputs}, None])
def test_what_is_no_batch_is_refused(state, function, wrong):
    with pytest.raises(TypeError, match=f"^batch must .*Batch, got {type(wrong).__name__}"):
        FUNCTIONS[function](state, wrong)


@pytest.mark.parametrize("function", [tbptt.train_step, tbptt.gradient])
@pytest.mark.parametrize("wrong", [(2, 2), 2, None])
def test_what_is_no_plan_is_refused(state, function, wrong):
    with pytest.raises(TypeError, match=f"^truncation must .* got {type(wrong).__name__}"):
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
