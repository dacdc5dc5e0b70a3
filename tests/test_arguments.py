"""Checks of arguments: what passes, what is returned, and what messages name."""

import re

import numpy as np
import pytest

from tbptt_jax.arguments import check_choice, check_count, check_integer, check_leading, first_line


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_an_integer_is_returned_as_an_int(value):
    for found in (check_integer("f", "n", value), check_count("f", "n", value)):
        assert found == 3
        assert type(found) is int


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((True, "True"), (np.True_, "np.True_"), (2.0, "2.0"), ("3", "'3'"), (None, "None")),
        *(([3], "list"), (np.ones(2, int), "ndarray")),
    ],
)
def test_what_is_no_integer_is_refused(value, found):
    message = re.escape(f"f: n must be an integer, got {found}; use fewer")
    for check in (check_integer, check_count):
        with pytest.raises(TypeError, match=f"^{message}$"):
            check("f", "n", value, advice="use fewer")


def test_a_count_has_a_least_value_and_an_integer_has_none():
    assert check_integer("f", "n", -1) == -1
    assert check_count("f", "n", 0, least=0) == 0
    with pytest.raises(ValueError, match="^f: n must be at least 1, got 0$"):
        check_count("f", "n", 0)
    with pytest.raises(ValueError, match="^f: n must be at least 2, got 1; use more$"):
        check_count("f", "n", 1, least=2, advice="use more")


def test_a_choice_is_one_of_the_choices():
    check_choice("f", "kind", "a", "a", "b")
    with pytest.raises(ValueError, match='^f: kind must be "a" or "b", got \'c\'$'):
        check_choice("f", "kind", "c", "a", "b")


def test_every_array_of_a_tree_leads_with_the_same_axes():
    tree = {"x": np.ones((2, 3)), "y": (np.ones((2, 3, 4)),)}
    check_leading("f must return", tree, "B, T", (2, 3), "one vector for each step")
    check_leading("f must return", None, "B, T", (2, 3), "one vector for each step")
    message = "f must return shape [B, T] = [2, 3], a number, got [2, 3, 4] at ['y'][0]; sum"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_leading("f must return", tree, "B, T", (2, 3), "a number", exact=True, advice="sum")
    message = "f must return shape [B, ...] with [B] = [3], a row, got [2, 3] at ['x']"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_leading("f must return", tree, "B", (3,), "a row")
    with pytest.raises(ValueError, match=r"got \[\]$"):
        check_leading("f must return", 1.0, "B", (3,), "a row")


def test_the_first_line_of_an_error_is_short():
    assert first_line(ValueError("no such file.\nmore")) == "no such file"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) == 300
