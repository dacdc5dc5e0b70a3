"""Many networks trained side by side by one plan: of other seeds, at other learning rates.

Each is trained as `driver.fit` trains it, but that the data come in one order for all of them, that
of the recipe's seed.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt_jax as tbptt
from experiments import driver
from experiments.many_step import Spread, Step, make_optimizer, spread
from experiments.saving import Saving, Unsaved
from experiments.tasks import Task
from experiments.technique import Recipe, Technique, count_updates, describe, total_weight
from tbptt_jax import evaluation
from tbptt_jax.checkpoint import Saved


class Network(NamedTuple):
    """What tells a network from the others; the seed is of its weights and its dropout."""

    learning_rate: float
    seed: int


class Outcome(NamedTuple):
    """What the training of M networks came to.

    Attributes:
      valid, test: [M], scores with the averaged parameters of the epoch best on validation.
      epochs: [M], that epoch.
      updates: [M], made.
      skipped: [M], not made, since they were not finite.
      seconds: of all networks, with what was compiled for them, and judging.
      seconds_per_update: of one network, without compiling.
      scored: share of the losses that was scored.
    """

    valid: np.ndarray
    test: np.ndarray
    epochs: np.ndarray
    updates: np.ndarray
    skipped: np.ndarray
    seconds: float
    seconds_per_update: float
    scored: float


class ManySeeds:
    """The networks of a task; each call says which of them, and by what plan."""

    def __init__(self, task: Task, recipe: Recipe, seeds: Sequence[int]):
        """Make a network for every seed; the recipe's own learning rate is not used."""
        self.task, self.recipe = task, recipe
        self._states = {
            seed: driver.make_state(task, dataclasses.replace(recipe, seed=seed)) for seed in seeds
        }
        self.valid, self.test = task.batches("valid", 1, None), task.batches("test", 1, None)
        self.averager = optax.ema(recipe.averaging)
        self._steps: dict[tuple[Technique, Spread], Step] = {}
        self._totals = jax.jit(self._trace_totals, static_argnames="how")

    def fit(
        self,
        technique: Technique,
        networks: Sequence[Network],
        how: Spread,
        saving: Saving | Unsaved | None = None,
        show: Callable[[float], None] = lambda done: None,
    ) -> Outcome:
        """Train and judge; what was saved goes on from there.

        `show` is told after every batch what share of the training is done.
        """
        saving = saving or Unsaved()
        run = _Together(self, technique, networks, how)
        with saving.running(run.about, run.like) as saved:
            if saved is not None:
                run.go_on(saved)
            while run.progress.epoch < self.recipe.epochs:
                run.train_epoch(saving, show)
                run.end_epoch()
            saving.finish(run.snapshot)
            return run.outcome()

    def measure(
        self, technique: Technique, networks: Sequence[Network], calls: int = 3
    ) -> dict[Spread, float]:
        """Seconds that a batch takes all networks, spread in each way; the median of some calls."""
        batch = self.batches(technique, 0)[0]
        found: dict[Spread, float] = {}
        ways: tuple[Spread, ...] = ("together", "in turn")
        for how in ways:
            states, step = self.start(technique, networks), self.step(technique, how)
            averages, seconds = self.averager.init(states.params), []
            for _ in range(calls):
                states, averages, _, _, took = step(states, averages, batch)
                seconds.append(took)
            found[how] = statistics.median(seconds)
        return found

    def batches(self, technique: Technique, epoch: int) -> list[tbptt.Batch]:
        """The part for training, in the order of an epoch."""
        rng = np.random.default_rng((self.recipe.seed, epoch))
        return technique.batches(self.task, "train", rng)

    def start(self, technique: Technique, networks: Sequence[Network]) -> tbptt.TrainState:
        """The states of the networks, stacked."""
        count = count_updates(technique.plan, self.batches(technique, 0))
        optimizer = make_optimizer(self.recipe.clip, self.recipe.epochs * count)
        chosen = [self._states[network.seed] for network in networks]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chosen)
        opt_state: Any = jax.vmap(optimizer.init)(states.params)
        rates = jnp.array([network.learning_rate for network in networks])
        return dataclasses.replace(states, optimizer=optimizer, opt_state=(opt_state[0], rates))

    def step(self, technique: Technique, how: Spread) -> "Step":
        """What a batch does to all networks and to the averages of their parameters."""
        if (technique, how) not in self._steps:
            self._steps[technique, how] = Step(technique.plan, how, self.averager.update)
        return self._steps[technique, how]

    def _trace_totals(self, params: Any, batches: list[tbptt.Batch], how: Spread) -> Any:
        look = dataclasses.replace(next(iter(self._states.values())), opt_state=None, rng=None)

        def one(params):
            state = dataclasses.replace(look, params=params)
            return list(evaluation.totals(state, batches, self.task.metrics))

        return spread(one, how)(params)

    def judge(
        self, params: Any, batches: list[tbptt.Batch], how: Spread
    ) -> tuple[np.ndarray, np.ndarray]:
        """The score and the loss of each network."""
        parts = self._totals(params, batches, how=how)
        sums = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        means = sums[:, :-1] / sums[:, -1:]
        names = ("loss", *self.task.metrics)
        scores = [self.task.score.of(dict(zip(names, row, strict=True))) for row in means]
        return np.array(scores), means[:, 0]


@dataclasses.dataclass
class Progress:
    """Where the training of M networks is, and what was measured so far; JSON.

    Attributes:
      epoch, batch: how many epochs are done, and batches of the one under way.
      best_rank: [2, M], of the best epoch of each network.
      best_score, best_epoch: [M], of that epoch.
      skipped: [M], updates that were not made, since they were not finite.
      scored, offered: weight of all losses that were scored, and of all there were.
      seconds: of all of it.
      per_update: seconds of an update, for each batch.
    """

    best_rank: list[list[float]]
    best_score: list[float]
    best_epoch: list[int]
    skipped: list[int]
    epoch: int = 0
    batch: int = 0
    scored: float = 0.0
    offered: float = 0.0
    seconds: float = 0.0
    per_update: list[float] = dataclasses.field(default_factory=list)


class _Together:
    """The training of some networks under way, and what of it is saved."""

    def __init__(
        self, owner: ManySeeds, technique: Technique, networks: Sequence[Network], how: Spread
    ):
        self._owner, self._technique = owner, technique
        self._how: Spread = how
        self._networks, count = networks, len(networks)
        self._step = owner.step(technique, how)
        self._states = owner.start(technique, networks)
        # Copied, since the states are donated.
        self._average = self._best = jax.tree.map(jnp.copy, self._states.params)
        self._averages = owner.averager.init(self._average)
        self._batches = owner.batches(technique, 0)
        batches = [*self._batches, *owner.valid]
        self.about = {
            **describe(owner.task, owner.recipe, technique, batches),
            "networks": [list(network) for network in networks],
            "how": how,
        }
        worst = [-math.inf] * count
        self.progress = Progress([worst, worst], [math.nan] * count, [0] * count, [0] * count)
        self._clock = time.perf_counter()

    def like(self) -> dict[str, Any]:
        """The structure of what `snapshot` gives after a batch."""
        states, *_ = self._step.shapes(self._states, self._averages, self._batches[0])
        return {**self.snapshot()[0], "states": states}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that this training is: arrays, and JSON."""
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now
        arrays = {
            "states": self._states,
            "average": self._average,
            "averages": self._averages,
            "best": self._best,
        }
        return arrays, dataclasses.asdict(self.progress)

    def go_on(self, saved: Saved) -> None:
        """Be what was saved."""
        self._states, self._average, self._averages, self._best = (
            saved.tree[name] for name in ("states", "average", "averages", "best")
        )
        self.progress = Progress(**saved.progress)

    def train_epoch(self, saving: Unsaved, show: Callable[[float], None]) -> None:
        """Train on the rest of an epoch."""
        progress, epochs = self.progress, self._owner.recipe.epochs
        if progress.epoch:
            self._batches = self._owner.batches(self._technique, progress.epoch)
        for batch in self._batches[progress.batch :]:
            self._states, self._averages, self._average, metrics, took = self._step(
                self._states, self._averages, batch
            )
            weights, finite = np.asarray(metrics.weight), np.asarray(metrics.finite)
            progress.batch += 1
            progress.per_update.append(took / max(1, np.count_nonzero(weights[0])))
            progress.scored += float(weights[0].sum())
            progress.offered += total_weight(batch)
            progress.skipped = (progress.skipped + (~finite).sum(1)).tolist()
            show((progress.epoch + progress.batch / len(self._batches)) / epochs)
            if not finite.all() and saving.on_nonfinite == "stop":
                network, window = np.argwhere(~finite)[0].tolist()
                saving.stop_nonfinite(
                    f"{self._technique.name}, epoch {progress.epoch + 1}, batch {progress.batch}, "
                    f"window {window + 1}: the loss or gradient of {self._networks[network]} is "
                    "not finite; it was not trained on",
                    self.snapshot,
                )
            saving.after_batch(self.snapshot)

    def end_epoch(self) -> None:
        """Judge what was learnt, and keep for each network what is its best."""
        progress, score_of = self.progress, self._owner.task.score
        score, loss = self._owner.judge(self._average, self._owner.valid, self._how)
        rank = np.stack([[score_of.rank(s) for s in score.tolist()], -loss])
        rank[:, np.isnan(rank).any(0)] = -np.inf
        best_rank = np.array(progress.best_rank)
        higher, equal = rank > best_rank, rank == best_rank
        better = higher[0] | (equal[0] & higher[1])
        self._best = _choose(better, self._average, self._best)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.best_rank = np.where(better, rank, best_rank).tolist()
        progress.best_score = np.where(better, score, progress.best_score).tolist()
        progress.best_epoch = np.where(better, progress.epoch, progress.best_epoch).tolist()

    def outcome(self) -> Outcome:
        """What it came to."""
        _, progress = self.snapshot()
        return Outcome(
            valid=np.array(progress["best_score"]),
            test=self._owner.judge(self._best, self._owner.test, self._how)[0],
            epochs=np.array(progress["best_epoch"]),
            updates=np.asarray(self._states.step),
            skipped=np.array(progress["skipped"]),
            seconds=progress["seconds"],
            seconds_per_update=statistics.median(progress["per_update"]),
            scored=progress["scored"] / progress["offered"],
        )


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    """The new parameters of the networks that are better, the old ones of the others."""

    def choose(a, b):
        return jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
