"""Training: the state, and the windows of a batch with an update in each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer

from tbptt_jax import windows
from tbptt_jax.checks import check_batch
from tbptt_jax.credit import Truncation, check_plan
from tbptt_jax.model import Parts, SequenceModel, split
from tbptt_jax.types import Batch, Carry, LossFn, Metrics, Model, Params
from tbptt_jax.values import check_scored, check_values
from tbptt_jax.windows import Lookback, Memory


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "opt_state", "step", "rng", "carry", "lookback"),
    meta_fields=("functions", "optimizer", "loss", "to_module"),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training is, as one pytree. Make it with `TrainState.create`.

    `train_step` donates it: use the state that it returns and drop the one given.

    Attributes:
      params: the parameters.
      opt_state: the optimizer's state.
      step: int32 [], updates made so far.
      rng: key that dropout draws from; None where the model draws nothing.
      carry: carry after the newest step; None before the first batch.
      lookback: the steps before it that a later window may reach back to; None where sequences
        are independent.
      functions: the network as pure functions.
      optimizer: the optax transformation.
      loss: `(outputs, targets) -> losses [B, T]`.
      to_module: parameters to nnx module; None for a network given as pure functions.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    rng: jax.Array | None
    carry: Carry | None
    lookback: Lookback | None
    functions: Model
    optimizer: optax.GradientTransformation
    loss: LossFn
    to_module: Callable[[Params], nnx.Module] | None

    @classmethod
    def create(
        cls,
        model: SequenceModel | Model,
        optimizer: optax.GradientTransformation,
        loss: LossFn,
        *,
        params: Params = None,
        seed: int = 0,
    ) -> "TrainState":
        """A state before the first batch.

        Args:
          model: a `SequenceModel`, or pure functions together with `params`.
          optimizer: any optax transformation. Compiled code is found by its identity: give the same
            one to all states that are to share it.
          loss: `(outputs [B, T, ...], targets [B, T, ...]) -> losses [B, T]`, as
            `optax.losses.softmax_cross_entropy_with_integer_labels`.
          params: the parameters, when `model` is a `Model`; copied.
          seed: of the dropout.

        Returns:
          The state. It holds copies: nothing that is given here is donated by `train_step`.

        Raises:
          TypeError: a wrong kind of model, optimizer, loss or seed, or params missing,
            superfluous or not floating point.
        """
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise TypeError(
                "TrainState.create: optimizer must be an optax transformation, for instance "
                f"optax.adam(1e-3), got {type(optimizer).__name__}"
            )
        if not callable(loss):
            raise TypeError(
                "TrainState.create: loss must be a function (outputs, targets) -> losses [B, T], "
                f"got {type(loss).__name__}"
            )
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(
                f"TrainState.create: seed must be an integer, got {type(seed).__name__}"
            )
        if isinstance(model, Model):
            if params is None:
                raise TypeError("TrainState.create: params must be given with a Model, got None")
            params = jax.tree.map_with_path(_parameter, params)
            parts = Parts(model, params, to_module=None, draws=True)
        else:
            if params is not None:
                raise TypeError(
                    "TrainState.create: params are the SequenceModel's own; give them only with a "
                    "Model of pure functions"
                )
            parts = split(model)
        return cls(
            params=parts.params,
            # An optimizer may hand the same array to two places, which cannot both be donated.
            opt_state=jax.tree.map(lambda a: jnp.array(a, copy=True), optimizer.init(parts.params)),
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key(seed) if parts.draws else None,
            carry=None,
            lookback=None,
            functions=parts.functions,
            optimizer=optimizer,
            loss=loss,
            to_module=parts.to_module,
        )

    def model(self) -> nnx.Module:
        """The nnx model with copies of the trained parameters, in evaluation mode.

        Raises:
          TypeError: the state was made from pure functions; use `state.params` with them.
        """
        if self.to_module is None:
            raise TypeError(
                "TrainState.model: this state was made from pure functions, there is no nnx "
                "module; use state.params"
            )
        return self.to_module(self.params)


def _parameter(path: Any, value: Any) -> jax.Array:
    """A copy of a parameter, which must be floating point to have a gradient."""
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), np.inexact):
        raise TypeError(
            f"TrainState.create: params{jax.tree_util.keystr(path)} must be floating point, got "
            f"{getattr(value, 'dtype', type(value).__name__)}; make what is not trained part of "
            "the functions"
        )
    return jnp.array(value, copy=True)


def check_state(state: TrainState) -> None:
    """Raise a TypeError if this is no state, a ValueError if it was donated."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be a tbptt_jax.TrainState, got {type(state).__name__}; make it with "
            "TrainState.create, and go on with the first of the two that train_step returns"
        )
    step = state.step
    if isinstance(step, jax.Array) and not isinstance(step, Tracer) and step.is_deleted():
        raise ValueError(
            "state was given to train_step before, which donates it; go on with the state that it "
            "returned: state, metrics = train_step(state, batch, truncation)"
        )


def check_training(state: TrainState, batch: Batch, truncation: Truncation) -> None:
    """Raise if these cannot be trained with; called by what users call, at whom warnings point."""
    check_state(state)
    check_plan(truncation)
    check_batch(batch)
    check_values(state.functions, state.params, state.loss, batch)
    check_scored(batch, truncation, stacklevel=4)


def train_step(
    state: TrainState, batch: Batch, truncation: Truncation
) -> tuple[TrainState, Metrics]:
    """Train on one batch: every window of the plan, an optimizer update after each.

    One compiled call, whatever the number of updates; compiled once for each plan and shape. The
    update that ends at step e moves the parameters along the gradient of the mean of the scored
    losses of its interval, with the credit that `credit_matrix` shows. An interval whose weights
    are all zero moves the carry and nothing else.

    Nor does one whose loss or gradient is not finite: `metrics.finite` says so, nothing is trained
    on it, and a row whose carry it left without finite values begins anew.

    With lookback (k2 > k1, a short last interval, or anchor="loss") a window is replayed with the
    current parameters from the carry at its start. That carry was computed when the window before
    it was replayed, one update earlier, as in every online TBPTT.

    Args:
      state: donated; use the returned state instead.
      batch: [B, T, ...]. With reset=None the rows are whole sequences. With a reset array they are
        streams: they go on from the last batch, carry and lookback, wherever reset is False at the
        first step. A stream begins with its first batch, or after a batch with reset=None; a
        change of plan keeps its newest carry and begins a new lookback. A stream keeps k2 - 1
        steps between calls, and min(k1, k2) carries, or one with anchor="loss".
      truncation: the plan, static.

    Returns:
      The new state, and one entry of `Metrics` per update.

    Raises:
      TypeError, ValueError: an argument of a wrong kind, arrays that do not belong together, or,
        where they can be read at no cost, values that are wrong (see `values`): NaN, ids outside
        the vocabulary, labels that are no class, whole sequences of which no step is scored.

    Warns:
      UserWarning: no step of a stream's batch is scored.
    """
    check_training(state, batch, truncation)
    if batch.reset is None:
        # Dropped before the call, so that neither its presence nor its size compiles anew.
        memory = None
    else:
        memory, batch = _continue(state, batch, truncation)
    state = dataclasses.replace(state, carry=None, lookback=None)
    return _train_step(state, memory, batch, truncation)


@functools.partial(jax.jit, static_argnames="truncation", donate_argnames=("state", "memory"))
def _train_step(state, memory, batch, truncation):
    optimizer = optax.with_extra_args_support(state.optimizer)

    def update(learner, value, grads):
        params, opt_state, step = learner
        grads = jax.tree.map(lambda g: (g / value.weight).astype(g.dtype), grads)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=value.loss / value.weight
        )
        return optax.apply_updates(params, updates), opt_state, step + 1

    learner = (state.params, state.opt_state, state.step)
    learner, memory, rng, metrics = windows.scan_windows(
        state.functions, state.loss, truncation, batch, memory, learner, update, state.rng
    )
    params, opt_state, step = learner
    state = dataclasses.replace(
        state,
        params=params,
        opt_state=opt_state,
        step=step,
        rng=rng,
        carry=memory.carry,
        lookback=memory.lookback,
    )
    return state, metrics


def gradient(state: TrainState, batch: Batch, truncation: Truncation) -> Params:
    """The truncated gradient of a batch at fixed parameters.

    The sum over all updates' parts sum_{t,s} W[t, s] d l_t / d theta_s, with the parameters of
    `state` at every step, divided by the total weight of the scored losses; zero where nothing of a
    stream's batch is scored. The state is not changed.

    Args:
      state, batch, truncation: as in `train_step`; dropout is off.

    Returns:
      A pytree like `state.params`; NaN throughout if a window's loss or gradient is not finite.

    Raises:
      As `train_step`.
    """
    check_training(state, batch, truncation)
    memory = None
    if batch.reset is not None:
        memory, batch = _continue(state, batch, truncation)
    return _gradient(state, memory, batch, truncation)


@functools.partial(jax.jit, static_argnames="truncation")
def _gradient(state, memory, batch, truncation):
    def add(learner, value, grads):
        params, total, weight = learner
        return params, jax.tree.map(jnp.add, total, grads), weight + value.weight

    zero = jnp.zeros((), jnp.result_type(float))
    learner = (state.params, jax.tree.map(jnp.zeros_like, state.params), zero)
    learner, _, _, metrics = windows.scan_windows(
        state.functions, state.loss, truncation, batch, memory, learner, add, None
    )
    _, total, weight = learner
    # 0 where nothing is scored; NaN where a part is missing because it is not finite.
    share = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    share = jnp.where(metrics.finite.all(), share, jnp.nan)
    return jax.tree.map(lambda g: (g * share).astype(g.dtype), total)


def _continue(state: TrainState, batch: Batch, truncation: Truncation) -> tuple[Memory, Batch]:
    """The memory that a stream's batch starts from, of one structure from the first call on."""
    carry, batch = windows.stream_carry(state.functions, state.params, state.carry, batch)
    lookback = state.lookback
    if not windows.fits(lookback, truncation):
        lookback = windows.empty_lookback(truncation, carry, batch)
    return Memory(carry, lookback), batch
