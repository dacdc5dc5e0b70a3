"""What is trained, and how: a recipe, a truncation, the batches they make, and what those offer."""

import dataclasses
import hashlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments.tasks.task import Part, Task
from tbptt_jax import data
from tbptt_jax.training.windows import step_weights
from tbptt_jax.types import batch_shape


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the truncation."""

    epochs: int  # passes over the training part
    learning_rate: float  # Adam's, at first; a cosine takes it to 0 by the end
    averaging: float  # decay, per batch, of the average of the parameters, which is evaluated
    clip: float = 1.0  # the largest norm of a gradient
    seed: int = 0  # of the weights, the order of the data and the dropout


class Technique(NamedTuple):
    """A way to train on a task."""

    name: str  # in words
    plan: tbptt.Truncation
    every: int | None = None  # many-to-one: a loss after so many steps; None: at the end only
    pieces: int | None = None  # sequences of so many steps each; None: the carry runs on

    def mark(self, task: Task, batches: list[tbptt.Batch]) -> list[tbptt.Batch]:
        """The batches with the losses and the resets of this technique."""
        if task.many_to_one:
            batches = [data.mark_losses(batch, every=self.every) for batch in batches]
        if self.pieces is not None:
            batches = [_reset_every(batch, self.pieces) for batch in batches]
        return batches

    def batches(self, task: Task, part: Part, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        """A part of a task as this technique trains on it."""
        multiple = self.plan.k1 if self.plan.k1 < task.length else 1
        return self.mark(task, task.batches(part, multiple, rng))


def _reset_every(batch: tbptt.Batch, steps: int) -> tbptt.Batch:
    """The same steps, with a reset before every piece."""
    shape = batch_shape(batch)
    reset = np.zeros(shape, bool) if batch.reset is None else np.array(batch.reset)
    reset[:, ::steps] = True
    return batch._replace(reset=reset)


def count_updates(plan: tbptt.Truncation, batches: list[tbptt.Batch]) -> int:
    """Optimizer steps of a pass: the intervals in which some loss is scored."""
    count = 0
    for batch in batches:
        weights = weight_of_steps(batch)
        intervals = tbptt.intervals(plan, len(weights))
        count += sum(bool(weights[i.scored : i.end].sum() > 0) for i in intervals)
    return count


def weight_of_steps(batch: tbptt.Batch) -> np.ndarray:
    """The weight of each step's losses, all rows together, [T]."""
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    return np.full(length, rows) if weights is None else np.asarray(weights).sum(0)


def warn_beyond(plan: tbptt.Truncation, longest: int, step: str) -> None:
    """Warn if k1 or k2 is more than the longest sequence has steps."""
    beyond = [f"k{i} = {k:,}" for i, k in ((1, plan.k1), (2, plan.k2)) if k > longest]
    if beyond:
        print(
            f"warning: {' and '.join(beyond)} {'exceed' if len(beyond) > 1 else 'exceeds'} the "
            f"longest sequence, {longest:,} {step}s: with a larger k1 each batch makes one update, "
            "with a larger k2 the gradient reaches every step",
            file=sys.stderr,
        )


def existing_steps(batch: tbptt.Batch) -> int:
    """How many steps of a batch exist."""
    rows, length = batch_shape(batch)
    return rows * length if batch.mask is None else int(np.sum(batch.mask))


def describe(
    task: Task, recipe: Recipe, technique: Technique, batches: list[tbptt.Batch]
) -> dict[str, Any]:
    """What a training is, as JSON; one that differs is not resumed."""
    digest = hashlib.sha256()
    for batch in batches:
        for path, leaf in jax.tree.leaves_with_path(batch):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return {
        "task": task.name,
        "recipe": dataclasses.asdict(recipe),
        "technique": {**technique._asdict(), "plan": dataclasses.asdict(technique.plan)},
        "data": digest.hexdigest(),
    }
