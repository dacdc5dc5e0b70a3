"""What data are given as, made arrays; each error names the argument and its owner."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from tbptt_jax.checks import check_boolean, check_numbers
from tbptt_jax.types import Batch

Sequences: TypeAlias = Sequence[Any] | np.ndarray


def per_step(
    caller: str, inputs: Sequences, targets: Sequences
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs and targets as arrays [steps, ...], labels of whole sequences repeated."""
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
                f"number {i}, or be one number, got shape {list(y.shape)}"
            )
    ys = [y if y.ndim else np.repeat(y, len(x)) for x, y in zip(xs, ys, strict=True)]
    return xs, _of_one_dtype(ys)


def sequences_of(caller: str, name: str, given: Any) -> list[np.ndarray]:
    """At least one array [steps, ...], all of one dtype and with features of one shape."""
    arrays = _arrays(caller, name, given)
    if not arrays:
        raise ValueError(f"{caller}: {name} must hold at least one sequence, got none")
    for i, array in enumerate(arrays):
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(
                f"{caller}: {name} must be sequences [steps, ...] of at least one step, got shape "
                f"{list(array.shape)} in number {i}; a single sequence is given as [sequence]"
            )
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"{caller}: {name} must have features of one shape, got {list(array.shape[1:])} in "
                f"number {i} but {list(arrays[0].shape[1:])} in number 0"
            )
    return _of_one_dtype(arrays)


def _arrays(caller: str, name: str, given: Any) -> list[np.ndarray]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{caller}: {name} must hold arrays, got {type(given).__name__}")
    return [array_of(caller, f"{name}[{i}]", one) for i, one in enumerate(given)]


def array_of(caller: str, name: str, given: Any) -> np.ndarray:
    """An array of numbers.

    Raises:
      TypeError: it holds something else.
      ValueError: it is lists of different lengths.
    """
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(
            f"{caller}: {name} must be an array, got lists of different lengths"
        ) from error
    check_numbers(caller, name, array)
    return array


def marks_of(caller: str, name: str, given: Any) -> list[np.ndarray]:
    """Boolean arrays; numbers might be the places of the marks, and would pass for all True."""
    marks = _arrays(caller, name, given)
    for i, mark in enumerate(marks):
        if mark.dtype != bool:
            raise TypeError(
                f"{caller}: {name} must be boolean, True at each mark, got {mark.dtype} in number "
                f"{i}"
            )
    return marks


def _of_one_dtype(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Numbers in lists may be whole in one and not in the next, which the first must not round."""
    dtype = np.result_type(*{x.dtype for x in arrays})
    return [x.astype(dtype, copy=False) for x in arrays]


def check_shapes(caller: str, batch: Batch) -> tuple[int, int]:
    """[B, T] of a batch, all of whose arrays lead with it."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"{caller}: batch must be a Batch, got {type(batch).__name__}; write "
            "Batch(inputs, targets)"
        )
    for name in ("inputs", "targets"):
        if not jax.tree.leaves(getattr(batch, name)):
            raise TypeError(f"{caller}: {name} must be an array [B, T, ...], got none")
    rows, length, *_ = (*np.shape(jax.tree.leaves(batch.inputs)[0]), 0, 0)
    for name, field in batch._asdict().items():
        for leaf in jax.tree.leaves(field):
            shape = np.shape(leaf)
            if len(shape) < 2 or shape[:2] != (rows, length) or 0 in shape[:2]:
                raise ValueError(
                    f"{caller}: {name} must be an array [B, T, ...] with the B and T of the "
                    f"inputs, at least 1 each, got shape {list(shape)} where the inputs have "
                    f"B={rows}, T={length}"
                )
            if name in ("mask", "reset"):
                check_boolean(caller, name, leaf)
    return rows, length


def some(items: list) -> str:
    """The first few, so that an error stays readable."""
    return str(items[:5])[:-1] + (", ...]" if len(items) > 5 else "]")
