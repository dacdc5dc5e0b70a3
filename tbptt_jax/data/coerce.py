"""Sequences of numbers as arrays; each error names the argument and the function that takes it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tbptt_jax.arguments import check_numbers

# One array for each sequence, or an array of them all.
Sequences: TypeAlias = Sequence[ArrayLike] | np.ndarray


def per_step(
    caller: str, inputs: Sequences, targets: Sequences
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs and targets as arrays [steps, ...], with labels of whole sequences repeated."""
    xs, ys = sequences_of(caller, "inputs", inputs), _arrays(caller, "targets", targets)
    if len(xs) != len(ys):
        raise ValueError(
            f"{caller}: targets must be one for each of the inputs, got {len(ys)} for {len(xs)} "
            "inputs"
        )
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if y.shape[1:] != ys[0].shape[1:]:
            raise ValueError(
                f"{caller}: targets must have features of one shape, got {list(y.shape[1:])} in "
                f"number {i} but {list(ys[0].shape[1:])} in number 0"
            )
        if y.ndim and len(y) != len(x):
            raise ValueError(
                f"{caller}: targets must have a step for each step of the inputs, {len(x)} in "
                f"number {i}, or be one number, got shape {list(y.shape)}; to look h steps ahead "
                "pass inputs[:-h] and, as targets, what comes at [h:]"
            )
    ys = [y if y.ndim else np.repeat(y, len(x)) for x, y in zip(xs, ys, strict=True)]
    return xs, _of_one_dtype(ys)


def sequences_of(caller: str, name: str, sequences: Sequences) -> list[np.ndarray]:
    """At least one array [steps, ...], all of one dtype and with features of one shape."""
    arrays = _arrays(caller, name, sequences)
    if not arrays:
        raise ValueError(f"{caller}: {name} must hold at least one sequence, got none")
    for i, array in enumerate(arrays):
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(
                f"{caller}: {name} must be sequences [steps, ...] of at least one step, got shape "
                f"{list(array.shape)} in number {i}; pass a single sequence as [sequence]"
            )
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"{caller}: {name} must have features of one shape, got {list(array.shape[1:])} in "
                f"number {i} but {list(arrays[0].shape[1:])} in number 0"
            )
    return _of_one_dtype(arrays)


def _arrays(caller: str, name: str, sequences: Sequences) -> list[np.ndarray]:
    if isinstance(sequences, str) or not hasattr(sequences, "__iter__"):
        raise TypeError(f"{caller}: {name} must hold arrays, got {type(sequences).__name__}")
    if hasattr(sequences, "columns"):
        raise TypeError(
            f"{caller}: {name} must hold an array for each sequence, got a "
            f"{type(sequences).__name__}, which iterates over the names of its columns; write "
            f"[{name}.to_numpy()] for one sequence, or a list of such for groups of rows"
        )
    return [array_of(caller, f"{name}[{i}]", values) for i, values in enumerate(sequences)]


def array_of(caller: str, name: str, values: ArrayLike) -> np.ndarray:
    """The values as an array of numbers.

    Raises:
      TypeError: it holds something else.
      ValueError: it is lists of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{caller}: {name} must be an array, got lists of different lengths"
        ) from error
    for column in getattr(values, "columns", ()):  # of a DataFrame, whose dtypes may differ
        check_numbers(caller, f"{name}[{column!r}]", np.asarray(values[column]))  # pyright: ignore
    check_numbers(caller, name, array)
    return array


def marks_of(caller: str, name: str, marks: Sequences) -> list[np.ndarray]:
    """Boolean arrays. Numbers might be the positions of the marks, and all would count as True."""
    arrays = _arrays(caller, name, marks)
    for i, array in enumerate(arrays):
        if array.dtype != bool:
            raise TypeError(
                f"{caller}: {name} must be boolean, True at each mark, got {array.dtype} in number "
                f"{i}"
            )
    return arrays


def _of_one_dtype(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Cast to the dtype that holds them all: a list of integers must not round one of floats."""
    dtype = np.result_type(*{x.dtype for x in arrays})
    return [x.astype(dtype, copy=False) for x in arrays]


def some(items: list[list[int]] | list[int]) -> str:
    """The first items, so that a message stays readable."""
    return str(items[:5])[:-1] + (", ...]" if len(items) > 5 else "]")
