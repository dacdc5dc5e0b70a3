"""Training: the windows of a batch, with an update in each."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tbptt_jax.arguments import check_batch
from tbptt_jax.axes import automatic, mesh_sharding
from tbptt_jax.estimators.sharding import (
    Places,
    Rows,
    by_rows,
    estimate_by_rows,
    keep,
    places_of,
    rows_of,
)
from tbptt_jax.plans.plan import Plan, check_plan
from tbptt_jax.sums import Mean
from tbptt_jax.training import programs
from tbptt_jax.training.optimizers import Learner, learn, learn_at_batch_end
from tbptt_jax.training.state import TrainState, check_state, claim, own
from tbptt_jax.training.stream import Stream, resume
from tbptt_jax.training.windows import Scored, scan_windows
from tbptt_jax.types import Array, Batch, Metrics, Params, Tree
from tbptt_jax.validation.shapes import Forms
from tbptt_jax.validation.streams import (
    NEW_STREAMS,
    carry_to_continue,
    check_placement,
    check_scored,
)
from tbptt_jax.validation.values import check_values


def check_training(state: TrainState, batch: Batch, truncation: Plan) -> Forms:
    """Raise unless a state, which `check_state` has seen, can train on a batch with a plan.

    Public functions call it from a function that is `automatic`, so that warnings point at the
    user's line.

    Returns:
      The shapes of what the model makes of the batch.
    """
    check_plan(truncation)
    check_batch(batch)
    forms = check_values(state.functions, state.params, state.loss, batch)
    check_scored(batch, truncation, stacklevel=6)
    check_placement(batch, truncation, stacklevel=6)
    return forms


def train_step(state: TrainState, batch: Batch, truncation: Plan) -> tuple[TrainState, Metrics]:
    """Train on one batch: every window of the plan, an optimizer update after each.

    One compiled call, whatever the number of updates; compiled once for each plan and shape. The
    update that ends at step e moves the parameters along the gradient of the mean of the scored
    losses of its interval, with the credit that `credit_matrix` shows. An interval whose weights
    are all zero moves the carry and nothing else.

    Windows with a non-finite loss or gradient are skipped: `metrics.finite` is False there, no
    update is made, and rows whose carry is no longer finite restart.

    With lookback (k2 > k1, a short last interval, or anchor="loss") a window is replayed with the
    current parameters from the carry at its start. That carry was computed when the window before
    it was replayed, one update earlier, as in every online TBPTT.

    Args:
      state: donated; use the returned state instead.
      batch: [B, T, ...]. With reset=None the rows are whole sequences. With a reset array they are
        streams: rows resume from the last batch, carry and lookback, where reset is False at the
        first step. A stream starts with its first batch, or with one of another size in which every
        row is reset at the first step; `state.restart()` starts new ones. After a batch with
        reset=None, and after a change of plan, the newest carry stays and the lookback is new. A
        stream saves k2 - 1 steps between calls, and min(k1, k2) carries, or one with anchor="loss".
      truncation: the plan, static.

    Returns:
      The new state, and one entry of `Metrics` per update.

    Raises:
      TypeError, ValueError: an argument of a wrong kind, or arrays that do not belong together.
        Where values can be read at no cost also wrong ones: NaN, ids outside the vocabulary, labels
        that are no class, whole sequences of which no step is scored.

    Warns:
      UserWarning: no step of a stream's batch is scored; or its last interval is short, so that
        with k2 <= k1 the last window reaches into the interval before it, and into the batch before
        it where T < k2.
    """
    check_state(state)
    state, metrics = _train(own(state), batch, truncation)
    return claim(state), metrics


@automatic
def _train(state: TrainState, batch: Batch, plan: Plan) -> tuple[TrainState, Metrics]:
    forms = check_training(state, batch, plan)
    arguments = _prepare(state, batch, plan, forms)
    programs.bound()
    return _train_step(*arguments, places_of(_learner(state)))


def lower(state: TrainState, batch: Batch, truncation: Plan) -> jax.stages.Lowered:
    """The program of a `train_step`, not compiled and not run, as `jax.jit(...).lower` returns it.

    Args:
      state, batch, truncation: as in `train_step`; the state is neither changed nor donated.

    Returns:
      The lowered program; `lower(state, batch, plan).compile().memory_analysis()` is its memory.

    Raises:
      TypeError, ValueError: as `train_step`.

    Warns:
      UserWarning: as `train_step`.
    """
    check_state(state)
    return _lower(state, batch, truncation)


@automatic
def _lower(state: TrainState, batch: Batch, plan: Plan) -> jax.stages.Lowered:
    forms = check_training(state, batch, plan)
    arguments = _prepare(state, batch, plan, forms)
    return _train_step.lower(*arguments, places_of(_learner(state)))


def state_after(state: TrainState, batch: Batch, truncation: Plan) -> TrainState:
    """The state that a `train_step` returns, as `jax.ShapeDtypeStruct`s: nothing runs.

    It is what `Checkpoints.restore` needs: the stream of a state that has trained on a batch, which
    a new state lacks. On a mesh of devices it says where each array is: the stream where the rows
    of the batch are, everything else where it is in `state`.

    Args:
      state, batch, truncation: as in `train_step`; the state is neither changed nor donated.

    Returns:
      A `TrainState` of `jax.ShapeDtypeStruct`s.

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state)
    check_batch(batch)
    # Without their shardings: JAX traces no array with explicit axes for us.
    shapes = jax.tree.map(lambda leaf: _shape(leaf, None), (state, batch))
    after, _ = jax.eval_shape(functools.partial(train_step, truncation=truncation), *shapes)
    rows = rows_of(batch.inputs)
    spread = None if rows is None else NamedSharding(rows.mesh, PartitionSpec(rows.axes))
    stream = jax.tree.map(lambda leaf: _shape(leaf, spread), after.stream)
    kept = jax.tree.map(
        lambda leaf, before: _shape(leaf, mesh_sharding(before)), after.restart(), state.restart()
    )
    return dataclasses.replace(kept, stream=stream)


def _shape(leaf: Array | jax.ShapeDtypeStruct, sharding: NamedSharding | None) -> Tree:
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak)


def _prepare(
    state: TrainState, batch: Batch, plan: Plan, forms: Forms
) -> tuple[TrainState, Stream | None, Batch, Plan, Rows | None]:
    """The arguments of the compiled step; the stream is None for whole sequences.

    The state goes without its stream, so that whether there is one, and its size, compile nothing.
    """
    rows, stream = rows_of(batch.inputs), None
    if batch.reset is not None:
        if state.stream is not None:
            newest = carry_to_continue(state.stream.carry, batch, forms.carry, NEW_STREAMS)
            stream = None if newest is None else state.stream._replace(carry=newest)
        stream, batch = resume(state.functions, state.params, plan, stream, batch)
    return state.restart(), stream, batch, plan, rows


def _learner(state: TrainState) -> Learner:
    return Learner(state.params, state.opt_state, state.step)


@functools.partial(
    programs.jit,
    static_argnames=("plan", "rows", "places"),
    donate_argnames=("state", "stream"),
)
def _train_step(
    state: TrainState,
    stream: Stream | None,
    batch: Batch,
    plan: Plan,
    rows: Rows | None,
    places: Places,
) -> tuple[TrainState, Metrics]:
    def consume(learner: Learner, scored: Scored) -> Learner:
        return keep(learn(state.optimizer, learner, scored), places)

    scanned = scan_windows(
        by_rows(state.functions, rows),
        state.loss,
        estimate_by_rows(plan.estimator, state.functions, rows),
        plan,
        batch,
        stream,
        learner=_learner(state),
        consume=consume,
        rng=state.rng,
    )
    learner = keep(learn_at_batch_end(state.optimizer, scanned.learner), places)
    state = dataclasses.replace(state, **learner._asdict(), rng=scanned.rng, stream=scanned.stream)
    return state, scanned.metrics


def gradient(state: TrainState, batch: Batch, truncation: Plan) -> Params:
    """The truncated gradient of a batch at fixed parameters.

    The sum over all updates' parts sum_{t,s} W[t, s] d l_t / d theta_s, with the parameters of
    `state` at every step, divided by the total weight of the scored losses; zero where nothing of a
    stream's batch is scored. The state is not changed.

    Args:
      state, batch, truncation: as in `train_step`; dropout is off.

    Returns:
      A pytree like `state.params`; NaN throughout if a window's loss or gradient is not finite.

    Raises:
      TypeError, ValueError: as `train_step`.
    """
    check_state(state)
    return _gradient_of(state, batch, truncation)


@automatic
def _gradient_of(state: TrainState, batch: Batch, plan: Plan) -> Params:
    forms = check_training(state, batch, plan)
    arguments = _prepare(state, batch, plan, forms)
    programs.bound()
    return _gradient(*arguments, places_of(state.params))


class Average(NamedTuple):
    """What learns nothing and takes the mean of the gradients."""

    params: Params
    mean: Mean

    def add(self, scored: Scored) -> "Average":
        """The mean with that of one more window."""
        return self._replace(mean=self.mean.add(scored.grads, scored.weight))


@functools.partial(programs.jit, static_argnames=("plan", "rows", "places"))
def _gradient(
    state: TrainState,
    stream: Stream | None,
    batch: Batch,
    plan: Plan,
    rows: Rows | None,
    places: Places,
) -> Params:
    scanned = scan_windows(
        by_rows(state.functions, rows),
        state.loss,
        estimate_by_rows(plan.estimator, state.functions, rows),
        plan,
        batch,
        stream,
        learner=Average(state.params, Mean.of_nothing(state.params)),
        consume=Average.add,
        rng=None,
    )
    params, mean = scanned.learner
    # A part that is not finite is missing from the mean.
    whole = scanned.metrics.finite.all()
    grads = jax.tree.map(
        lambda g, p: jnp.where(whole, g, jnp.nan).astype(p.dtype), mean.tree, params
    )
    return keep(grads, places)
