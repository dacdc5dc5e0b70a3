"""The windows of a batch, one after the other: place, cut, start, estimate, learn."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.estimators.estimator import Estimator, WindowLoss, init_aux
from tbptt_jax.estimators.window import Window, total_weight
from tbptt_jax.plans.placement import WindowPlace, replays
from tbptt_jax.plans.plan import Plan
from tbptt_jax.sums import masked_weights, norm, shares, weigh
from tbptt_jax.training.stream import Lookback, Steps, Stream, join, start_carry
from tbptt_jax.types import Array, Batch, Carry, LossFn, Metrics, Model, Params, Tree, batch_shape


class HasParams(Protocol):
    """What learns from windows: a pytree that holds the parameters of the next one."""

    @property
    def params(self) -> Params:
        """The parameters."""
        ...


Learner = TypeVar("Learner", bound=HasParams)


class Scored(NamedTuple):
    """What a learner gets from a window.

    Attributes:
      mean: float [], weighted mean of the losses; float32 at least.
      weight: float [], sum of their weights.
      grads: the gradient of the mean, like the parameters, with the credit of the plan.
      mean_at: parameters to the mean that the window has with them.
    """

    mean: jax.Array
    weight: jax.Array
    grads: Params
    mean_at: Callable[[Params], jax.Array]


class Task(NamedTuple, Generic[Learner]):
    """What is the same in every window of a batch.

    Attributes:
      model, loss, estimator: of the training.
      consume: the learner and what it gets from a window, to the learner after it.
      batch: the batch.
      steps: its steps; behind those of the lookback where windows start in it.
      lead: number of steps before the batch's first.
      stream: whether the rows are streams; whole sequences start with the first window.
      saved: number of carries that a window saves for the next.
    """

    model: Model
    loss: LossFn
    estimator: Estimator
    consume: Callable[[Learner, Scored], Learner]
    batch: Batch
    steps: Steps
    lead: int
    stream: bool
    saved: int


class Size(NamedTuple):
    """Numbers of steps of a window, static: its interval's, the scored ones, and all its own."""

    interval: int
    scored: int
    span: int


class Position(NamedTuple):
    """Where a window lies, int32 []; see `WindowPlace`. Scanned, each is [windows]."""

    end: Array
    start: Array
    pick: Array
    save: Array


class Ends(NamedTuple):
    """What a window leaves for the next to start from.

    Attributes:
      carry: carry after the newest step, leaves [B, ...].
      carries: saved carries, time first, leaves [saved, B, ...].
      aux: of the estimator, leaves [B, ...].
    """

    carry: Carry
    carries: Carry
    aux: Tree


class Loop(NamedTuple, Generic[Learner]):
    """What goes from window to window."""

    learner: Learner
    ends: Ends
    rng: jax.Array | None


class Pieces(NamedTuple):
    """What a window takes of its batch.

    Attributes:
      before: the interval's steps before the window, if it is shorter than the interval.
      window: its steps and targets.
      offered: weights of the interval's losses, [B, interval]; None: 1 each.
      weights: those of them that are scored, [B, scored].
    """

    before: Window | None
    window: Window
    offered: jax.Array | None
    weights: jax.Array | None


class Outcome(NamedTuple, Generic[Learner]):
    """What a window changes, and what its metrics are made of."""

    learner: Learner
    ends: Ends
    loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


class Scanned(NamedTuple, Generic[Learner]):
    """What the windows of a batch leave.

    Attributes:
      learner: what has learnt.
      stream: what the next batch starts from; for whole sequences without lookback.
      rng: key for the next batch; None where none came in.
      metrics: of each window.
    """

    learner: Learner
    stream: Stream
    rng: jax.Array | None
    metrics: Metrics


def scan_windows(
    model: Model,
    loss: LossFn,
    estimator: Estimator,
    plan: Plan,
    batch: Batch,
    stream: Stream | None,
    learner: Learner,
    consume: Callable[[Learner, Scored], Learner],
    rng: jax.Array | None,
) -> Scanned[Learner]:
    """Run the windows of a batch in order; the learner gets the gradient of each that is scored.

    A window without losses of a weight moves the carry alone. One whose loss or gradient is not
    finite is skipped: rows whose carry it left without finite values restart.

    A window that is longer than its interval starts from a carry that the window before it
    computed; one that is shorter, from the newest carry after the interval's first steps.

    Args:
      model, loss, plan, batch: as in `train_step`.
      estimator: the plan's.
      stream: with its lookback; None: the rows of the batch are whole, independent sequences.
      learner: what learns.
      consume: the learner and what it gets from a window, to the learner after it.
      rng: key for dropout, or None.
    """
    _, length = batch_shape(batch)
    lookback = None if stream is None else stream.lookback
    is_stream = lookback is not None
    placement = plan.placement(length, is_stream)
    steps, lead = Steps(batch.inputs, batch.mask, batch.reset), 0
    if lookback is not None and replays(placement.windows):
        steps, lead = join(lookback, batch), plan.lookback_size.steps
    task = Task(model, loss, estimator, consume, batch, steps, lead, is_stream, placement.saved)
    loop, metrics = Loop(learner, begin(task, stream, learner.params), rng), []
    for size, positions in place(placement.windows):
        run = functools.partial(run_window, task, size)
        if len(positions.end) > 1:
            loop, updates = jax.lax.scan(run, loop, positions)
        else:
            loop, row = run(loop, Position(*(p[0] for p in positions)))
            updates = jax.tree.map(lambda m: m[None], row)
        metrics.append(updates)
    left = _leave(task, plan, lookback, loop.ends)
    metrics = jax.tree.map(lambda *parts: jnp.concatenate(parts), *metrics)
    return Scanned(loop.learner, left, loop.rng, metrics)


def place(windows: Sequence[WindowPlace]) -> Iterator[tuple[Size, Position]]:
    """Consecutive windows of the same size, with their positions [windows]."""

    def size(window: WindowPlace) -> Size:
        start, end, scored = window.interval
        return Size(end - start, end - scored, window.span)

    for alike, group in itertools.groupby(windows, size):
        table = [(w.interval.end, w.start, w.pick, w.save) for w in group]
        yield alike, Position(*np.array(table, np.int32).T)


def begin(task: Task, stream: Stream | None, params: Params) -> Ends:
    """What the first window starts from."""
    if stream is not None and stream.lookback is not None:
        return Ends(stream.carry, _swap(stream.lookback.carries), stream.aux)
    carry = start_carry(task.model, params, task.batch.inputs)
    carries = jax.tree.map(lambda c: jnp.broadcast_to(c, (task.saved, *c.shape)), carry)
    return Ends(carry, carries, init_aux(task.estimator, task.model, params, carry))


def run_window(
    task: Task[Learner], size: Size, loop: Loop[Learner], position: Position
) -> tuple[Loop[Learner], Metrics]:
    """One window: what it learns, what it leaves, and its metrics."""
    rng, key, before_key = (None,) * 3 if loop.rng is None else jax.random.split(loop.rng, 3)
    pieces = cut(task, size, position)
    carry, aux = start(task, pieces, size, position, loop, before_key)
    losses = WindowLoss(task.model, task.loss, carry, pieces.window, 1.0, key)
    if pieces.weights is None or pieces.offered is None:
        count = batch_shape(task.batch)[0] * size.scored
        weight, share = total_weight(None, pieces.window.targets), size.scored / size.interval
        losses = losses._replace(weights=shares(None, count))
        outcome = estimate(task, position, losses, weight, aux, loop.learner)
    else:
        ones = task.batch.weights is None
        weight, terms, share = weigh(pieces.weights, pieces.offered, ones)
        losses = losses._replace(weights=terms)
        score = functools.partial(estimate, task, position, losses, weight, aux)
        skip = functools.partial(move, task, position, losses, aux)
        outcome = jax.lax.cond(weight > 0, score, skip, loop.learner)
    numbers = _numbers(outcome.loss, outcome.grad_norm, weight, share)
    return Loop(outcome.learner, outcome.ends, rng), Metrics(*numbers, finite=outcome.finite)


def cut(task: Task, size: Size, position: Position) -> Pieces:
    """The steps, targets and weights of a window."""
    end, start = position.end, position.start
    before, fresh = None, None if task.stream else start == 0
    if size.interval > size.span:
        count = size.interval - size.span
        steps = _cut(task.steps, task.lead + end - size.interval, count)
        fresh = None if task.stream else end == size.interval
        before = Window(steps.inputs, None, mask=steps.mask, reset=steps.reset, fresh=fresh)
        fresh = None
    steps = _cut(task.steps, task.lead + start, size.span)
    offered = step_weights(task.batch, end - size.interval, size.interval)
    window = Window(
        inputs=steps.inputs,
        targets=_cut(task.batch.targets, end - size.scored, size.scored),
        mask=steps.mask,
        reset=steps.reset,
        first=end - size.scored - start,
        fresh=fresh,
    )
    weights = offered
    if offered is not None and size.scored < size.interval:
        weights = offered[:, size.interval - size.scored :]
    return Pieces(before, window, offered, weights)


def start(
    task: Task, pieces: Pieces, size: Size, position: Position, loop: Loop, rng: jax.Array | None
) -> tuple[Carry, Tree]:
    """The carry before a window's first step, and the estimator's aux."""
    carry, carries, aux = loop.ends
    if pieces.before is not None:
        params = loop.learner.params
        carry, _, aux = task.estimator.advance(task.model, params, carry, pieces.before, rng, aux)
    elif size.interval < size.span:
        carry = jax.tree.map(lambda c: c[position.pick], carries)
    return carry, aux


def estimate(
    task: Task[Learner],
    position: Position,
    losses: WindowLoss,
    weight: jax.Array,
    aux: Tree,
    learner: Learner,
) -> Outcome[Learner]:
    """The gradient of a window that is scored, and what the learner makes of it."""
    mean, carry, carries, grads, aux = task.estimator.value_and_grad(losses, learner.params, aux)
    grad_norm, finite = norm(grads)
    finite &= jnp.isfinite(mean)
    scored = Scored(mean, weight, grads, lambda params: losses.at(params)[0])
    # One branch for all of it: a select for each was a quarter of TBPTT(1, 1)'s time.
    learner, ends = jax.lax.cond(
        finite,
        functools.partial(learn, task, scored),
        functools.partial(restart_lost, task),
        learner,
        Ends(carry, _save(task, position, carries), aux),
    )
    mean, grad_norm = _numbers(mean, grad_norm)
    return Outcome(learner, ends, mean, grad_norm, finite)


def move(
    task: Task[Learner], position: Position, losses: WindowLoss, aux: Tree, learner: Learner
) -> Outcome[Learner]:
    """A window of which no loss has a weight: the carry moves, and nothing is learnt."""
    model, _, carry, window, _, rng = losses
    carry, carries, aux = task.estimator.advance(model, learner.params, carry, window, rng, aux)
    ends = Ends(carry, _save(task, position, carries), aux)
    (zero,) = _numbers(0)
    return Outcome(learner, ends, zero, zero, jnp.bool(True))


def learn(
    task: Task[Learner], scored: Scored, learner: Learner, ends: Ends
) -> tuple[Learner, Ends]:
    """Learn from a window whose loss and gradient are finite."""
    return task.consume(learner, scored), ends


def restart_lost(task: Task[Learner], learner: Learner, ends: Ends) -> tuple[Learner, Ends]:
    """Learn nothing from a window that is not finite, and restart the rows that it lost."""
    initial = start_carry(task.model, learner.params, task.batch.inputs)
    aux = init_aux(task.estimator, task.model, learner.params, initial)
    carry, aux = restart_lost_rows((ends.carry, ends.aux), (initial, aux))
    return learner, Ends(carry, restart_lost_rows(ends.carries, initial), aux)


def restart_lost_rows(carries: Tree, initial: Tree) -> Tree:
    """Carries [..., B, features] with the initial ones [B, features] in rows that are not finite.

    A stream whose carry is lost would otherwise never train again.
    """
    lost = [
        ~jnp.isfinite(c).all(tuple(range(c.ndim - i.ndim + 1, c.ndim)))
        for c, i in zip(jax.tree.leaves(carries), jax.tree.leaves(initial), strict=True)
        if jnp.issubdtype(c.dtype, jnp.inexact)
    ]
    if not lost:
        return carries
    anywhere = functools.reduce(jnp.logical_or, lost)

    def choose(c: jax.Array, i: jax.Array) -> jax.Array:
        rows = anywhere.reshape(anywhere.shape + (1,) * (c.ndim - anywhere.ndim))
        return jnp.where(rows, jnp.broadcast_to(i, c.shape), c)

    return jax.tree.map(choose, carries, initial)


def step_weights(batch: Batch, start: Array | int, size: int) -> jax.Array | None:
    """The weights of the losses of some steps, [B, size], float32 at least; None: 1 each."""
    return masked_weights(*_cut((batch.weights, batch.mask), start, size))


def _leave(task: Task, plan: Plan, lookback: Lookback | None, ends: Ends) -> Stream:
    """What the next batch starts from."""
    if lookback is None:
        return Stream(ends.carry)
    saved, steps = plan.lookback_size.steps, join(lookback, task.batch)
    steps = jax.tree.map(lambda x: x[:, x.shape[1] - saved :], steps)
    return Stream(ends.carry, Lookback(_swap(ends.carries), *steps), ends.aux)


def _save(task: Task, position: Position, carries: Carry) -> Carry:
    """The carries of a window that the next one may start from."""
    return jax.tree.map(
        lambda c: jax.lax.dynamic_slice_in_dim(c, position.save, task.saved), carries
    )


def _swap(carries: Carry) -> Carry:
    """Carries [P, B, ...] as [B, P, ...], and the other way round."""
    return jax.tree.map(lambda c: jnp.swapaxes(c, 0, 1), carries)


def _cut(tree: Tree, start: Array | int, size: int) -> Tree:
    """Steps start .. start + size of [B, T, ...] arrays; `start` may be traced."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)


def _numbers(*values: jax.Array | float) -> tuple[jax.Array, ...]:
    """Metrics in one dtype, so that a window without losses gives the same as one with."""
    return tuple(jnp.asarray(value, jnp.result_type(float)) for value in values)
