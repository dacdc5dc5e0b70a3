"""What a batch and a plan do to a stream: its carry, its losses, and its windows."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.cells.scan import check_carry
from tbptt_jax.plans.placement import Placement
from tbptt_jax.plans.plan import Plan
from tbptt_jax.types import Batch, Carry, batch_shape
from tbptt_jax.validation.values import read, scored_steps

NEW_STREAMS = "restart the streams with state.restart()"


def carry_to_continue(carry: Carry | None, batch: Batch, like: Carry, advice: str) -> Carry | None:
    """The newest carry of a stream; None where a batch starts one, or new ones.

    A batch of another size starts new streams if every row says `reset` at its first step: nothing
    is carried into it.

    Args:
      carry: the newest carry, or None.
      batch: what continues the stream.
      like: the initial carry of this batch, as shapes.
      advice: what else to do about another batch size.

    Raises:
      TypeError: the carry is not like the model's.
      ValueError: the batch size differs, and rows continue.
    """
    if carry is None:
        return None
    carry = jax.tree.map(lambda c: c if isinstance(c, jax.Array) else jnp.asarray(c), carry)
    rows = jax.tree.leaves(like)[0].shape[0]
    if any(leaf.shape[:1] != (rows,) for leaf in jax.tree.leaves(carry)):
        reset = read(batch.reset)
        if reset is not None and reset[:, 0].all():
            return None
        before = jax.tree.leaves(carry)[0].shape[0]
        if before != rows:
            raise ValueError(
                f"Batch: inputs continue a stream of {before} rows (reset is not None), got {rows} "
                f"rows; keep the batch size, or {advice}"
            )
    check_carry(
        "state", like, carry, "of this model is", "and the one of the stream is",
        "keep the one that train_step returned, or None to begin a stream",
    )  # fmt: skip
    return carry


def check_scored(batch: Batch, plan: Plan, stacklevel: int) -> None:
    """Report a batch that trains nothing: no step has a weight, or the plan scores none that has.

    An error for whole sequences. A warning for streams, where the loss may be in a later batch.

    Raises:
      ValueError: no step of whole sequences is scored.
    """
    scored = scored_steps(batch)
    if scored.ndim == 0:
        return
    if not scored.any():
        why = "`weights` or `mask` are 0 everywhere; see data.mark_losses"
    elif not scored[:, _columns(plan, scored.shape[1])].any():
        why = (
            f"`weights` or `mask` are 0 at all steps that {plan} scores; take a plan that scores "
            "others (see credit_matrix), or move the losses"
        )
    else:
        return
    if batch.reset is None:
        raise ValueError(f"Batch: no step is scored: {why}")
    warnings.warn(
        f"Batch: no step is scored: {why}. The batch only moves the carry of its stream, which is "
        "right if the losses come in later ones",
        stacklevel=stacklevel,
    )


def check_placement(batch: Batch, plan: Plan, stacklevel: int) -> None:
    """Warn where the plan has a warning for streams whose batches are as long as this one."""
    if batch.reset is None:
        return
    warning = _placement(plan, batch_shape(batch)[1]).warning
    if warning is not None:
        warnings.warn(f"Batch: {warning}", stacklevel=stacklevel)


@functools.lru_cache(maxsize=64)
def _placement(plan: Plan, length: int) -> Placement:
    """The windows of a stream's batch."""
    return plan.placement(length, stream=True)


@functools.lru_cache(maxsize=64)
def _columns(plan: Plan, length: int) -> np.ndarray:
    """Which of the steps a plan scores, bool [T]."""
    columns = np.zeros(length, bool)
    for interval in plan.intervals(length):
        columns[interval.scored : interval.end] = True
    return columns
