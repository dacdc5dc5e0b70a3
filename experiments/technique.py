"""What is trained, and how: a recipe, a truncation, the batches they make, and what those offer."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments.tasks.task import Task
from tbptt_jax import credit, data
from tbptt_jax.windows import batch_shape, step_weights


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the truncation.

    Attributes:
      epochs: passes over the part for training.
      learning_rate: Adam's, at first; a cosine takes it to 0 by the end.
      clip: the largest norm of a gradient.
      averaging: decay, per batch, of the average of the parameters, which is what is judged.
      seed: of the weights, the order of the data and the dropout.
    """

    epochs: int
    learning_rate: float
    averaging: float
    clip: float = 1.0
    seed: int = 0


class Technique(NamedTuple):
    """A way to train on a task.

    Attributes:
      name: in words.
      plan: the truncation.
      every: many-to-one tasks: a loss after every so many steps; None: at the end only.
      pieces: each piece of so many steps is a sequence of its own; None: the carry runs on.
    """

    name: str
    plan: tbptt.Truncation
    every: int | None = None
    pieces: int | None = None

    def mark(self, task: Task, batches: list[tbptt.Batch]) -> list[tbptt.Batch]:
        """The batches with the losses and the resets of this technique."""
        if task.many_to_one:
            batches = [data.mark_losses(batch, every=self.every) for batch in batches]
        if self.pieces is not None:
            batches = [_begin_anew(batch, self.pieces) for batch in batches]
        return batches

    def batches(self, task: Task, part: Any, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        """A part of a task as this technique is trained on it."""
        multiple = self.plan.k1 if self.plan.k1 < task.length else 1
        return self.mark(task, task.batches(part, multiple, rng))


def _begin_anew(batch: tbptt.Batch, steps: int) -> tbptt.Batch:
    """The same steps, with a reset before every piece."""
    shape = batch_shape(batch)
    reset = np.zeros(shape, bool) if batch.reset is None else np.array(batch.reset)
    reset[:, ::steps] = True
    return batch._replace(reset=reset)


def count_updates(plan: tbptt.Truncation, batches: list[tbptt.Batch]) -> int:
    """Optimizer steps of a pass: the intervals in which some loss is scored."""
    count = 0
    for batch in batches:
        weights = _weight_of_steps(batch)
        intervals = credit.intervals(plan, len(weights))
        count += sum(bool(weights[i.scored : i.end].sum() > 0) for i in intervals)
    return count


def total_weight(batch: tbptt.Batch) -> float:
    """The total weight of a batch's losses."""
    return float(_weight_of_steps(batch).sum())


def _weight_of_steps(batch: tbptt.Batch) -> np.ndarray:
    """What the losses of each step weigh, all rows together, [T]."""
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    return np.full(length, rows) if weights is None else np.asarray(weights).sum(0)


def existing_steps(batch: tbptt.Batch) -> int:
    """How many steps of a batch exist."""
    rows, length = batch_shape(batch)
    return rows * length if batch.mask is None else int(np.sum(batch.mask))


def describe(
    task: Task, recipe: Recipe, technique: Technique, batches: list[tbptt.Batch]
) -> dict[str, Any]:
    """What a training is, as JSON; one that differs is not gone on with."""
    return {
        "task": task.name,
        "recipe": dataclasses.asdict(recipe),
        "technique": {**technique._asdict(), "plan": dataclasses.asdict(technique.plan)},
        "data": _digest(batches),
    }


def _digest(batches: list[tbptt.Batch]) -> str:
    """Of the data: any change of a bit, a shape or an order gives another one."""
    found = hashlib.sha256()
    for batch in batches:
        for path, leaf in jax.tree.leaves_with_path(batch):
            array = np.ascontiguousarray(leaf)
            found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            found.update(array.data)
    return found.hexdigest()
