"""A stream: what it carries from one batch to the next, and how a batch resumes it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tbptt_jax.cells.scan import step_shape
from tbptt_jax.estimators.estimator import init_aux
from tbptt_jax.estimators.window import encode, initial_carry
from tbptt_jax.plans.plan import Plan
from tbptt_jax.types import Batch, Carry, Model, Params, Tree, batch_shape
from tbptt_jax.validation.shapes import Shapes


class Steps(NamedTuple):
    """Consecutive steps without their losses.

    Attributes:
      inputs: [B, T, ...], or a pytree of such arrays.
      mask, reset: bool [B, T]; None as in `Batch`.
    """

    inputs: Tree
    mask: jax.Array | None
    reset: jax.Array | None


class Lookback(NamedTuple):
    """The end of a stream's last batch, where the first window of its next batch may start.

    Attributes:
      carries: the carries from which the next window may start, [B, P, ...]; P is the plan's, as
        is the number of steps.
      inputs, mask, reset: the last steps, [B, steps, ...]; the mask is False where the stream is
        shorter.
    """

    carries: Carry
    inputs: Tree
    mask: jax.Array
    reset: jax.Array


class Stream(NamedTuple):
    """What a stream carries from one batch to the next.

    Attributes:
      carry: carry after the newest step, leaves [B, ...].
      lookback: the steps before it; None after a batch of whole sequences, and where a stream is
        to continue from a carry alone.
      aux: what the plan's estimator remembers, leaves [B, ...]; restarts with the lookback.
    """

    carry: Carry
    lookback: Lookback | None = None
    aux: Tree = ()


def start_carry(model: Model, params: Params, inputs: Tree) -> Carry:
    """The carry of sequences that begin with inputs [B, T, ...]."""
    one_step = jax.tree.map(lambda x: x[:, :1], inputs)
    xs = jax.eval_shape(lambda p, x: encode(model, p, x, None), params, one_step)
    return initial_carry(model, params, step_shape(xs))


def resume_carry(
    model: Model, params: Params, carry: Carry | None, batch: Batch
) -> tuple[Carry, Batch]:
    """The carry from which a stream's batch starts, and the batch.

    Args:
      carry: the newest one; None: the stream begins with this batch.
    """
    if carry is None:
        # Copied since two leaves may be one array, which cannot be donated twice.
        carry = jax.tree.map(jnp.copy, start_carry(model, params, batch.inputs))
        # Whatever the first reset says, no step comes before.
        batch = batch._replace(reset=jnp.asarray(batch.reset).at[:, 0].set(True))
    return carry, batch


def resume(
    model: Model, params: Params, plan: Plan, stream: Stream | None, batch: Batch
) -> tuple[Stream, Batch]:
    """The stream from which a batch starts, of one structure from the first call on; the batch.

    Args:
      stream: the newest one, with a carry of this batch's rows; None: it begins with this batch.
    """
    carry, batch = resume_carry(model, params, None if stream is None else stream.carry, batch)
    if stream is not None and _fits(model, params, plan, stream, batch):
        return stream, batch
    aux = jax.tree.map(jnp.copy, init_aux(plan.estimator, model, params, carry))
    return Stream(carry, empty_lookback(plan, carry, batch), aux), batch


def empty_lookback(plan: Plan, carry: Carry, batch: Batch) -> Lookback:
    """The lookback of a stream that begins with `batch`: none of its steps exists."""
    size, (rows, _) = plan.lookback_size, batch_shape(batch)

    def nothing(x: jax.Array) -> jax.Array:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jnp.zeros((rows, size.steps, *x.shape[2:]), dtype)

    def repeat(c: jax.Array) -> jax.Array:
        return jnp.broadcast_to(c[:, None], (rows, size.carries, *c.shape[1:]))

    return Lookback(
        carries=jax.tree.map(repeat, carry),
        inputs=jax.tree.map(nothing, batch.inputs),
        mask=nothing(batch.reset),
        reset=nothing(batch.reset),
    )


def _fits(model: Model, params: Params, plan: Plan, stream: Stream, batch: Batch) -> bool:
    """Whether the lookback and the aux are those of the plan, for the rows of the batch."""
    if stream.lookback is None:
        return False
    size, (rows, _) = plan.lookback_size, batch_shape(batch)
    saved = jax.tree.leaves(stream.lookback.carries)[0].shape[1], stream.lookback.mask.shape
    if saved != (size.carries, (rows, size.steps)):
        return False
    return Shapes.of(stream.aux) == _aux_form(
        plan, model, Shapes.of(params), Shapes.of(stream.carry)
    )


@functools.lru_cache(maxsize=64)
def _aux_form(plan: Plan, model: Model, of_params: Shapes, of_carry: Shapes) -> Shapes:
    """What the plan's estimator starts with."""
    init = functools.partial(init_aux, plan.estimator, model)
    return Shapes.of(jax.eval_shape(init, of_params.tree(), of_carry.tree()))


def join(lookback: Lookback, batch: Batch) -> Steps:
    """The steps of a stream's lookback and batch behind each other."""
    mask = jnp.ones(batch_shape(batch), bool) if batch.mask is None else batch.mask
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old, new], axis=1),
        Steps(lookback.inputs, lookback.mask, lookback.reset),
        Steps(batch.inputs, mask, batch.reset),
    )
