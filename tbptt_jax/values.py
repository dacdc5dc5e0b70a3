"""Bad values are told at the boundary, as `checks` tells bad shapes: before anything is compiled.

JAX clamps or fills what is out of range and computes on with NaN; nothing would be said. Values are
read where that is free: in NumPy arrays, and in JAX arrays on a CPU. Not in a traced array, which
has none, nor in one on an accelerator: to read it would stall the steps that are under way there.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from tbptt_jax.checks import first_line
from tbptt_jax.credit import Truncation, intervals
from tbptt_jax.recurrence import check_pair, step_shape
from tbptt_jax.types import Batch, LossFn, Model, Params
from tbptt_jax.window import check_encoded, check_initial, check_losses, check_outputs

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels


def check_inputs(model: Model, params: Params, batch: Batch) -> Any:
    """Raise if the inputs are not what the model takes, or not finite; padding may hold anything.

    Returns:
      The outputs, as a pytree of `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: ids for an embedding that are not integers.
      ValueError: ids outside the vocabulary, NaN or infinity, or inputs that the model fails on.
    """
    exists = _exists(batch)
    for name, leaf in _leaves("inputs", batch.inputs):
        if model.vocabulary is not None:
            of, advice = f"of the encoder's {model.vocabulary} embeddings", "mask what is padded"
            _check_range(name, leaf, exists, "ids", model.vocabulary, of, advice)
        _check_finite(name, leaf, exists, "fill gaps, or set `mask` False there")
    return _outputs(model, _Shapes.of(params), _Shapes.of(batch.inputs))


def check_values(
    model: Model,
    params: Params,
    loss: LossFn,
    batch: Batch,
    metrics: Mapping[str, LossFn] = MappingProxyType({}),
) -> None:
    """Raise if inputs, weights or targets are wrong; what is not scored may be anything.

    Raises:
      TypeError: as `check_inputs`; labels that are not integers.
      ValueError: as `check_inputs`; weights that are negative; NaN or infinity; labels that are no
        class of the outputs, where the loss is optax's cross entropy with integer labels; a loss
        or a metric that fails or does not return [B, T].
    """
    outputs = check_inputs(model, params, batch)
    if batch.weights is not None:
        exists, advice = _exists(batch), "a step without a loss has weight 0"
        _check_finite("weights", batch.weights, exists, advice)
        weights = _read(batch.weights)
        if weights is not None and weights.min() < 0:
            _refuse("weights", weights, weights < 0, exists, "0 or more", advice)
    scored, classes = _scored(batch), _classes(loss, outputs, batch.targets)
    for name, leaf in _leaves("targets", batch.targets):
        if classes is not None:
            of, advice = f"of the model's {classes} classes", "unscored steps have weight 0"
            _check_range(name, leaf, scored, "labels", classes, of, advice)
        _check_finite(name, leaf, scored, "fill gaps, or set `weights` 0 there")
    named = {f"metric {name!r}": metric for name, metric in metrics.items()}
    for name, function in {"loss": loss, **named}.items():
        _try_loss(name, function, _Shapes.of(outputs), _Shapes.of(batch.targets))


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
        why = "`weights` or `mask` are 0 everywhere; see data.mark_losses"
    elif not scored[:, _columns(truncation, scored.shape[1])].any():
        why = (
            f"of k1={truncation.k1} steps the plan scores the last k2={truncation.k2}, where "
            "`weights` are 0; raise k2, or move the losses"
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
    if isinstance(array, Tracer) or not array.is_fully_addressable:
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


def _check_range(
    name: str, array: Any, where: np.ndarray, kind: str, count: int, of: str, advice: str
) -> None:
    expected = f"{kind} from 0 to {count - 1}, {of}"
    if not jnp.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"Batch: {name} must be integers, {expected}, got {array.dtype}; use "
            f"{name}.astype(np.int32)"
        )
    values = _read(array)
    if values is not None and (values.min() < 0 or values.max() >= count):
        _refuse(name, values, (values < 0) | (values >= count), where, expected, advice)


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


class _Shapes(NamedTuple):
    """A pytree's structure, and the shapes and dtypes of its leaves: what a cache can look up."""

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, tree: Any) -> "_Shapes":
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple([(x.shape, x.dtype) for x in leaves]))

    def tree(self) -> Any:
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.leaves]
        return self.structure.unflatten(leaves)

    def __str__(self) -> str:
        return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in self.leaves)


@functools.lru_cache(maxsize=256)
def _outputs(model: Model, of_params: _Shapes, of_inputs: _Shapes) -> Any:
    params, inputs = of_params.tree(), of_inputs.tree()

    def part(name: str, function: Callable, *args: Any) -> Any:
        try:
            return jax.eval_shape(function, *args)
        except Exception as error:  # whatever Flax, JAX or a user's function makes of a shape
            raise ValueError(
                f"Batch: inputs {of_inputs} fail in the model's {name}: {first_line(error)}; "
                "inputs, encoder, core and readout must fit each other"
            ) from error

    xs = part("encoder", lambda p, x: model.encode(p, x, None), params, inputs)
    check_encoded(xs, inputs)
    shape = step_shape(xs)
    carry = part("initialize_carry", lambda p: model.initialize_carry(p, shape), params)
    check_initial(carry, shape)
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), xs)
    after = part("core", model.step, params, carry, x)
    check_pair(after)
    length = jax.tree.leaves(xs)[0].shape[1]
    ys = jax.tree.map(
        lambda y: jax.ShapeDtypeStruct((y.shape[0], length, *y.shape[1:]), y.dtype), after[1]
    )
    outputs = part("readout", lambda p, y: model.readout(p, y, None), params, ys)
    check_outputs(outputs, inputs)
    return outputs


@functools.lru_cache(maxsize=256)
def _try_loss(name: str, loss: LossFn, outputs: _Shapes, targets: _Shapes) -> None:
    try:
        losses = jax.eval_shape(loss, outputs.tree(), targets.tree())
    except Exception as error:  # whatever a user's function makes of a shape
        raise ValueError(
            f"{name} fails on outputs {outputs} and targets {targets}: {first_line(error)}; it is "
            "called as (outputs, targets) -> losses [B, T]"
        ) from error
    check_losses(name, losses, targets.leaves[0][0][:2])


def _classes(loss: LossFn, outputs: Any, targets: Any) -> int | None:
    """How many classes labels are of; None where the loss does not say that there are any."""
    options = {}
    if isinstance(loss, functools.partial):
        loss, options = loss.func, loss.keywords
    axis = options.get("axis", -1)
    arrays = hasattr(outputs, "ndim") and hasattr(targets, "ndim")
    if loss is not LABELS or not isinstance(axis, int) or not arrays:
        return None
    if outputs.ndim != targets.ndim + 1:
        raise ValueError(
            f"Batch: targets must be one label for each of the outputs, {_Shapes.of(outputs)}, got "
            f"{_Shapes.of(targets)}; of one-hot labels take targets.argmax(-1)"
        )
    return outputs.shape[axis]
