"""What the processes of one program do together, and what one of them does for all.

With one process every function here only calls its argument. With several, all processes must call
the same functions in the same order, as they must for anything that JAX computes together.
"""

import importlib
import json
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

Json: TypeAlias = Any
Raised: TypeAlias = Exception | SystemExit
R = TypeVar("R")


def several() -> bool:
    """Whether the program runs in more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that acts for all."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Json]) -> Json:
    """Call a function in the first process alone; its result, JSON, or its error is everyone's."""
    if not several():
        return function()
    result, error = _try(function) if is_first() else (None, None)
    said = gather([result, _as_json(error)])[0]
    _raise_any(error, [said[1]])
    return said[0]


def together(function: Callable[[], R]) -> R:
    """Call a function in every process; where it raises in one, all raise."""
    if not several():
        return function()
    result, error = _try(function)
    _raise_any(error, gather(_as_json(error)))
    return result  # pyright: ignore[reportReturnType]


def gather(value: Json) -> list[Json]:
    """The values of all processes, JSON, in the order of the processes."""
    if not several():
        return [value]
    from jax.experimental import multihost_utils

    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(said.size))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: said.size] = said
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def _try(function: Callable[[], R]) -> tuple[R | None, Raised | None]:
    try:
        return function(), None
    except (Exception, SystemExit) as error:
        return None, error


def _as_json(error: Raised | None) -> Json:
    """An error as JSON, of which another process makes one of the same class and words."""
    if error is None:
        return None
    args = [*error.args]
    if isinstance(error, OSError) and error.filename is not None:
        args = [error.errno, error.strerror, str(error.filename)]
    kind = type(error)
    return {"class": [kind.__module__, kind.__qualname__], "args": [_plain(arg) for arg in args]}


def _plain(value: object) -> Json:
    return value if isinstance(value, int | float | str | None) else str(value)


def _raise_any(own: Raised | None, all_of_them: list[Json]) -> None:
    """Raise this process's error, or else the first of another one."""
    if own is not None:
        raise own
    for number, said in enumerate(all_of_them):
        if said is not None:
            raise _from_json(number, said)


def _from_json(number: int, said: Json) -> Raised:
    module, name = said["class"]
    try:
        return getattr(importlib.import_module(module), name)(*said["args"])
    except Exception:  # a class that cannot be made of its arguments
        return RuntimeError(f"process {number} failed: {name}: {', '.join(map(str, said['args']))}")
