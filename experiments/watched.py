"""Train a network, and watch the gradient that some of its parameters receive."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments import trainer
from experiments.run import RunFolder, slug
from experiments.tasks import Task
from experiments.technique import Recipe, Technique
from tbptt_jax.types import Params


def fit(
    run: RunFolder,
    task: Task,
    technique: Technique,
    seed: int,
    watched: Callable[[Params], jax.Array],
    batches: list[tbptt.Batch],
    show: Callable[[float], None] | None = None,
) -> tuple[trainer.Trained, dict[str, float]]:
    """Train with the task's own choices.

    Args:
      run, task, technique, seed, show: of the training.
      watched: the parameters to watch, out of all.
      batches: where their gradient is taken.

    Returns:
      The network, and of what was watched:

      gradient: the largest entry of the gradients, by size, before training and after each pass
        that was the best so far.
      moved: how far training moved an entry, at most.
    """
    recipe = Recipe(task.epochs, task.learning_rate, task.averaging, seed=seed)
    start = trainer.make_state(task, recipe)

    def largest(params: Params) -> float:
        state = dataclasses.replace(start, params=params)
        found = [watched(tbptt.gradient(state, batch, technique.plan)) for batch in batches]
        return max(float(np.abs(gradient).max()) for gradient in found)

    def look(history: list[dict[str, Any]], best: Params | None) -> None:
        if best is not None:
            history[-1]["gradient"] = largest(best)

    saving = run.saving(slug(f"{task.name} {technique.name} {seed}"))
    trained = trainer.Trainer(task, recipe).fit(technique, saving, save_epoch=look, show=show)[0]
    seen = [row["gradient"] for row in trained.history if "gradient" in row]
    moved = np.abs(np.subtract(watched(trained.state.params), watched(start.params))).max()
    return trained, {"gradient": max(largest(start.params), *seen), "moved": float(moved)}
