"""The values of a batch, checked before anything is compiled.

JAX clamps or fills what is out of range, computes on with NaN, and reports neither. Values are read
where that is free: in NumPy arrays, and in JAX arrays on a CPU. They are not read in traced arrays,
which have none, nor on an accelerator, where reading would stall the steps that are running.
"""

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from tbptt_jax.types import Array, Batch, LossFn, Model, Params, Tree
from tbptt_jax.validation import probe
from tbptt_jax.validation.shapes import Forms, Shapes, check_loss_form, model_forms

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels


def check_inputs(model: Model, params: Params, batch: Batch) -> Forms:
    """Raise if the inputs are not what the model takes, or not finite; padding may hold anything.

    Returns:
      What the model makes of the batch.

    Raises:
      TypeError: ids for an embedding that are not integers.
      ValueError: ids outside the vocabulary, NaN or infinity, or inputs that the model fails on;
        an encoder or readout that mixes steps.
    """
    exists = existing_steps(batch)
    for name, leaf in _leaves("inputs", batch.inputs):
        if model.vocabulary is not None:
            of, advice = f"of the encoder's {model.vocabulary} embeddings", "mask what is padded"
            _check_range(name, leaf, exists, "ids", model.vocabulary, of, advice)
        _check_finite(name, leaf, exists, "fill gaps, or set `mask` False there")
    forms = model_forms(model, Shapes.of(params), Shapes.of(batch.inputs))
    probe.check_parts(model, params, batch, forms.ys)
    return forms


def check_values(
    model: Model,
    params: Params,
    loss: LossFn,
    batch: Batch,
    metrics: Mapping[str, LossFn] = MappingProxyType({}),
) -> Forms:
    """Raise if inputs, weights or targets are wrong; unscored steps may hold anything.

    Returns:
      What the model makes of the batch.

    Raises:
      TypeError: as `check_inputs`; labels that are not integers; a loss that is not floating point.
      ValueError: as `check_inputs`; weights that are negative; NaN or infinity; labels that are no
        class of the outputs, where the loss is optax's cross entropy with integer labels; a loss
        or a metric that fails or does not return [B, T].
    """
    forms = check_inputs(model, params, batch)
    if batch.weights is not None:
        exists, advice = existing_steps(batch), "a step without a loss has weight 0"
        _check_finite("weights", batch.weights, exists, advice)
        weights = read(batch.weights)
        if weights is not None and weights.min() < 0:
            _refuse("weights", weights, weights < 0, exists, "0 or more", advice)
    scored, classes = scored_steps(batch), _classes(loss, forms.outputs, batch.targets)
    for name, leaf in _leaves("targets", batch.targets):
        if classes is not None:
            of, advice = f"of the model's {classes} classes", "unscored steps have weight 0"
            _check_range(name, leaf, scored, "labels", classes, of, advice)
        _check_finite(name, leaf, scored, "fill gaps, or set `weights` 0 there")
    named = {f"metric {name!r}": metric for name, metric in metrics.items()}
    for name, function in {"loss": loss, **named}.items():
        check_loss_form(name, function, Shapes.of(forms.outputs), Shapes.of(batch.targets))
        probe.check_loss(name, function, forms.outputs, batch)
    return forms


def read(array: Array) -> np.ndarray | None:
    """The values of an array; None where there are none, or where reading them is not free."""
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, Tracer) or not array.is_fully_addressable:
        return None
    if any(device.platform != "cpu" for device in array.devices()):
        return None
    return np.asarray(array)


def existing_steps(batch: Batch) -> np.ndarray:
    """Where steps exist: bool [B, T]; or bool [], True for all, False where it cannot be read."""
    if batch.mask is None:
        return np.array(True)
    mask = read(batch.mask)
    return np.array(False) if mask is None else mask


def scored_steps(batch: Batch) -> np.ndarray:
    """Where steps have a weight, as `existing_steps`."""
    exists = existing_steps(batch)
    if batch.weights is None:
        return exists
    weights = read(batch.weights)
    if weights is None or (exists.ndim == 0 and not exists):
        return np.array(False)
    return (weights != 0) & exists


def _leaves(field: str, tree: Tree) -> Iterator[tuple[str, Array]]:
    """The arrays of a field, and how a user would write them."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield field + jax.tree_util.keystr(path), leaf


def _check_finite(name: str, array: Array, where: np.ndarray, advice: str) -> None:
    values = read(array)
    if values is None or not jnp.issubdtype(values.dtype, np.inexact):
        return
    finite = np.isfinite(values)
    if not finite.all():
        _refuse(name, values, ~finite, where, "finite", advice)


def _check_range(
    name: str, array: Array, where: np.ndarray, kind: str, count: int, of: str, advice: str
) -> None:
    expected = f"{kind} from 0 to {count - 1}, {of}"
    if not jnp.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"Batch: {name} must be integers, {expected}, got {array.dtype}; use "
            f"{name}.astype(np.int32)"
        )
    values = read(array)
    if values is not None and (values.min() < 0 or values.max() >= count):
        _refuse(name, values, (values < 0) | (values >= count), where, expected, advice)


def _refuse(
    name: str, values: np.ndarray, wrong: np.ndarray, where: np.ndarray, expected: str, advice: str
) -> None:
    """Raise for the first wrong value at a step that counts, if there is one."""
    rows, length = values.shape[:2]
    steps = wrong.reshape(rows, length, -1).any(axis=2) & where
    if steps.any():
        row, step = divmod(int(steps.argmax()), length)
        value = np.ravel(values[row, step])[np.ravel(wrong[row, step]).argmax()]
        raise ValueError(
            f"Batch: {name} must be {expected}, got {value} in row {row} at step {step} (both from "
            f"0); {advice}"
        )


def _classes(loss: LossFn, outputs: Tree, targets: Tree) -> int | None:
    """The number of classes that labels come from; None where the loss has no labels."""
    options = {}
    if isinstance(loss, functools.partial):
        loss, options = loss.func, loss.keywords
    axis = options.get("axis", -1)
    arrays = hasattr(outputs, "ndim") and hasattr(targets, "ndim")
    if loss is not LABELS or not isinstance(axis, int) or not arrays:
        return None
    if outputs.ndim != targets.ndim + 1:
        raise ValueError(
            f"Batch: targets must be one label for each of the outputs, {Shapes.of(outputs)}, got "
            f"{Shapes.of(targets)}; of one-hot labels take targets.argmax(-1)"
        )
    return outputs.shape[axis]
