"""The windows of a batch, one after the other, each handing its gradient on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tbptt_jax.checks import check_stream
from tbptt_jax.credit import Truncation
from tbptt_jax.gradients import window_value_and_grad
from tbptt_jax.layout import kept_carries, layout
from tbptt_jax.recurrence import step_shape
from tbptt_jax.types import Batch, Carry, LossFn, Metrics, Model, Params
from tbptt_jax.window import Window, WindowValue, encode, forward, initial_carry, total_weight


class Lookback(NamedTuple):
    """What a stream keeps so that its next window may begin before its next batch.

    Attributes:
      carries: the carry at every position where the next window can start, [P, B, ...]. With
        anchor="update" those that follow the first P = min(k1, k2) steps of the last window; with
        anchor="loss" the one, P = 1, that lies k2 - 1 steps back.
      inputs, mask, reset: the last k2 - 1 steps, [B, k2 - 1, ...]; the mask is False where the
        stream has not that many.
    """

    carries: Carry
    inputs: Any
    mask: jax.Array
    reset: jax.Array


class Memory(NamedTuple):
    """What a stream carries from batch to batch: the newest carry and the way back."""

    carry: Carry
    lookback: Lookback | None


# Takes what learns (its first item is the parameters), a window's values and the gradient of the
# sum of its losses, and returns what learns after that window.
Consume = Callable[[tuple, WindowValue, Params], tuple]


def empty_lookback(truncation: Truncation, carry: Carry, batch: Batch) -> Lookback:
    """The lookback of a stream that begins (anew) with `batch`: no step of it exists."""
    rows, back = batch_shape(batch)[0], truncation.k2 - 1

    def nothing(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jnp.zeros((rows, back, *x.shape[2:]), dtype)

    return Lookback(
        carries=_repeat(carry, kept_carries(truncation)),
        inputs=jax.tree.map(nothing, batch.inputs),
        mask=nothing(batch.reset),
        reset=nothing(batch.reset),
    )


def fits(lookback: Lookback | None, truncation: Truncation) -> bool:
    """Whether a kept lookback is the one that this plan needs."""
    if lookback is None:
        return False
    kept = jax.tree.leaves(lookback.carries)[0].shape[0], lookback.mask.shape[1]
    return kept == (kept_carries(truncation), truncation.k2 - 1)


def batch_shape(batch: Batch) -> tuple[int, int]:
    """(B, T) of a batch."""
    rows, steps = jax.tree.leaves(batch.inputs)[0].shape[:2]
    return rows, steps


def step_weights(batch: Batch, start: Any, size: int) -> jax.Array | None:
    """What the losses of some steps weigh; None: 1 each."""
    weights, mask = _cut((batch.weights, batch.mask), start, size)
    if weights is None or mask is None:
        return weights if mask is None else mask.astype(jnp.result_type(float))
    return jnp.where(mask, weights, 0)


def start_carry(model: Model, params: Params, inputs: Any) -> Carry:
    """The carry of sequences that begin with inputs [B, T, ...]."""
    one_step = jax.tree.map(lambda x: x[:, :1], inputs)
    xs = jax.eval_shape(lambda p, x: encode(model, p, x, None), params, one_step)
    return initial_carry(model, params, step_shape(xs))


def stream_carry(
    model: Model, params: Params, carry: Carry | None, batch: Batch
) -> tuple[Carry, Batch]:
    """The carry that a stream's batch starts from, given the newest one; None: it begins here."""
    if carry is None:
        # Copied since two leaves may be one array, which cannot be donated twice.
        carry = jax.tree.map(jnp.copy, start_carry(model, params, batch.inputs))
        # Whatever the first reset says, no step comes before.
        batch = batch._replace(reset=jnp.asarray(batch.reset).at[:, 0].set(True))
    check_stream(
        carry,
        batch_shape(batch)[0],
        "begin new streams with dataclasses.replace(state, carry=None, lookback=None)",
    )
    return carry, batch


def scan_windows(
    model: Model,
    loss: LossFn,
    truncation: Truncation,
    batch: Batch,
    memory: Memory | None,
    learner: tuple,
    consume: Consume,
    rng: jax.Array | None,
) -> tuple[tuple, Memory, jax.Array | None, Metrics]:
    """Run the windows of a batch in order; `consume` sees the gradient of each that has losses.

    Of each that is finite, too: a window whose loss or gradient is not is passed by.

    Window j ends with its interval, at end_j, and gives credit to the `span` steps before that,
    with anchor="loss" to no more than the k2 last before each loss. It starts from the carry that
    window j - 1 computed at that position, or, where the interval is longer than the span, runs
    forward to it from the newest carry.

    Independent sequences (`memory` is None) have no steps before the first; `layout` says how all
    windows have one shape all the same, so that no step needs a select.

    Args:
      model, loss, truncation, batch: as in `train_step`.
      memory: of a stream; None: the rows of the batch are whole, independent sequences.
      learner: what learns, the parameters first.
      consume: what to do with a gradient.
      rng: key for dropout, or None.

    Returns:
      The learner; the memory after the batch (for independent sequences without lookback), in
      which rows of a window that was not finite begin anew where their carry is not; the key for
      the next batch; the metrics.
    """
    lookback = None if memory is None else memory.lookback
    stream = lookback is not None
    _, length = batch_shape(batch)
    plan = layout(truncation, length, stream)
    reach = truncation.k2 if truncation.anchor == "loss" else None
    steps, lead = (batch.inputs, batch.mask, batch.reset), 0
    if lookback is not None and plan.replays:
        steps, lead = _join(lookback, batch), truncation.k2 - 1

    def keep(carries, leave):
        return jax.tree.map(lambda c: jax.lax.dynamic_slice_in_dim(c, leave, plan.kept), carries)

    def run(loop, where, size, span):
        learner, newest, carries, rng = loop
        end, start, pick, leave = where
        key = forward_key = None
        if rng is not None:
            rng, key, forward_key = jax.random.split(rng, 3)
        scored = min(size, span)
        carry, fresh = newest, None if stream else start == 0
        if size > span:
            inputs, mask, reset = _cut(steps, lead + end - size, size - span)
            fresh = None if stream else end == size
            unscored = Window(inputs, None, mask=mask, reset=reset, fresh=fresh)
            carry = forward(model, learner[0], carry, unscored, forward_key)[0]
            fresh = None
        elif size < span:
            carry = jax.tree.map(lambda c: c[pick], carries)
        inputs, mask, reset = _cut(steps, lead + start, span)
        weights = step_weights(batch, end - size, size)
        window = Window(
            inputs=inputs,
            targets=_cut(batch.targets, end - scored, scored),
            weights=None if weights is None else weights[:, size - scored :],
            mask=mask,
            reset=reset,
            first=end - scored - start,
            fresh=fresh,
        )

        def score(learner):
            value, grads = window_value_and_grad(
                model,
                loss,
                learner[0],
                carry,
                window,
                key,
                reach=reach,
                block=truncation.block,
            )
            mean, norm = _numbers(value.loss / value.weight, optax.tree.norm(grads) / value.weight)
            finite = jnp.isfinite(mean) & jnp.isfinite(norm)

            def learn(learner, *carries):
                return consume(learner, value, grads), *carries

            def mend(learner, *carries):
                initial = start_carry(model, learner[0], batch.inputs)
                return learner, *(_begin_anew_where_lost(c, initial) for c in carries)

            # One branch for all of it: a select for each was a quarter of TBPTT(1, 1)'s time.
            after = jax.lax.cond(
                finite, learn, mend, learner, value.carry, keep(value.carries, leave)
            )
            return *after, mean, norm, finite

        def pass_by(learner):
            end, _, carries = forward(model, learner[0], carry, window, key)
            return learner, end, keep(carries, leave), *_numbers(0, 0), jnp.bool(True)

        weight = total_weight(window)
        if weights is None:
            share = scored / size
            learner, newest, carries, mean, norm, finite = score(learner)
        else:
            offered = jnp.sum(weights)
            share = jnp.where(offered > 0, weight / jnp.where(offered > 0, offered, 1), 1)
            learner, newest, carries, mean, norm, finite = jax.lax.cond(
                weight > 0, score, pass_by, learner
            )
        metrics = Metrics(mean, norm, *_numbers(weight, share), finite=finite)
        return (learner, newest, carries, rng), metrics

    if memory is not None and lookback is not None:
        loop = (learner, memory.carry, lookback.carries, rng)
    else:
        carry = start_carry(model, learner[0], batch.inputs)
        loop = (learner, carry, _repeat(carry, plan.kept), rng)
    sizes, spans = plan.sizes.tolist(), plan.spans.tolist()
    full = length // truncation.k1
    metrics = []
    if full:
        loop, rows_of_metrics = jax.lax.scan(
            lambda loop, where: run(loop, where, sizes[0], spans[0]),
            loop,
            jnp.asarray(plan.table[:full]),
        )
        metrics.append(rows_of_metrics)
    if full < len(plan.table):
        loop, row = run(loop, plan.table[-1], sizes[-1], spans[-1])
        metrics.append(jax.tree.map(lambda m: m[None], row))
    learner, newest, carries, rng = loop
    metrics = jax.tree.map(lambda *parts: jnp.concatenate(parts), *metrics)
    if lookback is None:
        return learner, Memory(newest, None), rng, metrics
    inputs, mask, reset = jax.tree.map(
        lambda x: x[:, x.shape[1] - truncation.k2 + 1 :], _join(lookback, batch)
    )
    return learner, Memory(newest, Lookback(carries, inputs, mask, reset)), rng, metrics


def _begin_anew_where_lost(carries: Carry, initial: Carry) -> Carry:
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

    def choose(c, i):
        rows = anywhere.reshape(anywhere.shape + (1,) * (c.ndim - anywhere.ndim))
        return jnp.where(rows, jnp.broadcast_to(i, c.shape), c)

    return jax.tree.map(choose, carries, initial)


def _repeat(carry: Carry, count: int) -> Carry:
    return jax.tree.map(lambda c: jnp.broadcast_to(c, (count, *c.shape)), carry)


def _cut(tree: Any, start: Any, size: int) -> Any:
    """Steps start .. start + size of [B, T, ...] arrays; `start` may be traced."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)


def _join(lookback: Lookback, batch: Batch) -> tuple[Any, jax.Array, jax.Array]:
    """The steps of a stream's lookback and batch behind each other: inputs, mask, reset."""
    shape = batch_shape(batch)
    mask = jnp.ones(shape, bool) if batch.mask is None else batch.mask
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old, new], axis=1),
        (lookback.inputs, lookback.mask, lookback.reset),
        (batch.inputs, mask, batch.reset),
    )


def _numbers(*values: Any) -> tuple[jax.Array, ...]:
    """Metrics in one dtype, so that a window without losses gives the same as one with."""
    return tuple(jnp.asarray(value, jnp.result_type(float)) for value in values)
