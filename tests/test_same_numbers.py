"""The library returns the numbers that it returned when tests/same_numbers.json was written."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from tests.number_cases import FEW, all_cases, of_marks, text
from tests.same_numbers import (
    DIGESTS,
    Arrays,
    check_that_cases_differ,
    difference,
    digest,
    has_digest,
    run,
    share_that_differs,
)

OLD: dict[str, list[float]] = json.loads(DIGESTS.read_text(encoding="utf-8"))
CASES = {name: case for name, case in all_cases().items() if has_digest(name)}
TOLERANCE = 1e-10  # of the sum of magnitudes that a digest adds up
# The marks of one plan share what is compiled.
FAST = {*dict(of_marks()), f"stream/lstm/{text(FEW[0])}", f"stream/custom/{text(FEW[0])}"}
FAST = FAST - {"left padding/lstm"} | {"credit_matrix"}


def check(found: Arrays, old: Sequence[float]) -> None:
    """Raise where a group of arrays differs from its number."""
    for (group, (product, scale)), number in zip(digest(found).items(), old, strict=True):
        assert abs(product - number) <= TOLERANCE * scale, group


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES],
)
def test_a_case_returns_its_numbers(name):
    check(run(CASES[name]), OLD[name])


def test_every_case_has_its_numbers_and_they_differ():
    assert OLD.keys() == CASES.keys()
    assert len(FAST & CASES.keys()) > 40
    assert share_that_differs(list(OLD.values())) > 0.9


def test_a_digest_notices_a_small_change_anywhere():
    rng = np.random.default_rng(0)
    result = {
        "['params']['a'] float64": rng.normal(size=(3, 4)),
        "['params']['b'] float64": rng.normal(size=2),
        "['step'] int32": np.array(3),
    }
    old = [product for product, _ in digest(result).values()]
    check(result, old)
    for name, array in result.items():
        for place in np.ndindex(array.shape):
            changed = array.astype(np.float64)
            changed[place] += 1e-8
            with pytest.raises(AssertionError, match=name.split("'")[1]):
                check(result | {name: changed}, old)


def test_differences_are_relative_and_bits_count():
    old = np.array([1.0, 100.0, np.nan])
    assert difference(old.copy(), old) == 0
    np.testing.assert_allclose(difference(np.array([2.0, 100.0, np.nan]), old), 0.01)
    assert difference(np.array([1.0, 100.0, 0.0]), old) == np.inf
    assert difference(old[:2], old) == np.inf
    assert difference(old.astype(np.float32), old) == np.inf
    assert 0 < difference(np.array([-0.0, 1.0]), np.array([0.0, 1.0])) < 1e-100


def test_cases_that_are_alike_are_refused():
    array = {"['params'] float64": np.ones(2), "['loss'] float64": np.ones(3)}
    with pytest.raises(AssertionError, match="too few"):
        check_that_cases_differ({"a": array, "b": array})
