"""What a trained state makes of whole sequences; the training carry is neither used nor changed."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax import windows
from tbptt_jax.checks import check_batch, check_stream
from tbptt_jax.train import TrainState, check_state
from tbptt_jax.types import Batch, LossFn
from tbptt_jax.values import check_inputs, check_values
from tbptt_jax.window import Window, forward, step_losses


def predict(state: TrainState, batch: Batch) -> Any:
    """The outputs at every step of a batch, from the initial carry, without dropout.

    Args:
      state: not changed; its carry is not used.
      batch: [B, T, ...]; its targets and weights are not looked at.

    Returns:
      The readout's outputs, [B, T, ...].

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state)
    check_batch(batch)
    check_inputs(state.functions, state.params, batch)
    return _predict(state.functions, state.params, None, batch)[0]


def evaluate(
    state: TrainState,
    batches: Batch | Iterable[Batch],
    metrics: Mapping[str, LossFn] | None = None,
) -> dict[str, float]:
    """Weighted mean of the loss over batches, without dropout.

    Args:
      state: not changed; its carry is not used.
      batches: whole sequences (reset=None), each batch from the initial carry; or, with reset
        arrays, streams, which go on from one batch to the next and begin with the initial carry.
      metrics: further functions `(outputs, targets) -> [B, T]` by name, averaged as the loss is.
        Give the same functions at each call: new ones are compiled anew.

    Returns:
      The mean of "loss" and of each metric, and "weight", the sum of the weights.

    Raises:
      TypeError, ValueError: as `train_step`; ValueError also when nothing has a weight.
    """
    metrics = {} if metrics is None else metrics
    sums = np.zeros(len(metrics) + 2)
    for part in totals(state, batches, metrics):
        sums += np.asarray(part)
    weight = float(sums[-1])
    if not weight > 0:
        raise ValueError(
            "evaluate: batches must have at least one step with a loss, got a total weight of "
            f"{weight}; see Batch.mask and Batch.weights, and whether the iterator is spent"
        )
    names = ("loss", *metrics)
    means = {name: float(s) / weight for name, s in zip(names, sums[:-1], strict=True)}
    return {**means, "weight": weight}


def totals(
    state: TrainState, batches: Batch | Iterable[Batch], metrics: Mapping[str, LossFn]
) -> Iterator[jax.Array]:
    """The sums that `evaluate` takes means of, one batch after the other.

    It reads no results, so it can be traced: `jax.vmap` evaluates many parameters at once.

    Args:
      state, batches, metrics: as in `evaluate`.

    Yields:
      [2 + M]: the sums of the loss, of each of the M metrics, and of the weights.

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state)
    _check_metrics(metrics)
    if not isinstance(batches, Iterable):
        raise TypeError(
            "evaluate: batches must be a Batch or an iterable of them, got "
            f"{type(batches).__name__}"
        )
    functions = (state.loss, *metrics.values())
    carry = None
    for batch in [batches] if isinstance(batches, Batch) else batches:
        check_batch(batch)
        check_values(state.functions, state.params, state.loss, batch, metrics)
        if batch.reset is None:
            carry = None
        elif carry is not None:
            check_stream(
                carry, windows.batch_shape(batch)[0], "evaluate other streams by themselves"
            )
        carry, part = _evaluate(state.functions, functions, state.params, carry, batch)
        yield part


def _check_metrics(metrics: Mapping[str, LossFn]) -> None:
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "evaluate: metrics must map names to functions (outputs, targets) -> [B, T], got "
            f"{type(metrics).__name__}"
        )
    for name, metric in metrics.items():
        if name in ("loss", "weight"):
            raise ValueError(
                f'evaluate: metrics must not be named "loss" or "weight", got {name!r}, which is '
                "returned anyway"
            )
        if not callable(metric):
            raise TypeError(
                f"evaluate: metrics must be functions (outputs, targets) -> [B, T], got "
                f"{type(metric).__name__} for {name!r}"
            )


@functools.partial(jax.jit, static_argnums=0)
def _predict(functions, params, carry, batch):
    window = Window(batch.inputs, batch.targets, mask=batch.mask, reset=batch.reset)
    carry, ys, _ = forward(functions, params, carry, window)
    return functions.readout(params, ys, None), carry


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(functions, metrics, params, carry, batch):
    outputs, carry = _predict(functions, params, carry, batch)
    rows, length = windows.batch_shape(batch)
    weights = windows.step_weights(batch, 0, length)
    total = rows * length if weights is None else jnp.sum(weights)
    sums = [jnp.sum(step_losses(metric, outputs, batch.targets, weights)) for metric in metrics]
    return carry, jnp.stack([*sums, jnp.asarray(total, sums[0].dtype)])
