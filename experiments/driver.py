"""The one training loop of the experiments: any task, any truncation."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments.saving import Saving, Unsaved
from experiments.tasks.task import Task
from experiments.technique import (
    Recipe,
    Technique,
    count_updates,
    describe,
    existing_steps,
    total_weight,
)
from tbptt_jax import credit, data, train
from tbptt_jax.checkpoint import Saved
from tbptt_jax.types import Params
from tbptt_jax.windows import batch_shape


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
      state: with the averaged parameters of the epoch that was best on validation.
      best: that epoch's row of the history.
      history: a row for each epoch.
      updates_per_second: without the calls that compiled; NaN where there were no others.
      scored: share of the losses that was scored.
    """

    state: tbptt.TrainState
    best: dict[str, Any]
    history: list[dict[str, Any]]
    updates_per_second: float
    scored: float


@dataclasses.dataclass
class Progress:
    """Where a training is in its data, and what was measured so far; JSON.

    Attributes:
      epoch, batch: how many epochs are done, and batches of the one under way.
      loss, weight: sums over this epoch, of the losses that were trained on and of their weights.
      skipped: updates of this epoch that were not made, since they were not finite.
      scored, offered: weight of all losses that were scored, and of all there were.
      seconds: of training.
      first_seconds, first_updates: of the calls that compiled, and the updates they made.
      history: a row for each epoch that is done.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    weight: float = 0.0
    skipped: int = 0
    scored: float = 0.0
    offered: float = 0.0
    seconds: float = 0.0
    first_seconds: float = 0.0
    first_updates: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, metrics: tbptt.Metrics) -> None:
        """Count the updates of a batch."""
        finite, weight = np.asarray(metrics.finite), np.asarray(metrics.weight, np.float64)
        loss = np.where(finite, metrics.loss, 0)
        self.loss += float((loss * weight).sum())
        self.weight += float(weight.sum(where=finite))
        self.skipped += int(np.sum(~finite))
        self.scored += float(weight.sum())

    def mean_loss(self) -> float:
        """Of this epoch so far; NaN where nothing was trained on."""
        return self.loss / self.weight if self.weight else math.nan

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Keep an epoch's row, and begin the next."""
        self.history.append(row)
        self.epoch += 1
        self.batch = self.skipped = 0
        self.loss = self.weight = 0.0


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


def fit(
    task: Task,
    recipe: Recipe,
    technique: Technique,
    saving: Saving | Unsaved | None = None,
    keep: Callable[[list[dict[str, Any]], Params | None], None] | None = None,
) -> Trained:
    """Train, and keep the averaged parameters that were best on the validation part.

    A training that was saved goes on from there, and one that was finished is what it was.

    Args:
      task, recipe, technique: what is trained, and how.
      saving: where and when it is saved; None: not at all.
      keep: is told of every epoch: the history, which it may add to the last row of, and the
        averaged parameters if that epoch is the best so far.

    Raises:
      FloatingPointError: a loss or gradient is not finite, and there is no folder to save in.
    """
    saving = saving or Unsaved()
    run = _Training(task, recipe, technique, keep)
    with saving.running(run.about, run.like) as saved:
        if saved is not None:
            run.go_on(saved)
        finished = run.progress.epoch == recipe.epochs
        form = {"unit": " steps", "unit_scale": True, "smoothing": 0.1, "mininterval": 0.5}
        with tqdm(total=run.total, disable=finished, **form) as bar:
            while run.progress.epoch < recipe.epochs:
                run.train_epoch(saving, bar)
                run.end_epoch()
            saving.finish(run.snapshot)
    return run.result()


class _Training:
    """A training under way: the state, what is measured, and what of it is saved."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        technique: Technique,
        keep: Callable[[list[dict[str, Any]], Params | None], None] | None,
    ):
        self._task, self._recipe, self._technique, self._keep = task, recipe, technique, keep
        self._valid = task.batches("valid", 1, None)
        self._batches = technique.batches(task, "train", np.random.default_rng((recipe.seed, 0)))
        self.total = recipe.epochs * sum(existing_steps(batch) for batch in self._batches)
        self.about = describe(task, recipe, technique, [*self._batches, *self._valid])
        updates = recipe.epochs * count_updates(technique.plan, self._batches)
        self._state = make_state(task, recipe, updates)
        begin_averages, self._average_of = make_averager(recipe.averaging)
        # Copied, since the state is donated.
        self._average = jax.tree.map(jnp.copy, self._state.params)
        self._best_params, self._averages = self._average, begin_averages(self._average)
        self.progress = Progress()
        self._compiled: set[tuple[int, int]] = set()
        self._shown = time.perf_counter()

    def like(self) -> dict[str, Any]:
        """The structure of what `snapshot` gives after a batch, when there is a carry."""
        step = functools.partial(tbptt.train_step, truncation=self._technique.plan)
        state, _ = jax.eval_shape(step, self._state, self._batches[0])
        return {**self.snapshot()[0], "state": state}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that this training is: arrays, and JSON."""
        arrays = {
            "state": self._state,
            "average": self._average,
            "averages": self._averages,
            "best": self._best_params,
        }
        return arrays, dataclasses.asdict(self.progress)

    def go_on(self, saved: Saved) -> None:
        """Be what was saved."""
        self._state, self._average, self._averages, self._best_params = (
            saved.tree[name] for name in ("state", "average", "averages", "best")
        )
        self.progress = Progress(**saved.progress)
        if self.progress.epoch < self._recipe.epochs:
            tqdm.write(
                f"going on after {int(self._state.step):,} updates: epoch "
                f"{self.progress.epoch + 1}, batch {self.progress.batch + 1}"
            )

    def train_epoch(self, saving: Unsaved, bar: tqdm) -> None:
        """Train on the rest of an epoch."""
        progress, batches = self.progress, self._batches
        if progress.epoch:
            rng = np.random.default_rng((self._recipe.seed, progress.epoch))
            batches = self._technique.batches(self._task, "train", rng)
        done = sum(existing_steps(batch) for batch in batches[: progress.batch])
        bar.update(progress.epoch * self.total // self._recipe.epochs + done - bar.n)
        for batch in batches[progress.batch :]:
            metrics = self._train_batch(batch)
            progress.batch += 1
            bar.update(existing_steps(batch))
            self._show(bar, batch)
            if not np.all(metrics.finite):
                where = f"epoch {progress.epoch + 1}, batch {progress.batch} of {len(batches)}"
                message = f"{where}, {self._first_nonfinite(batch, metrics)}"
                if saving.on_nonfinite == "stop":
                    saving.stop_nonfinite(message, self.snapshot)
                tqdm.write(f"warning: {message}; {progress.skipped} left out in this epoch")
            saving.after_batch(self.snapshot)

    def _train_batch(self, batch: tbptt.Batch) -> tbptt.Metrics:
        progress, shape = self.progress, batch_shape(batch)
        begun = time.perf_counter()
        self._state, metrics = tbptt.train_step(self._state, batch, self._technique.plan)
        self._average, self._averages = self._average_of(self._state.params, self._averages)
        jax.block_until_ready(self._average)
        seconds = time.perf_counter() - begun
        progress.seconds += seconds
        if shape not in self._compiled:
            self._compiled.add(shape)
            progress.first_seconds += seconds
            progress.first_updates += int(np.sum(np.asarray(metrics.weight) > 0))
        progress.add(metrics)
        progress.offered += total_weight(batch)
        return metrics

    def _first_nonfinite(self, batch: tbptt.Batch, metrics: tbptt.Metrics) -> str:
        """The first window of a batch whose loss or gradient is not finite."""
        window = int(np.argmin(metrics.finite))
        interval = credit.intervals(self._technique.plan, batch_shape(batch)[1])[window]
        made = np.asarray((metrics.weight > 0) & metrics.finite)
        step = int(self._state.step) - int(made[window:].sum())
        return (
            f"window {window + 1}, {self._task.step}s {interval.start + 1} to {interval.end}, "
            f"after update {step:,}: the loss is {float(metrics.loss[window]):g}, the norm of the "
            f"gradient {float(metrics.grad_norm[window]):g}; it was not trained on"
        )

    def end_epoch(self) -> None:
        """Judge what was learnt."""
        progress, task = self.progress, self._task
        averaged = dataclasses.replace(self._state, params=self._average)
        found = tbptt.evaluate(averaged, self._valid, task.metrics)
        best = self._best()
        row = {
            "epoch": progress.epoch + 1,
            "updates": int(self._state.step),
            "train_loss": progress.mean_loss(),
            "valid_loss": found["loss"],
            "valid_score": task.score.of(found),
            "skipped": progress.skipped,
            "seconds": round(progress.seconds, 2),
        }
        progress.end_epoch(row)
        better = best is None or _rank(task, row) > _rank(task, best)
        if better:
            self._best_params = self._average
        if self._keep is not None:
            self._keep(progress.history, self._average if better else None)

    def _best(self) -> dict[str, Any] | None:
        """The best row so far, of equals the first."""
        return max(self.progress.history, key=lambda row: _rank(self._task, row), default=None)

    def _show(self, bar: tqdm, batch: tbptt.Batch) -> None:
        """Say now and then how it stands."""
        if time.perf_counter() - self._shown < 2:
            return
        self._shown, task, best = time.perf_counter(), self._task, self._best()
        judged = data.mark_losses(batch) if task.many_to_one else batch
        score = task.score.write(task.score.of(tbptt.evaluate(self._state, judged, task.metrics)))
        bar.set_postfix_str(
            f"epoch {self.progress.epoch + 1}/{self._recipe.epochs} "
            f"loss {self.progress.mean_loss():.3f} {task.score.name} {score}"
            + (f" valid {task.score.write(best['valid_score'])}" if best else "")
        )

    def result(self) -> Trained:
        """What is left of it."""
        progress, best = self.progress, self._best()
        assert best is not None  # there is at least one epoch
        updates = int(self._state.step) - progress.first_updates
        seconds = progress.seconds - progress.first_seconds
        return Trained(
            dataclasses.replace(self._state, params=self._best_params),
            best,
            progress.history,
            updates / seconds if updates > 0 else math.nan,
            progress.scored / progress.offered,
        )


def _rank(task: Task, row: dict[str, Any]) -> tuple[float, float]:
    """What makes an epoch better: its score on the validation part, and then its loss there."""
    rank = task.score.rank(row["valid_score"]), -row["valid_loss"]
    return (-math.inf, -math.inf) if any(map(math.isnan, rank)) else rank


def temporary_bytes(state: tbptt.TrainState, batch: Any, plan: tbptt.Truncation) -> int:
    """What a compiled `train_step` needs beyond its arguments and results; nothing is run."""
    memory = None
    if batch.reset is not None:
        memory, batch = train._continue(state, batch, plan)
    state = dataclasses.replace(state, carry=None, lookback=None)
    lowered = train._train_step.lower(state, memory, batch, plan)
    analysis: Any = lowered.compile().memory_analysis()
    return analysis.temp_size_in_bytes
