"""Credit by lag: how much of the gradient crosses how many steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tbptt_jax.arguments import check_batch, check_count
from tbptt_jax.axes import automatic
from tbptt_jax.estimators import per_loss
from tbptt_jax.estimators.estimator import WindowLoss
from tbptt_jax.estimators.sharding import Rows, by_rows, rows_of
from tbptt_jax.estimators.window import Window
from tbptt_jax.plans.truncation import Truncation
from tbptt_jax.sums import norm, shares, wide
from tbptt_jax.training import programs
from tbptt_jax.training.state import TrainState, check_state
from tbptt_jax.training.step import check_training
from tbptt_jax.training.stream import resume_carry
from tbptt_jax.training.windows import step_weights
from tbptt_jax.types import Batch, Carry, Tree, batch_shape
from tbptt_jax.validation.streams import NEW_STREAMS, carry_to_continue


class CreditByLag(NamedTuple):
    """How much of the gradient crosses k steps, k = 0 .. max_lag; every field is [max_lag + 1].

    Attributes:
      params: norm of the gradient's part of lag k, sum_t d l_t / d theta_{t-k} over the total
        weight, with theta_{t-k} the parameters as used k steps before the loss. The parts of all
        lags sum to the gradient of full BPTT; their norms do not.
      carry: weighted mean over the losses of the norm of d l_t / d c_{t-k}, c_{t-k} the carry after
        step t - k of one example; phi_k of Aicher, Foti and Fox (2019, arXiv:1905.07473). At lag 0
        it is the norm of d l_t / d y_t, y_t the core's output.
    """

    params: jax.Array
    carry: jax.Array


def credit_by_lag(state: TrainState, batch: Batch, max_lag: int) -> CreditByLag:
    """Norms of the parts of a batch's gradient by the number of steps they cross.

    Only losses and steps of the batch count; parameters are fixed and dropout is off. The cost is a
    forward pass and, for each lag, a vector-Jacobian product of all steps at once with respect to
    the carry and one with respect to the parameters. Memory grows with T: the residuals of all
    steps are held at once.

    Args:
      state: not changed.
      batch: [B, T, ...]. As in `train_step` its rows are whole sequences where reset is None, and
        otherwise resume from the state's carry.
      max_lag: the largest number of steps between a loss and the step that receives its gradient,
        0 to T - 1.

    Returns:
      The norms; 0 where nothing is scored.

    Raises:
      TypeError, ValueError: as `gradient`.
      TypeError: max_lag is not an integer.
      ValueError: max_lag is not one of 0 .. T - 1.

    Examples: a cell that forgets half at each step, and a loss at the last of four steps.
      >>> import numpy as np
      >>> import optax
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
    check_state(state)
    return _checked(state, batch, max_lag)


@automatic
def _checked(state: TrainState, batch: Batch, max_lag: int) -> CreditByLag:
    _, length = batch_shape(batch)
    forms = check_training(state, batch, Truncation(length, length))
    check_count("credit_by_lag", "max_lag", max_lag, 0)
    if max_lag >= length:
        raise ValueError(
            f"credit_by_lag: max_lag must be at most T - 1 = {length - 1}, got {max_lag}"
        )
    carry = None
    if batch.reset is not None:
        newest = None if state.stream is None else state.stream.carry
        newest = carry_to_continue(newest, batch, forms.carry, NEW_STREAMS)
        carry, batch = resume_carry(state.functions, state.params, newest, batch)
    programs.bound()
    return _credit_by_lag(state, rows_of(batch.inputs), carry, batch, int(max_lag))


@functools.partial(programs.jit, static_argnames=("spread", "max_lag"))
def _credit_by_lag(
    state: TrainState, spread: Rows | None, carry: Carry, batch: Batch, max_lag: int
) -> CreditByLag:
    model, params = by_rows(state.functions, spread), state.params
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    window = Window(batch.inputs, batch.targets, mask=batch.mask, reset=batch.reset)
    terms = shares(weights, rows * length)  # NaN throughout where nothing has a weight
    losses = WindowLoss(model, state.loss, carry, window, terms, None)
    ran = per_loss.run_forward(losses, params)
    pull_carry = per_loss.pull_carry(model, params, ran.rows)
    pull_all = per_loss.pull_all(model, params, ran.rows)

    def one_lag(cotangents: Tree, lag: jax.Array) -> tuple[Tree, tuple[jax.Array, jax.Array]]:
        d_after, d_ys, d_readout = cotangents
        d_steps, d_first, d_xs = pull_all((d_after, d_ys))
        (d_begin,) = ran.pull_begin((d_first, d_xs))
        part = jax.tree.map(lambda *parts: sum(parts), d_steps, d_begin, d_readout)
        # The norm of each step and example; at lag 0 no cotangent comes from later steps.
        size = jnp.where(lag == 0, _norms(d_ys), _norms(d_after)).sum()
        further = per_loss.earlier(pull_carry((d_after, d_ys)))
        nothing = jax.tree.map(jnp.zeros_like, (d_ys, d_readout))
        return (further, *nothing), (norm(part)[0], size)

    start = jax.tree.map(jnp.zeros_like, per_loss.floats(ran.rows.before))
    _, (by_params, by_carry) = jax.lax.scan(
        one_lag, (start, ran.d_ys, ran.d_readout), jnp.arange(max_lag + 1)
    )
    found = CreditByLag(by_params, by_carry)
    if weights is None:
        return found
    # Where nothing is scored the shares are 0 / 0.
    return jax.tree.map(lambda n: jnp.where(jnp.sum(weights) > 0, n, 0), found)


def _norms(leaves: list[jax.Array]) -> jax.Array:
    """The norm over all leaves [T, B, ...] at each step of each example, [T, B]."""
    squares = [
        jnp.sum(jnp.square(jnp.abs(d.astype(wide(d.dtype)))), axis=tuple(range(2, d.ndim)))
        for d in leaves
    ]
    return jnp.sqrt(sum(squares[1:], squares[0]))
