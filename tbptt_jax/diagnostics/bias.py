"""The bias of a truncated gradient against the gradient of full BPTT."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tbptt_jax.arguments import check_batch
from tbptt_jax.plans.plan import Plan
from tbptt_jax.plans.truncation import Truncation
from tbptt_jax.training.state import TrainState
from tbptt_jax.training.step import gradient
from tbptt_jax.types import Batch, Params, batch_shape


class Bias(NamedTuple):
    """How a truncated gradient g differs from the gradient f of full BPTT.

    Attributes:
      relative: |g - f| / |f|; 0 where they agree, infinite where f alone is 0, NaN where both
        are.
      cosine: of the angle between g and f; NaN where either is 0.
      norm_ratio: |g| / |f|.
      variance: of a random scheme, the mean of |g_i - g|^2 over its draws g_i, divided by |f|^2; 0
        for one plan.
    """

    relative: float
    cosine: float
    norm_ratio: float
    variance: float


def gradient_bias(
    state: TrainState, batch: Batch, truncation: Plan | Sequence[Plan]
) -> dict[str, Bias]:
    """Compare a truncated gradient with that of full BPTT on a probe batch.

    Both are `gradient`s: the parameters are fixed, dropout is off, and a sum over losses is divided
    by their weight. The gradient of a plan with k2 < k1 is that of the losses that it scores.

    Args:
      state: not changed.
      batch: as in `gradient`.
      truncation: the plan; or several, the draws of a random scheme (random lengths as in AWD-LSTM,
        say), whose mean gradient is g.

    Returns:
      The bias of the whole gradient, under "all", and of its part for each group of parameters,
      under its name in the first level of `state.params` ("encoder", "core", "readout").

    Raises:
      TypeError, ValueError: as `gradient`.
      ValueError: `truncation` is an empty list.
    """
    if isinstance(truncation, Sequence) and not isinstance(truncation, Plan):
        plans = list(truncation)
    else:
        plans = [truncation]
    if not plans:
        raise ValueError("gradient_bias: truncation must hold at least one plan, got none")
    check_batch(batch)
    _, length = batch_shape(batch)
    full = gradient(state, batch, Truncation(length, length))
    return compare_gradients([gradient(state, batch, plan) for plan in plans], full)


def compare_gradients(estimates: Sequence[Params], full: Params) -> dict[str, Bias]:
    """Compare gradients of any estimator with the gradient that they estimate.

    Args:
      estimates: a list of pytrees of arrays: one, or the draws of a random estimator, whose mean is
        compared.
      full: the exact gradient, a pytree of the same structure and shapes.

    Returns:
      As `gradient_bias`.

    Raises:
      TypeError: estimates is not a sequence.
      ValueError: there is no estimate, `full` holds no array, or an estimate differs from it in
        structure or shapes.

    Examples: an estimator that drops one parameter or the other, and doubles the rest.
      >>> estimates = [{"a": 2.0, "b": 0.0}, {"a": 0.0, "b": 2.0}]
      >>> compare_gradients(estimates, full={"a": 1.0, "b": 1.0})["all"]
      Bias(relative=0.0, cosine=1.0, norm_ratio=1.0, variance=1.0)
    """
    if not isinstance(estimates, Sequence):
        raise TypeError(
            "compare_gradients: estimates must be a list of gradients, got "
            f"{type(estimates).__name__}; one is given as [gradient]"
        )
    if not jax.tree.leaves(full):
        raise ValueError("compare_gradients: full must hold at least one array, got none")
    if not estimates:
        raise ValueError("compare_gradients: estimates must hold at least one gradient, got none")
    for i, estimate in enumerate(estimates):
        if _shapes(estimate) != _shapes(full):
            raise ValueError(
                f"compare_gradients: estimates must be pytrees like full, {_shapes(full)}, got "
                f"{_shapes(estimate)} in number {i}"
            )
    whole, draws = _groups(full), [_groups(estimate) for estimate in estimates]
    return {name: _bias(whole[name], [draw[name] for draw in draws]) for name in whole}


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _groups(grads: Params) -> dict[str, np.ndarray]:
    """The whole gradient, and its part for each key of the first level, as float64 vectors."""
    leaves: dict[str, list[np.ndarray]] = {"all": []}
    for path, leaf in jax.tree.leaves_with_path(grads):
        vector = np.ravel(np.asarray(leaf))
        if np.iscomplexobj(vector):
            vector = np.concatenate([np.real(vector), np.imag(vector)])
        vector = vector.astype(np.float64)
        leaves["all"].append(vector)
        if path:
            leaves.setdefault(jax.tree_util.keystr(path[:1], simple=True), []).append(vector)
    return {name: np.concatenate(vectors) for name, vectors in leaves.items()}


def _bias(full: np.ndarray, draws: list[np.ndarray]) -> Bias:
    mean: Any = np.mean(draws, axis=0)
    size, of_mean = np.linalg.norm(full), np.linalg.norm(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Bias(
            relative=float(np.linalg.norm(mean - full) / size),
            cosine=float(mean @ full / (of_mean * size)),
            norm_ratio=float(of_mean / size),
            variance=float(np.mean([np.sum((d - mean) ** 2) for d in draws]) / size**2),
        )
