"""Many networks trained side by side by one plan: of other seeds, at other learning rates.

Each is trained as `driver.fit` trains it, but that the data come in one order for all of them, that
of the recipe's seed.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt_jax as tbptt
from experiments import driver
from experiments.driver import Recipe, Technique
from experiments.tasks import Task
from tbptt_jax import evaluation
from tbptt_jax.windows import batch_shape

# One compiled call in either case: every operation for all networks, or network after network.
Spread: TypeAlias = Literal["together", "in turn"]


class Network(NamedTuple):
    """What tells a network from the others; the seed is of its weights and its dropout."""

    learning_rate: float
    seed: int


class Outcome(NamedTuple):
    """What the training of M networks came to.

    Attributes:
      valid, test: [M], scores with the averaged parameters of the epoch best on validation.
      epochs: [M], that epoch.
      updates: of each network.
      seconds: of all networks, with what was compiled for them, and judging.
      seconds_per_update: of one network, without compiling.
      scored: share of the losses that was scored.
    """

    valid: np.ndarray
    test: np.ndarray
    epochs: np.ndarray
    updates: int
    seconds: float
    seconds_per_update: float
    scored: float


def spread(function: Callable[[Any], Any], how: Spread) -> Callable[[Any], Any]:
    """The function over the leading axis of its argument."""
    return jax.vmap(function) if how == "together" else functools.partial(jax.lax.map, function)


@functools.cache
def make_optimizer(clip: float, updates: int) -> optax.GradientTransformation:
    """The driver's, with the learning rate in its state: what is compiled serves all rates."""
    unit = driver.make_optimizer(1.0, clip, updates)

    def init(params):
        return unit.init(params), jnp.ones(())

    def update(updates, state, params=None):
        inner, rate = state
        updates, inner = unit.update(updates, inner, params)
        return jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates), (inner, rate)

    return optax.GradientTransformation(init, update)


class ManySeeds:
    """The networks of a task; each call says which of them, and by what plan."""

    def __init__(self, task: Task, recipe: Recipe, seeds: Sequence[int]):
        """Make a network for every seed; the recipe's own learning rate is not used."""
        self._task, self._recipe = task, recipe
        self._states = {
            seed: driver.make_state(task, dataclasses.replace(recipe, seed=seed)) for seed in seeds
        }
        self._valid, self._test = task.batches("valid", 1, None), task.batches("test", 1, None)
        self._averager = optax.ema(recipe.averaging)
        self._steps: dict[tuple[Technique, Spread], Callable[..., Any]] = {}
        self._totals = jax.jit(self._trace_totals, static_argnames="how")

    def fit(
        self,
        technique: Technique,
        networks: Sequence[Network],
        how: Spread,
        go_on: Callable[[float], bool] = lambda done: True,
    ) -> Outcome | None:
        """Train and judge.

        `go_on` is told after every batch what share of the training is done; when it says no, the
        training ends and is worth nothing: None.
        """
        begun = time.perf_counter()
        task, epochs, count = self._task, self._recipe.epochs, len(networks)
        states, step = self._start(technique, networks), self._step(technique, how)
        averages = self._averager.init(states.params)
        best: Any = None
        best_rank = np.full((2, count), -np.inf)
        best_score, best_epoch = np.full(count, np.nan), np.zeros(count, int)
        scored, weight = 0.0, 0.0
        seconds: list[float] = []
        for epoch in range(epochs):
            average, batches = None, self._batches(technique, epoch)
            for i, batch in enumerate(batches):
                states, averages, average, weights, took = step(states, averages, batch)
                seconds.append(took / max(1, np.count_nonzero(np.asarray(weights))))
                scored += float(weights[0].sum())
                weight += driver.total_weight(batch)
                if not go_on((epoch + (i + 1) / len(batches)) / epochs):
                    return None
            score, loss = self._judge(average, self._valid, how)
            rank = np.stack([[task.score.rank(s) for s in score.tolist()], -loss])
            rank[:, np.isnan(rank).any(0)] = -np.inf
            higher, equal = rank > best_rank, rank == best_rank
            better = higher[0] | (equal[0] & higher[1])
            best = average if best is None else _choose(better, average, best)
            best_rank = np.where(better, rank, best_rank)
            best_score = np.where(better, score, best_score)
            best_epoch = np.where(better, epoch + 1, best_epoch)
        return Outcome(
            valid=best_score,
            test=self._judge(best, self._test, how)[0],
            epochs=best_epoch,
            updates=int(states.step[0]),
            seconds=time.perf_counter() - begun,
            seconds_per_update=statistics.median(seconds),
            scored=scored / weight,
        )

    def measure(
        self, technique: Technique, networks: Sequence[Network], calls: int = 3
    ) -> dict[Spread, float]:
        """Seconds that a batch takes all networks, spread in each way; the median of some calls."""
        batch = self._batches(technique, 0)[0]
        found: dict[Spread, float] = {}
        ways: tuple[Spread, ...] = ("together", "in turn")
        for how in ways:
            states, step = self._start(technique, networks), self._step(technique, how)
            averages, seconds = self._averager.init(states.params), []
            for _ in range(calls):
                states, averages, _, _, took = step(states, averages, batch)
                seconds.append(took)
            found[how] = statistics.median(seconds)
        return found

    def _batches(self, technique: Technique, epoch: int) -> list[tbptt.Batch]:
        rng = np.random.default_rng((self._recipe.seed, epoch))
        return technique.batches(self._task, "train", rng)

    def _start(self, technique: Technique, networks: Sequence[Network]) -> tbptt.TrainState:
        """The states of the networks, stacked."""
        count = driver.count_updates(technique.plan, self._batches(technique, 0))
        optimizer = make_optimizer(self._recipe.clip, self._recipe.epochs * count)
        chosen = [self._states[network.seed] for network in networks]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chosen)
        opt_state: Any = jax.vmap(optimizer.init)(states.params)
        rates = jnp.array([network.learning_rate for network in networks])
        return dataclasses.replace(states, optimizer=optimizer, opt_state=(opt_state[0], rates))

    def _step(self, technique: Technique, how: Spread) -> Callable[..., Any]:
        """What a batch does to all networks and to the averages of their parameters; timed."""
        if (technique, how) in self._steps:
            return self._steps[technique, how]

        def one(batch, state):
            state, metrics = tbptt.train_step(state, batch, technique.plan)
            if batch.reset is None:
                # As before the first batch, so that the second compiles nothing.
                state = dataclasses.replace(state, carry=None, lookback=None)
            return state, metrics.weight

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(states, averages, batch):
            states, weights = spread(functools.partial(one, batch), how)(states)
            average, averages = self._averager.update(states.params, averages)
            return states, averages, average, weights

        compiled: dict[Any, Any] = {}

        def run(states, averages, batch):
            key = states.step.shape, batch_shape(batch), jax.tree.structure((states.carry, batch))
            if key not in compiled:
                compiled[key] = step.lower(states, averages, batch).compile()
            called = time.perf_counter()
            result = jax.block_until_ready(compiled[key](states, averages, batch))
            return *result, time.perf_counter() - called

        self._steps[technique, how] = run
        return run

    def _trace_totals(self, params: Any, batches: list[tbptt.Batch], how: Spread) -> Any:
        look = dataclasses.replace(next(iter(self._states.values())), opt_state=None, rng=None)

        def one(params):
            state = dataclasses.replace(look, params=params)
            return list(evaluation.totals(state, batches, self._task.metrics))

        return spread(one, how)(params)

    def _judge(
        self, params: Any, batches: list[tbptt.Batch], how: Spread
    ) -> tuple[np.ndarray, np.ndarray]:
        """The score and the loss of each network."""
        parts = self._totals(params, batches, how=how)
        sums = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        means = sums[:, :-1] / sums[:, -1:]
        names = ("loss", *self._task.metrics)
        scores = [self._task.score.of(dict(zip(names, row, strict=True))) for row in means]
        return np.array(scores), means[:, 0]


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    """The new parameters of the networks that are better, the old ones of the others."""

    def choose(a, b):
        return jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
