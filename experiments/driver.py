"""The one training loop of the experiments: any task, any truncation."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import common
from experiments.tasks.task import Task
from tbptt_jax import credit, data, train
from tbptt_jax.types import Params
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


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
      state: with the averaged parameters of the epoch that was best on validation.
      best: that epoch's row of the history.
      history: a row for each epoch.
      interrupted: whether Ctrl-C ended it.
      updates_per_second: without the calls that compiled; NaN where there were no others.
      scored: share of the losses that was scored.
    """

    state: tbptt.TrainState
    best: dict[str, Any]
    history: list[dict[str, Any]]
    interrupted: bool
    updates_per_second: float
    scored: float


@functools.cache
def make_optimizer(learning_rate: float, clip: float, updates: int) -> optax.GradientTransformation:
    """Adam; cached, since compiled code is found by its identity."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.cosine_decay_schedule(learning_rate, updates)),
    )


@functools.cache
def make_averager(decay: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Begin and go on with the average of parameters; cached, as what is compiled for it is."""
    averager = optax.ema(decay)
    return averager.init, jax.jit(averager.update)


def make_state(task: Task, recipe: Recipe, updates: int = 1) -> tbptt.TrainState:
    """The state before training."""
    optimizer = make_optimizer(recipe.learning_rate, recipe.clip, updates)
    return tbptt.TrainState.create(
        task.network(recipe.seed), optimizer, task.loss, seed=recipe.seed
    )


def count_updates(plan: tbptt.Truncation, batches: list[tbptt.Batch]) -> int:
    """Optimizer steps of a pass: the intervals in which some loss is scored."""
    count = 0
    for batch in batches:
        weights = _weight_of_steps(batch)
        intervals = credit.intervals(plan, len(weights))
        count += sum(bool(weights[i.scored : i.end].sum() > 0) for i in intervals)
    return count


def fit(
    task: Task,
    recipe: Recipe,
    technique: Technique,
    keep: Callable[[dict[str, Any], Params | None], None] | None = None,
) -> Trained:
    """Train, and keep the averaged parameters that were best on the validation part.

    `keep` is told of every epoch: its row, and its averaged parameters if they are the best so far.
    """
    valid = task.batches("valid", 1, None)
    batches = technique.batches(task, "train", np.random.default_rng((recipe.seed, 0)))
    updates = recipe.epochs * count_updates(technique.plan, batches)
    state = make_state(task, recipe, updates)
    begin_averages, average_of = make_averager(recipe.averaging)
    averages = begin_averages(state.params)
    best_params = average = state.params
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    scored, weight = 0.0, 0.0
    seconds, shown = 0.0, time.perf_counter()
    compiled: dict[tuple[int, int], tuple[float, int]] = {}
    total = recipe.epochs * sum(_steps(batch) for batch in batches)
    bar = tqdm(total=total, unit=" steps", unit_scale=True, smoothing=0.1, mininterval=0.5)
    with common.ctrl_c() as pressed, bar:
        for epoch in range(recipe.epochs):
            if epoch:
                rng = np.random.default_rng((recipe.seed, epoch))
                batches = technique.batches(task, "train", rng)
            losses: list[tuple[jax.Array, jax.Array]] = []
            begun = time.perf_counter()
            for batch in batches:
                shape, called = batch_shape(batch), time.perf_counter()
                if shape not in compiled:
                    jax.block_until_ready(average)
                    called = time.perf_counter()
                state, metrics = tbptt.train_step(state, batch, technique.plan)
                average, averages = average_of(state.params, averages)
                if shape not in compiled:
                    jax.block_until_ready(average)
                    made = int((np.asarray(metrics.weight) > 0).sum())
                    compiled[shape] = time.perf_counter() - called, made
                losses.append((metrics.loss, metrics.weight))
                bar.update(_steps(batch))
                if time.perf_counter() - shown > 2 or pressed:
                    # Reading a value waits for the device, so it is done now and then.
                    shown = time.perf_counter()
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}/{recipe.epochs} "
                        f"loss {_weighted_mean(losses[-25:]):.3f} {_now(task, state, batch)}"
                        + (f" valid {task.score.write(best['valid_score'])}" if best else "")
                    )
                if pressed:
                    break
            jax.block_until_ready(average)
            seconds += time.perf_counter() - begun
            scored += sum(float(w.sum()) for _, w in losses)
            weight += sum(total_weight(batch) for batch in batches[: len(losses)])
            averaged = dataclasses.replace(state, params=average)
            found = tbptt.evaluate(averaged, valid, task.metrics)
            row = {
                "epoch": epoch + 1,
                "updates": int(state.step),
                "train_loss": _weighted_mean(losses),
                "valid_loss": found["loss"],
                "valid_score": task.score.of(found),
                "seconds": round(seconds, 2),
            }
            history.append(row)
            if not best or _rank(task, row) > _rank(task, best):
                best, best_params = row, average
            if keep is not None:
                keep(row, average if best is row else None)
            if pressed:
                break
    first_seconds, first_updates = map(sum, zip(*compiled.values(), strict=True))
    steady = seconds - first_seconds, int(state.step) - first_updates
    return Trained(
        dataclasses.replace(state, params=best_params),
        best,
        history,
        bool(pressed),
        steady[1] / steady[0] if steady[1] else math.nan,
        scored / weight,
    )


def _rank(task: Task, row: dict[str, Any]) -> tuple[float, float]:
    """What makes an epoch better: its score on the validation part, and then its loss there."""
    return task.score.rank(row["valid_score"]), -row["valid_loss"]


def _now(task: Task, state: tbptt.TrainState, batch: tbptt.Batch) -> str:
    """The score on a batch of training."""
    judged = data.mark_losses(batch) if task.many_to_one else batch
    score = task.score.of(tbptt.evaluate(state, judged, task.metrics))
    return f"{task.score.name} {task.score.write(score)}"


def _steps(batch: tbptt.Batch) -> int:
    """How many steps of a batch exist."""
    rows, length = batch_shape(batch)
    return rows * length if batch.mask is None else int(np.sum(batch.mask))


def total_weight(batch: tbptt.Batch) -> float:
    """The total weight of a batch's losses."""
    return float(_weight_of_steps(batch).sum())


def _weight_of_steps(batch: tbptt.Batch) -> np.ndarray:
    """What the losses of each step weigh, all rows together, [T]."""
    rows, length = batch_shape(batch)
    weights = step_weights(batch, 0, length)
    return np.full(length, rows) if weights is None else np.asarray(weights).sum(0)


def _weighted_mean(pairs: list[tuple[jax.Array, jax.Array]]) -> float:
    """Mean of values by their weights, of many updates."""
    values, weights = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(np.average(values, weights=weights)) if weights.sum() else math.nan


def temporary_bytes(state: tbptt.TrainState, batch: Any, plan: tbptt.Truncation) -> int:
    """What a compiled `train_step` needs beyond its arguments and results; nothing is run."""
    memory = None
    if batch.reset is not None:
        memory, batch = train._continue(state, batch, plan)
    state = dataclasses.replace(state, carry=None, lookback=None)
    lowered = train._train_step.lower(state, memory, batch, plan)
    analysis: Any = lowered.compile().memory_analysis()
    return analysis.temp_size_in_bytes
