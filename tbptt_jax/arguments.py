"""Arguments that are no arrays: counts and choices. Each error names the argument and its owner."""

import operator
from typing import Any


def check_count(caller: str, name: str, value: Any, least: int = 1) -> None:
    """Raise unless this is an integer, Python's or NumPy's, of at least so much.

    Raises:
      TypeError: it is not an integer; a bool is none.
      ValueError: it is too small.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {value}")


def check_choice(caller: str, name: str, value: Any, *choices: str) -> None:
    """Raise a ValueError unless this is one of the choices."""
    if value not in choices:
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{caller}: {name} must be {known}, got {value!r}")
