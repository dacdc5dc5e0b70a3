"""Bad values are told at the boundary, as `checks` tells bad shapes: before anything is compiled.

JAX clamps or fills what is out of range and computes on with NaN; nothing would be said. Values are
read where that is free: in NumPy arrays, and in JAX arrays on a CPU. Not in a traced array, which
has none, nor in one on an accelerator: to read it would stall the steps that are under way there.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tbptt_jax.credit import Truncation, intervals
from tbptt_jax.recurrence import step_shape
from tbptt_jax.types import Batch, LossFn, Model, Params
from tbptt_jax.window import check_encoded, check_initial

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels


def check_inputs(model: Model, params: Params, batch: Batch) -> None:
    """Raise if the inputs are not what the model takes, or not finite; padding may hold anything.

    Raises:
      TypeError: ids for an embedding that are not integers.
      ValueError: ids outside the vocabulary, NaN or infinity, or inputs that the model fails on.
    """
    exists = _exists(batch)
    for name, leaf in _leaves("inputs", batch.inputs):
        if model.vocabulary is not None:
            what = f"ids, as the encoder embeds {model.vocabulary} of them"
            _check_range(name, leaf, exists, model.vocabulary, what)
        _check_finite(name, leaf, exists, "fill gaps, or set `mask` False there")
    _outputs(model, params, batch.inputs)


def check_values(model: Model, params: Params, loss: LossFn, batch: Batch) -> None:
    """Raise if inputs, weights or targets are wrong; what is not scored may be anything.

    Raises:
      TypeError: as `check_inputs`; labels that are not integers.
      ValueError: as `check_inputs`; weights that are negative; NaN or infinity; labels that are no
        class of the outputs, where the loss is optax's cross entropy with integer labels.
    """
    check_inputs(model, params, batch)
    if batch.weights is not None:
        exists, advice = _exists(batch), "a step without a loss has weight 0"
        _check_finite("weights", batch.weights, exists, advice)
        weights = _read(batch.weights)
        if weights is not None and weights.min() < 0:
            _refuse("weights", weights, weights < 0, exists, "0 or more", advice)
    scored = _scored(batch)
    options = loss.keywords if isinstance(loss, functools.partial) else {}
    has_labels = (loss.func if isinstance(loss, functools.partial) else loss) is LABELS
    for name, leaf in _leaves("targets", batch.targets):
        if has_labels:
            outputs, axis = _outputs(model, params, batch.inputs), options.get("axis", -1)
            if isinstance(axis, int) and getattr(outputs, "ndim", 0) == leaf.ndim + 1:
                classes = outputs.shape[axis]
                what = f"labels, as the model puts out {classes} classes"
                _check_range(name, leaf, scored, classes, what)
        _check_finite(name, leaf, scored, "fill gaps, or set `weights` 0 there")


def check_scored(batch: Batch, truncation: Truncation, stacklevel: int) -> None:
    """Tell where a batch trains nothing: no step has a weight, or the plan scores none that has.

    An error for whole sequences. A warning for streams, where the loss may stand in a later batch.

    Raises:
      ValueError: no step of whole sequences is scored.
    """
    scored = _scored(batch)
    if scored.ndim == 0:
        return
    if not scored.any():
        why = "`weights` or `mask` are 0 at all of them; see data.mark_losses"
    elif not scored[:, _columns(truncation, scored.shape[1])].any():
        why = (
            f"k2={truncation.k2} < k1={truncation.k1} scores the last {truncation.k2} steps before "
            "an update, and `weights` are 0 there; raise k2, or move the losses"
        )
    else:
        return
    if batch.reset is None:
        raise ValueError(f"Batch: no step is scored: {why}")
    warnings.warn(
        f"Batch: no step is scored: {why}. The batch only moves the carry of its stream, which is "
        "right if the losses come in later ones",
        stacklevel=stacklevel,
    )


def _leaves(field: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a field, and how a user would write them."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield field + jax.tree_util.keystr(path), leaf


def _read(array: Any) -> np.ndarray | None:
    """The values of an array; None where they are not to be had, or not for free."""
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return None
    if any(device.platform != "cpu" for device in array.devices()):
        return None
    return np.asarray(array)


# Where steps exist or are scored: bool [B, T]; or [], all of them, or none that is known to be.


def _exists(batch: Batch) -> np.ndarray:
    if batch.mask is None:
        return np.array(True)
    mask = _read(batch.mask)
    return np.array(False) if mask is None else mask


def _scored(batch: Batch) -> np.ndarray:
    exists = _exists(batch)
    if batch.weights is None:
        return exists
    weights = _read(batch.weights)
    if weights is None or (exists.ndim == 0 and not exists):
        return np.array(False)
    return (weights != 0) & exists


def _check_finite(name: str, array: Any, where: np.ndarray, advice: str) -> None:
    values = _read(array)
    if values is None or not jnp.issubdtype(values.dtype, np.inexact):
        return
    finite = np.isfinite(values)
    if not finite.all():
        _refuse(name, values, ~finite, where, "finite", advice)


def _check_range(name: str, array: Any, where: np.ndarray, count: int, what: str) -> None:
    if not jnp.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"Batch: {name} must be integers from 0 to {count - 1} ({what}), got {array.dtype}; "
            f"use {name}.astype(np.int32)"
        )
    values = _read(array)
    if values is not None and (values.min() < 0 or values.max() >= count):
        wrong, expected = (values < 0) | (values >= count), f"from 0 to {count - 1} ({what})"
        _refuse(name, values, wrong, where, expected, "what is padded has `mask` False")


def _refuse(
    name: str, values: np.ndarray, wrong: np.ndarray, where: np.ndarray, expected: str, advice: str
) -> None:
    """Raise for the first value that is wrong at a step that counts, if there is one."""
    rows, length = values.shape[:2]
    steps = wrong.reshape(rows, length, -1).any(axis=2) & where
    if steps.any():
        row, step = divmod(int(steps.argmax()), length)
        value = np.ravel(values[row, step])[np.ravel(wrong[row, step]).argmax()]
        raise ValueError(
            f"Batch: {name} must be {expected}, got {value} in row {row} at step {step} (both from "
            f"0); {advice}"
        )


@functools.lru_cache(maxsize=64)
def _columns(truncation: Truncation, length: int) -> np.ndarray:
    """Which of the steps a plan scores, bool [T]."""
    columns = np.zeros(length, bool)
    for interval in intervals(truncation, length):
        columns[interval.scored : interval.end] = True
    return columns


def _outputs(model: Model, params: Params, inputs: Any) -> Any:
    """The shapes of what a model puts out for inputs; None where that is told when it is traced."""
    leaves, of_inputs = jax.tree.flatten(inputs)
    weights, of_params = jax.tree.flatten(params)
    shapes = [tuple((x.shape, x.dtype) for x in group) for group in (leaves, weights)]
    return _outputs_of(model, of_inputs, of_params, *shapes)


@functools.lru_cache(maxsize=256)
def _outputs_of(model: Model, of_inputs: Any, of_params: Any, leaves: Any, weights: Any) -> Any:
    inputs, params = (
        tree.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in group])
        for tree, group in ((of_inputs, leaves), (of_params, weights))
    )

    def part(name: str, function: Callable, *args: Any) -> Any:
        try:
            return jax.eval_shape(function, *args)
        except Exception as error:  # whatever Flax, JAX or a user's function makes of a shape
            given = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in leaves)
            raise ValueError(
                f"Batch: inputs {given} fail in the model's {name}: {str(error).splitlines()[0]}; "
                "give it the features that it was made for"
            ) from error

    xs = part("encoder", lambda p, x: model.encode(p, x, None), params, inputs)
    check_encoded(xs, inputs)
    shape = step_shape(xs)
    carry = part("initialize_carry", lambda p: model.initialize_carry(p, shape), params)
    check_initial(carry, shape)
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), xs)
    after = part("core", model.step, params, carry, x)
    if not (isinstance(after, tuple) and len(after) == 2):
        return None
    length = jax.tree.leaves(xs)[0].shape[1]
    ys = jax.tree.map(
        lambda y: jax.ShapeDtypeStruct((y.shape[0], length, *y.shape[1:]), y.dtype), after[1]
    )
    return part("readout", lambda p, y: model.readout(p, y, None), params, ys)
