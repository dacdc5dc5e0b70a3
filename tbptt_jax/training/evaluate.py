"""Evaluation and prediction; they neither use nor change the stream of a training."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.arguments import check_batch
from tbptt_jax.axes import automatic
from tbptt_jax.estimators.sharding import by_rows, rows_of
from tbptt_jax.estimators.window import Window, forward, step_losses, total_weight
from tbptt_jax.sums import exact_terms
from tbptt_jax.training import programs
from tbptt_jax.training.state import TrainState, check_state
from tbptt_jax.training.windows import step_weights
from tbptt_jax.types import Array, Batch, Carry, LossFn, Model, Params, Tree, batch_shape
from tbptt_jax.validation.streams import carry_to_continue
from tbptt_jax.validation.values import check_inputs, check_values


def predict(state: TrainState, batch: Batch) -> Tree:
    """The outputs at every step of a batch, from the initial carry, without dropout.

    Args:
      state: not changed; its stream is not used.
      batch: [B, T, ...]; its targets and weights are ignored: `Batch(inputs)` is enough.

    Returns:
      The readout's outputs, [B, T, ...].

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state, "params")
    check_batch(batch, targets=False)
    return _outputs(state.functions, state.params, batch)


@automatic
def _outputs(functions: Model, params: Params, batch: Batch) -> Tree:
    check_inputs(functions, params, batch)
    # Neither targets nor weights take part in what is compiled.
    batch = batch._replace(targets=None, weights=None)
    programs.bound()
    return _predict(by_rows(functions, rows_of(batch.inputs)), params, None, batch)[0]


def evaluate(
    state: TrainState,
    batches: Batch | Iterable[Batch],
    metrics: Mapping[str, LossFn] | None = None,
) -> dict[str, float]:
    """Weighted mean of the loss over batches, without dropout.

    Args:
      state: not changed; its stream is not used.
      batches: whole sequences (reset=None), each batch from the initial carry; or, with reset
        arrays, streams: the first batch starts from the initial carry, each other resumes.
      metrics: other functions `(outputs, targets) -> [B, T]` by name, averaged as the loss is.
        Pass the same functions at each call: a new one compiles a new program.

    Returns:
      The mean of "loss" and of each metric, and "weight", the sum of the weights.

    Raises:
      TypeError, ValueError: as `train_step`.
      ValueError: no step has a weight.
    """
    metrics = {} if metrics is None else metrics
    names = ("loss", *metrics, "weight")
    found = combine([np.zeros(len(names) + 1), *partial_sums(state, batches, metrics)])
    if not found[-1] > 0:
        raise ValueError(
            "evaluate: batches must have at least one step with a loss, got a total weight of "
            f"{found[-1]}; see Batch.mask and Batch.weights, and whether the iterator is spent"
        )
    return dict(zip(names, found.tolist(), strict=True))


def combine(parts: Sequence[Array]) -> np.ndarray:
    """The means and the weight of all batches together.

    Args:
      parts: one [..., 3 + M] array for each batch.

    Returns:
      float64 [..., 2 + M]; the means are 0 where nothing has a weight.
    """
    stacked = np.stack([np.asarray(part, np.float64) for part in parts])
    sums, whole, weights = stacked[..., :-2], stacked[..., -2:-1], stacked[..., -1:]
    means = np.divide(sums, whole, out=np.zeros_like(sums), where=whole > 0)
    total = weights.sum(axis=0)
    shares = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.concatenate([(means * shares).sum(axis=0), total], axis=-1)


def partial_sums(
    state: TrainState, batches: Batch | Iterable[Batch], metrics: Mapping[str, LossFn]
) -> Iterator[jax.Array]:
    """The sums that `evaluate` combines, one batch after the other.

    No value is read, so this can be traced: `jax.vmap` evaluates many parameters at once.

    Args:
      state, batches, metrics: as in `evaluate`.

    Yields:
      [3 + M]: the sums of the loss and of each of the M metrics, by weights that are scaled so
      that none overflows; the sum of these; and that of the weights as they are.

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state, "params")
    _check_metrics(metrics)
    if not isinstance(batches, Iterable):
        raise TypeError(
            "evaluate: batches must be a Batch or an iterable of them, got "
            f"{type(batches).__name__}"
        )
    carry = None
    for batch in [batches] if isinstance(batches, Batch) else batches:
        check_batch(batch)
        carry, part = _sums(state.functions, state.params, state.loss, metrics, carry, batch)
        yield part


@automatic
def _sums(
    functions: Model,
    params: Params,
    loss: LossFn,
    metrics: Mapping[str, LossFn],
    carry: Carry | None,
    batch: Batch,
) -> tuple[Carry, jax.Array]:
    forms = check_values(functions, params, loss, batch, metrics)
    if batch.reset is None:
        carry = None
    else:
        advice = "evaluate other streams by themselves"
        carry = carry_to_continue(carry, batch, forms.carry, advice)
    programs.bound()
    functions = by_rows(functions, rows_of(batch.inputs))
    return _evaluate(functions, (loss, *metrics.values()), params, carry, batch)


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


@functools.partial(programs.jit, static_argnums=0)
def _predict(
    functions: Model, params: Params, carry: Carry | None, batch: Batch
) -> tuple[Tree, Carry]:
    window = Window(batch.inputs, batch.targets, mask=batch.mask, reset=batch.reset)
    carry, ys, _ = forward(functions, params, carry, window)
    return functions.readout(params, ys, None), carry


@functools.partial(programs.jit, static_argnums=(0, 1))
def _evaluate(
    functions: Model,
    metrics: tuple[LossFn, ...],
    params: Params,
    carry: Carry | None,
    batch: Batch,
) -> tuple[Carry, jax.Array]:
    outputs, carry = _predict(functions, params, carry, batch)
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    terms, whole = exact_terms(weights, rows * length)
    total = total_weight(weights, batch.targets)
    found = [
        jnp.sum(step_losses(metric, outputs, batch.targets, terms, "loss" if i == 0 else "metric"))
        for i, metric in enumerate(metrics)
    ]
    dtype = jnp.result_type(float)
    return carry, jnp.stack([jnp.asarray(part, dtype) for part in (*found, whole, total)])
