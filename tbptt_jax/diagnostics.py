"""What truncation loses: credit by lag, and the bias of a truncated gradient."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tbptt_jax import per_loss
from tbptt_jax.checks import check_batch
from tbptt_jax.credit import Truncation
from tbptt_jax.train import TrainState, check_training, gradient
from tbptt_jax.types import Batch, Params
from tbptt_jax.window import Window
from tbptt_jax.windows import batch_shape, step_weights, stream_carry


class CreditByLag(NamedTuple):
    """How much of the gradient crosses k steps, k = 0 .. max_lag; every field is [max_lag + 1].

    Attributes:
      params: norm of the gradient's part of lag k, sum_t d l_t / d theta_{t-k} over the total
        weight: the parameters as used k steps before the loss. The parts of all lags add up to
        the gradient of full BPTT, their norms do not.
      carry: mean over the losses, by weight, of the norm of d l_t / d c_{t-k}, the carry after
        step t - k of one example; phi_k of Aicher, Foti and Fox (2019, arXiv:1905.07473). At lag 0
        it is d l_t / d y_t, the core's output.
    """

    params: jax.Array
    carry: jax.Array


def credit_by_lag(state: TrainState, batch: Batch, max_lag: int) -> CreditByLag:
    """Norms of the parts of a batch's gradient by the number of steps they cross.

    The losses of the batch and the steps of the batch; without dropout, at fixed parameters. Costs
    a forward pass and, for each lag, one product of all steps at once with respect to the carry and
    one with respect to the parameters; holds the adjoints' needs of all T steps (see `per_loss`).

    Args:
      state: not changed.
      batch: [B, T, ...]. As in `train_step` its rows are whole sequences where reset is None, and
        otherwise go on from the state's carry.
      max_lag: the largest number of steps between a loss and the step that it sends gradient to,
        0 to T - 1.

    Returns:
      The norms.

    Raises:
      TypeError, ValueError: as `gradient`; ValueError also where max_lag is none of 0 .. T - 1.

    Example: a cell that forgets half in each step, and a loss at the last of four.
      >>> from tbptt_jax import Model
      >>> model = Model(
      ...     initialize_carry=lambda params, shape: jnp.zeros(shape),
      ...     encode=lambda params, inputs, rng: inputs,
      ...     step=lambda params, h, x: (0.5 * h + params * x,) * 2,
      ...     readout=lambda params, ys, rng: ys[..., 0],
      ... )
      >>> state = TrainState.create(model, optax.sgd(0.1), lambda y, t: y, params=jnp.ones(()))
      >>> batch = Batch(np.ones((1, 4, 1)), np.ones((1, 4)), weights=np.float32([[0, 0, 0, 1]]))
      >>> credit_by_lag(state, batch, max_lag=3).params.tolist()
      [1.0, 0.5, 0.25, 0.125]
    """
    check_batch(batch)
    _, length = batch_shape(batch)
    check_training(state, batch, Truncation(length, length))
    is_number = isinstance(max_lag, int | np.integer) and not isinstance(max_lag, bool)
    if not (is_number and 0 <= max_lag < length):
        raise ValueError(
            f"credit_by_lag: max_lag must be an integer from 0 to T - 1 = {length - 1}, got "
            f"{max_lag!r}"
        )
    carry = None
    if batch.reset is not None:
        carry, batch = stream_carry(state.functions, state.params, state.carry, batch)
    return _credit_by_lag(state, carry, batch, int(max_lag))


@functools.partial(jax.jit, static_argnames="max_lag")
def _credit_by_lag(state, carry, batch, max_lag):
    model, params = state.functions, state.params
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    window = Window(batch.inputs, batch.targets, weights, batch.mask, batch.reset)
    ran = per_loss.run_forward(model, state.loss, params, carry, window, None)
    pull_carry = per_loss.pull_carry(model, params, ran.rows)
    pull_all = per_loss.pull_all(model, params, ran.rows)

    def one_lag(cotangents, lag):
        d_after, d_ys, d_readout = cotangents
        d_steps, d_first, d_xs = pull_all((d_after, d_ys))
        (d_begin,) = ran.pull_begin((d_first, d_xs))
        part = jax.tree.map(lambda *parts: sum(parts), d_steps, d_begin, d_readout)
        # Of one step and example each; at lag 0 nothing comes from later steps.
        size = jnp.where(lag == 0, _norms(d_ys), _norms(d_after)).sum()
        further = per_loss.earlier(pull_carry((d_after, d_ys)))
        nothing = jax.tree.map(jnp.zeros_like, (d_ys, d_readout))
        return (further, *nothing), (optax.tree.norm(part), size)

    start = jax.tree.map(jnp.zeros_like, per_loss.floats(ran.rows.before))
    _, (by_params, by_carry) = jax.lax.scan(
        one_lag, (start, ran.d_ys, ran.d_readout), jnp.arange(max_lag + 1)
    )
    total = rows * length if weights is None else jnp.sum(weights)
    scale = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
    return CreditByLag(by_params * scale, by_carry * scale)


def _norms(leaves):
    """The norm of each step and example over all leaves [T, B, ...]."""
    squares = [jnp.sum(jnp.square(d), axis=tuple(range(2, d.ndim))) for d in leaves]
    return jnp.sqrt(sum(squares))


class Bias(NamedTuple):
    """How a truncated gradient g differs from the gradient f of full BPTT.

    Attributes:
      relative: |g - f| / |f|; 0 where they agree, NaN where f is 0.
      cosine: of the angle between g and f; NaN where either is 0.
      norm_ratio: |g| / |f|.
      variance: of a random scheme, the mean of |g_i - g|^2 over its draws g_i, over |f|^2; 0 for
        one plan.
    """

    relative: float
    cosine: float
    norm_ratio: float
    variance: float


def gradient_bias(
    state: TrainState, batch: Batch, truncation: Truncation | Sequence[Truncation]
) -> dict[str, Bias]:
    """Compare a truncated gradient with that of full BPTT on a probe batch.

    Both are `gradient`s, at fixed parameters and without dropout: sums over losses divided by
    their weight. A plan with k2 < k1 is compared as it is, the mean of the losses that it scores.

    Args:
      state: not changed.
      batch: as in `gradient`.
      truncation: the plan; or several, the draws of a random scheme (lengths drawn as in AWD-LSTM,
        say): then g is the mean of their gradients.

    Returns:
      Under "all" the bias of the whole gradient, and under the name of each group of parameters
      (the first level of `state.params`: "encoder", "core", "readout") that of its part.

    Raises:
      TypeError, ValueError: as `gradient`; ValueError also where there is no plan.
    """
    plans = list(truncation) if isinstance(truncation, Sequence) else [truncation]
    if not plans:
        raise ValueError("gradient_bias: truncation must hold at least one plan, got none")
    check_batch(batch)
    _, length = batch_shape(batch)
    full = gradient(state, batch, Truncation(length, length))
    return compare_gradients([gradient(state, batch, plan) for plan in plans], full)


def compare_gradients(estimates: Sequence[Params], full: Params) -> dict[str, Bias]:
    """Compare gradients, however they were found, with the one that they estimate.

    Args:
      estimates: one pytree of arrays, or several: the draws of a random estimator, of which the
        mean is compared.
      full: a pytree like each of them, the gradient that is right.

    Returns:
      As `gradient_bias`.

    Raises:
      TypeError: estimates is not a sequence.
      ValueError: there is no estimate, `full` holds no array, or an estimate is not like it.

    Example: an estimator that leaves out one parameter or the other, and doubles what is left.
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
    """The gradient as float64 vectors, whole and by the first level of its structure."""
    leaves: dict[str, list[np.ndarray]] = {"all": []}
    for path, leaf in jax.tree.leaves_with_path(grads):
        vector = np.asarray(leaf, np.float64).ravel()
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
