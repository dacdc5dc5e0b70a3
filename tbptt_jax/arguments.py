"""Checks of what public functions take: counts, choices, arrays and batches.

Each error names the argument, what was expected, what came and, where it helps, what to do.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.types import Array, Batch, Tree

_LIKE = "like the inputs"
TARGETS_ADVICE = (
    "repeat a label of a whole sequence at every step, with `weights` where its loss counts; to "
    "look h steps ahead, cut the last h of the inputs and the first h of the targets"
)


def check_integer(caller: str, name: str, value: object, advice: str = "") -> int:
    """Return an integer, Python's or NumPy's, as an int.

    Args:
      caller: the function or class that takes the argument.
      name: the argument.
      value: its value.
      advice: what to do, the end of the message.

    Raises:
      TypeError: it is not an integer; a bool is none.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        scalar = isinstance(value, bool | float | str | np.generic | None)
        found = repr(value) if scalar else type(value).__name__
        message = f"{caller}: {name} must be an integer, got {found}"
        raise TypeError(_with(message, advice)) from None


def check_count(caller: str, name: str, value: object, least: int = 1, advice: str = "") -> int:
    """Return an integer of at least `least` as an int; arguments as of `check_integer`.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is too small.
    """
    count = check_integer(caller, name, value, advice)
    if count < least:
        message = f"{caller}: {name} must be at least {least}, got {count}"
        raise ValueError(_with(message, advice))
    return count


def check_choice(caller: str, name: str, value: object, *choices: str) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    if value not in choices:
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{caller}: {name} must be {known}, got {value!r}")


def check_leading(
    claim: str,
    tree: Tree,
    axes: str,
    leading: tuple[int, ...],
    meaning: str,
    *,
    exact: bool = False,
    advice: str = "",
) -> None:
    """Raise a ValueError unless every array of a pytree has the same leading axes.

    Args:
      claim: what the message says of the shape, for instance "Batch: targets must have".
      tree: the arrays.
      axes: names of the leading axes, for instance "B, T".
      leading: their sizes.
      meaning: what they are, for instance "one output for every step".
      exact: whether the arrays have no other axes.
      advice: what to do, the end of the message.
    """
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        shape = getattr(leaf, "shape", ())
        if (shape if exact else shape[: len(leading)]) != leading:
            path = jax.tree.leaves_with_path(tree)[number][0]  # slow, so only now
            place = f" at {jax.tree_util.keystr(path)}" if path else ""
            expected = f"[{axes}]" if exact else f"[{axes}, ...] with [{axes}]"
            message = (
                f"{claim} shape {expected} = {list(leading)}, {meaning}, got {list(shape)}{place}"
            )
            raise ValueError(_with(message, advice))


def check_numbers(owner: str, name: str, array: Array) -> None:
    """Raise a TypeError unless an array holds numbers."""
    if array.dtype.kind not in "OSUMm":
        return
    found, advice = str(array.dtype), "give each symbol a number"
    if array.dtype == object:
        kinds = [type(x).__name__ for x in np.ravel(array)]
        odd = next((k for k in kinds if k not in ("int", "float", "bool")), kinds[0])
        found += f" with {odd}"
        if odd in ("NoneType", "NAType"):
            advice = "fill gaps, or mask them and fill them with any number"
    raise TypeError(f"{owner}: {name} must hold numbers, got {found}; {advice}")


def check_boolean(owner: str, name: str, array: Array) -> None:
    """Raise a TypeError unless an array is boolean."""
    if array.dtype != bool:
        raise TypeError(
            f"{owner}: {name} must be boolean, got {array.dtype}; use {name}.astype(bool)"
        )


def check_batch(batch: Batch, *, targets: bool = True) -> tuple[int, int]:
    """Return B and T of a batch whose arrays belong together.

    Shapes and dtypes are checked, no values.

    Args:
      batch: the batch.
      targets: whether it must have targets.

    Raises:
      TypeError: no Batch, no array, a mask or reset that is not boolean, or weights that are not
        floating point.
      ValueError: inputs without [B, T], or empty; another array with another [B, T].
    """
    if not isinstance(batch, Batch):
        raise TypeError(
            f"batch must be a tbptt_jax.Batch, got {type(batch).__name__}; write "
            "Batch(inputs, targets)"
        )
    first = _check_arrays("inputs", batch.inputs)
    if len(first) < 2 or 0 in first[:2]:
        raise ValueError(
            "Batch: inputs must have shape [B, T, ...], at least one example and step, got "
            f"{list(first)}"
        )
    shape = first[:2]
    check_leading("Batch: inputs must have", batch.inputs, "B, T", shape, "like the first of them")
    if targets or batch.targets is not None:
        _check_arrays("targets", batch.targets)
        claim = "Batch: targets must have"
        check_leading(claim, batch.targets, "B, T", shape, _LIKE, advice=TARGETS_ADVICE)
    for name, mark in (("mask", batch.mask), ("reset", batch.reset), ("weights", batch.weights)):
        if mark is not None:
            _check_is_array(name, mark, "[B, T]")
            check_leading(f"Batch: {name} must have", mark, "B, T", shape, _LIKE, exact=True)
            _check_mark_dtype(name, mark)
    return shape


def _check_arrays(name: str, field: Tree) -> tuple[int, ...]:
    """Check that inputs or targets are arrays of numbers; return the shape of the first."""
    leaves = jax.tree.leaves(field)
    if not leaves:
        raise TypeError(
            f"Batch: {name} must be an array [B, T, ...], got none; only predict does without "
            "targets"
        )
    for leaf in leaves:
        _check_is_array(name, leaf, "[B, T, ...]")
        check_numbers("Batch", name, leaf)
    return leaves[0].shape


def _check_is_array(name: str, value: object, shape: str) -> None:
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"Batch: {name} must be an array {shape}, got {type(value).__name__}; convert it with "
            "np.asarray"
        )


def _check_mark_dtype(name: str, mark: Array) -> None:
    if name != "weights":
        check_boolean("Batch", name, mark)
    elif not jnp.issubdtype(mark.dtype, np.floating):
        raise TypeError(
            f"Batch: weights must be floating point, got {mark.dtype}; use "
            "weights.astype(np.float32)"
        )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, short enough to be quoted in a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]


def _with(message: str, advice: str) -> str:
    return f"{message}; {advice}" if advice else message
