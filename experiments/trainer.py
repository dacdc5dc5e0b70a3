"""The one training loop of the experiments: any task, any truncation, one network or many.

One network is trained "alone", by `tbptt.train_step`. Many have a leading axis [M] in every array
of their states, and one compiled call trains them on a batch: "together", every operation for all
of them, or "in turn". They see the data in one order, that of the recipe's seed.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import cluster, files
from experiments.progress import Bar
from experiments.saving import Saving
from experiments.tasks import networks
from experiments.tasks.task import Part, Task
from experiments.technique import (
    Recipe,
    Technique,
    count_updates,
    describe,
    existing_steps,
    weight_of_steps,
)
from tbptt_jax.training import evaluate
from tbptt_jax.types import Array, Params, batch_shape

Spread: TypeAlias = Literal["together", "in turn"]
How: TypeAlias = Literal["alone", "together", "in turn"]
Row: TypeAlias = dict[str, Any]


class Network(NamedTuple):
    """What differs between networks; the seed is of its weights and its dropout."""

    learning_rate: float
    seed: int


class Trained(NamedTuple):
    """A trained network.

    `state` has the averaged parameters of the epoch that was best on validation. That of all
    networks, [M, ...], if many were trained, and so the seconds and the rate.
    """

    state: tbptt.TrainState
    best: Row  # that epoch's row of the history
    history: list[Row]  # a row for each epoch
    seconds: float  # of training, compilation included
    updates_per_second: float  # without the calls that compiled; NaN where there were no others
    scored: float  # share of the losses that was scored


@dataclasses.dataclass
class Progress:
    """Where a training is in its data, and what was measured so far; JSON."""

    loss: list[float]  # [M], as the weight: sums over this epoch, of what was trained on
    weight: list[float]
    skipped: list[int]  # [M], non-finite updates of this epoch, which were not made
    histories: list[list[Row]]  # [M], a row for each epoch that is done
    epoch: int = 0  # how many are done
    batch: int = 0  # how many of the current epoch are done
    scored: float = 0.0  # weight of all losses that were scored
    offered: float = 0.0  # and of all there were
    seconds: float = 0.0  # of training
    first_seconds: float = 0.0  # of the calls that compiled
    first_updates: int = 0  # and the updates they made

    def add(self, metrics: tbptt.Metrics) -> None:
        """Count the updates of a batch; metrics are [M, updates]."""
        finite, weight = np.asarray(metrics.finite), np.asarray(metrics.weight, np.float64)
        loss = np.where(finite, metrics.loss, 0)
        self.loss = (self.loss + (loss * weight).sum(1)).tolist()
        self.weight = (self.weight + weight.sum(1, where=finite)).tolist()
        self.skipped = (self.skipped + np.sum(~finite, 1)).tolist()
        self.scored += float(weight[0].sum())

    def mean_loss(self, network: int) -> float:
        """Of this epoch so far; NaN where nothing was trained on."""
        weight = self.weight[network]
        return self.loss[network] / weight if weight else math.nan

    def end_epoch(self) -> None:
        """Start the next epoch."""
        count = len(self.histories)
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss, self.weight, self.skipped = [0.0] * count, [0.0] * count, [0] * count


@functools.cache
def make_optimizer(learning_rate: float, clip: float, updates: int) -> optax.GradientTransformation:
    """Adam; cached, since compiled code is found by its identity."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.cosine_decay_schedule(learning_rate, updates)),
    )


@functools.cache
def _optimizer_of_many(clip: float, updates: int) -> optax.GradientTransformation:
    """The same with the learning rate in its state: a compiled program serves all rates."""
    rate = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    return optax.chain(make_optimizer(1.0, clip, updates), rate)


@functools.cache
def _averager(decay: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Start and update the average of parameters; cached, as what is compiled for it is."""
    averager = optax.ema(decay)
    return averager.init, jax.jit(averager.update)


def _spread(function: Callable[[Any], Any], how: Spread) -> Callable[[Any], Any]:
    """The function over the leading axis of its argument."""
    return jax.vmap(function) if how == "together" else functools.partial(jax.lax.map, function)


@functools.cache
def _step(plan: tbptt.Truncation, how: How, mesh: Mesh | None) -> Callable[..., Any]:
    """A state and a batch to the next state and metrics; many networks over a mesh of devices."""

    def one(batch: tbptt.Batch, state: tbptt.TrainState) -> Any:
        state, metrics = tbptt.train_step(state, batch, plan)
        if batch.reset is None:
            # As before the first batch, so that the second compiles nothing.
            state = state.restart()
        return state, metrics

    if how == "alone":
        return functools.partial(tbptt.train_step, truncation=plan)

    def step(states: tbptt.TrainState, batch: tbptt.Batch) -> Any:
        return _spread(functools.partial(one, batch), how)(states)

    return jax.jit(_over(mesh, step, 2), donate_argnums=0)


def _over(mesh: Mesh | None, function: Callable[..., Any], results: int) -> Callable[..., Any]:
    """Run a function on each device, for the networks that the device holds.

    Its first argument is [M, ...] and is spread over the devices; all devices have the second. Of
    several results the first stays spread; every other, or a single one, is put on all devices.
    """
    if mesh is None:
        return function
    spread, everywhere = cluster.SPREAD, cluster.EVERYWHERE
    on_each = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(spread, everywhere),
        out_specs=spread,
        check_vma=False,
    )

    def call(*args: Any) -> Any:
        found = on_each(*args)
        here = NamedSharding(mesh, everywhere)
        if results == 1:
            return jax.lax.with_sharding_constraint(found, here)
        first, *others = found
        return first, *jax.lax.with_sharding_constraint(others, here)

    return call


def make_state(task: Task, recipe: Recipe, updates: int = 1) -> tbptt.TrainState:
    """The state of one network before training."""
    optimizer = make_optimizer(recipe.learning_rate, recipe.clip, updates)
    model = networks.build(functools.partial(task.network, recipe.seed))
    return tbptt.TrainState.create(model, optimizer, task.loss, seed=recipe.seed)


def fit(
    task: Task,
    recipe: Recipe,
    technique: Technique,
    saving: Saving,
    save_epoch: Callable[[list[Row], Params | None], None] | None = None,
) -> Trained:
    """Train one network; see `Trainer.fit`."""
    (trained,) = Trainer(task, recipe).fit(technique, saving, save_epoch=save_epoch)
    return trained


class Trainer:
    """The networks of a task, to be trained by one plan or another.

    Args:
      task, recipe: what is trained, and how.
      networks: each one's learning rate and seed, in place of the recipe's; None: the recipe's.
    """

    def __init__(self, task: Task, recipe: Recipe, networks: Sequence[Network] | None = None):
        self.task, self.recipe = task, recipe
        self.networks = networks or [Network(recipe.learning_rate, recipe.seed)]
        seeds = dict.fromkeys(network.seed for network in self.networks)
        self._states = {s: make_state(task, dataclasses.replace(recipe, seed=s)) for s in seeds}
        self.valid = task.batches("valid", 1, None)
        self._sums = jax.jit(self._trace_sums, static_argnames="how")

    def fit(
        self,
        technique: Technique,
        saving: Saving,
        how: How = "alone",
        save_epoch: Callable[[list[Row], Params | None], None] | None = None,
        show: Callable[[float], None] | None = None,
    ) -> list[Trained]:
        """Train, and keep the averaged parameters that were best on the validation part.

        A saved training resumes, and a finished one is only read.

        Args:
          technique: the truncation and the losses.
          saving: where and when it is saved.
          how: the networks are trained.
          save_epoch: is called after every epoch with the history, to whose last row it may add,
            and the averaged parameters if that epoch is the best so far; of the first network.
          show: is called after every batch with the share of the training that is done, in place
            of a progress bar.

        Returns:
          Each network's.
        """
        run = _Training(self, technique, how)
        with saving.running(run.about, run.like) as saved:
            if saved is not None:
                run.resume(saved)
            with Bar(run.total, self.task.step, show is not None or run.finished) as bar:
                while not run.finished:
                    run.train_epoch(saving, bar, show)
                    run.end_epoch(bar, saving, save_epoch)
                saving.finish(run.snapshot)
        return run.trained()

    def measure(self, technique: Technique, calls: int = 3) -> dict[Spread, float]:
        """Seconds that a batch takes all networks in each way: the median of some calls."""
        found: dict[Spread, float] = {}
        ways: tuple[Spread, ...] = ("together", "in turn")
        for how in ways:
            run = _Training(self, technique, how)
            seconds = [run.train_batch(run.batches[0])[1] for _ in range(1 + calls)]
            found[how] = statistics.median(seconds[1:])  # the first compiled
        return found

    def start(self, how: How, updates: int) -> tbptt.TrainState:
        """The state of the networks before training, [M, ...] unless alone."""
        clip, chosen = self.recipe.clip, [self._states[network.seed] for network in self.networks]
        if how == "alone":
            (state,), (network,) = chosen, self.networks
            optimizer = make_optimizer(network.learning_rate, clip, updates)
            start = optimizer.init(state.params)
            return dataclasses.replace(state, optimizer=optimizer, opt_state=start)
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chosen)
        optimizer = _optimizer_of_many(clip, updates)
        opt_state: Any = jax.vmap(optimizer.init)(states.params)
        adam, rate = opt_state
        dtype = rate.hyperparams["step_size"].dtype
        rates = jnp.array([network.learning_rate for network in self.networks], dtype)
        opt_state = adam, rate._replace(hyperparams={"step_size": rates})
        return dataclasses.replace(states, optimizer=optimizer, opt_state=opt_state)

    def validate(self, params: Params, how: How) -> list[Row]:
        """As `evaluate`, on the validation part; parameters are on all devices."""
        if how != "alone":
            return self.evaluate(params, self.valid, how)
        return self.evaluate(params, self._shared_valid, how)

    @functools.cached_property
    def _shared_valid(self) -> list[tbptt.Batch]:
        return [cluster.share(batch) for batch in self.valid]

    def evaluate(self, params: Params, batches: list[tbptt.Batch], how: How) -> list[Row]:
        """Loss and metrics of each network, as `tbptt.evaluate` returns them."""
        if how == "alone":
            (state,) = self._states.values()
            state = dataclasses.replace(state, params=params)
            return [tbptt.evaluate(state, batches, self.task.metrics)]
        means = evaluate.combine(self._sums(params, batches, how=how))
        names = ("loss", *self.task.metrics, "weight")
        return [dict(zip(names, row, strict=True)) for row in means.tolist()]

    def _trace_sums(self, params: Params, batches: list[tbptt.Batch], how: Spread) -> Any:
        look = dataclasses.replace(next(iter(self._states.values())), opt_state=None, rng=None)

        def sums(params: Params, batches: list[tbptt.Batch]) -> list[jax.Array]:
            def one(params: Params) -> list[jax.Array]:
                state = dataclasses.replace(look, params=params)
                return list(evaluate.partial_sums(state, batches, self.task.metrics))

            return _spread(one, how)(params)

        return _over(cluster.mesh(), sums, 1)(params, batches)

    def scores(self, trained: list[Trained], part: Part, how: How) -> list[float]:
        """The score of each trained network on a part."""
        batches = self.task.batches(part, 1, None)
        params = trained[0].state.params
        if how != "alone":
            params = cluster.place(params, cluster.SPREAD)
        found = self.evaluate(params, batches, how)
        return [self.task.score.of(means) for means in found]


class _Training:
    """A training that is running: the state, what is measured, and what of it is saved."""

    def __init__(self, trainer: Trainer, technique: Technique, how: How):
        task, recipe = trainer.task, trainer.recipe
        self._trainer, self._technique = trainer, technique
        self._how: How = how
        self._task, self._recipe, self._networks = task, recipe, trainer.networks
        self.batches = self._batches_of(0)
        self._steps = sum(existing_steps(batch) for batch in self.batches)
        self.total = recipe.epochs * self._steps
        self.about = {
            **describe(task, recipe, technique, [*self.batches, *trainer.valid]),
            "networks": [list(network) for network in trainer.networks],
            "how": how,
        }
        start = trainer.start(how, recipe.epochs * count_updates(technique.plan, self.batches))
        self._spec = cluster.EVERYWHERE if how == "alone" else cluster.SPREAD
        self._state = cluster.place(start, self._spec)
        self._step = _step(technique.plan, how, cluster.mesh())
        start_averages, self._average_of = _averager(recipe.averaging)
        # Copied, since the state is donated.
        self._average = jax.tree.map(jnp.copy, self._state.params)
        self._best, self._averages = self._average, start_averages(self._average)
        count = len(trainer.networks)
        histories: list[list[Row]] = [[] for _ in range(count)]
        self._progress = Progress([0.0] * count, [0.0] * count, [0] * count, histories)
        self._compiled: set[tuple[int, int]] = set()
        self._shown = time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self._progress.epoch == self._recipe.epochs

    def _batches_of(self, epoch: int) -> list[tbptt.Batch]:
        rng = np.random.default_rng((self._recipe.seed, epoch))
        return self._technique.batches(self._task, "train", rng)

    def like(self) -> dict[str, Any]:
        """The structure of `snapshot`'s arrays after a batch, when there is a carry."""
        if self._how == "alone":
            batch = cluster.share(self.batches[0])
            state = tbptt.state_after(self._state, batch, self._technique.plan)
        else:
            state, _ = jax.eval_shape(self._step, self._state, self.batches[0])
            state = cluster.placed(state, self._spec)
        return {**self.snapshot()[0], "state": state}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that this training is: arrays, and JSON."""
        arrays = {
            "state": self._state,
            "average": self._average,
            "averages": self._averages,
            "best": self._best,
        }
        return arrays, dataclasses.asdict(self._progress)

    def resume(self, saved: tbptt.Saved) -> None:
        """Restore what was saved."""
        self._state, self._average, self._averages, self._best = (
            saved.tree[name] for name in ("state", "average", "averages", "best")
        )
        self._progress = files.as_fields(Progress, saved.progress)
        if self._how == "alone" and not self.finished:
            tqdm.write(
                f"resuming after {int(self._state.step):,} updates: epoch "
                f"{self._progress.epoch + 1}, batch {self._progress.batch + 1}"
            )

    def train_epoch(self, saving: Saving, bar: Bar, show: Callable[[float], None] | None) -> None:
        """Train on the rest of an epoch."""
        progress = self._progress
        epoch = f"epoch {progress.epoch + 1}/{self._recipe.epochs}"
        if progress.epoch:
            self.batches = self._batches_of(progress.epoch)
        done = progress.epoch * self._steps
        done += sum(existing_steps(batch) for batch in self.batches[: progress.batch])
        bar.update(done - bar.n)
        shapes = {batch_shape(batch) for batch in self.batches}
        for batch in self.batches[progress.batch :]:
            if batch_shape(batch) not in self._compiled:
                bar.compiling(len(self._compiled) + 1, len(shapes))
            metrics, seconds = self.train_batch(batch)
            progress.batch += 1
            done += existing_steps(batch)
            bar.trained(done, seconds, epoch)
            if show is not None:
                show(done / self.total)
            elif self._how == "alone":
                self._show(bar, saving)
            if not np.all(metrics.finite):
                message = self._first_nonfinite(batch, metrics)
                if saving.on_nonfinite == "stop":
                    saving.stop_nonfinite(message, self.snapshot)
                if self._how == "alone":
                    tqdm.write(f"warning: {message}; {progress.skipped[0]} skipped in this epoch")
            saving.after_batch(self.snapshot)

    def train_batch(self, batch: tbptt.Batch) -> tuple[tbptt.Metrics, float]:
        """Train on a batch; the metrics, [M, updates], and the seconds it took."""
        progress, shape = self._progress, batch_shape(batch)
        started = time.perf_counter()
        shared = cluster.share(batch) if self._how == "alone" else batch
        self._state, metrics = self._step(self._state, shared)
        self._average, self._averages = self._average_of(self._state.params, self._averages)
        jax.block_until_ready(self._average)
        seconds = time.perf_counter() - started
        metrics = tbptt.Metrics(*(jnp.reshape(m, (len(self._networks), -1)) for m in metrics))
        progress.seconds += seconds
        if shape not in self._compiled:
            self._compiled.add(shape)
            progress.first_seconds += seconds
            progress.first_updates += int(np.sum(metrics.weight > 0))
        progress.add(metrics)
        progress.offered += float(weight_of_steps(batch).sum())
        return metrics, seconds

    def _first_nonfinite(self, batch: tbptt.Batch, metrics: tbptt.Metrics) -> str:
        """Where the first non-finite loss or gradient of a batch is."""
        progress, finite = self._progress, np.asarray(metrics.finite)
        network, window = np.argwhere(~finite)[0].tolist()
        loss, norm = (float(m[network, window]) for m in (metrics.loss, metrics.grad_norm))
        interval = tbptt.intervals(self._technique.plan, batch_shape(batch)[1])[window]
        made = (np.asarray(metrics.weight[network]) > 0) & finite[network]
        step = int(self._updates()[network]) - int(made[window:].sum())
        who = ""
        if self._how != "alone":
            rate, seed = self._networks[network]
            who = f"{self._technique.name}, learning rate {rate:g}, seed {seed}, "
        return (
            f"{who}epoch {progress.epoch + 1}, batch {progress.batch} of {len(self.batches)}, "
            f"window {window + 1}, {self._task.step}s {interval.start + 1} to {interval.end}, "
            f"after update {step:,}: the loss is {loss:g}, the norm of the gradient {norm:g}; it "
            "was not trained on"
        )

    def end_epoch(
        self,
        bar: Bar,
        saving: Saving,
        save_epoch: Callable[[list[Row], Params | None], None] | None,
    ) -> None:
        """Evaluate the averaged parameters, and keep each network's best."""
        progress, task, better = self._progress, self._task, []
        updates = self._updates()
        bar.set_description_str("validation")
        found = self._trainer.validate(self._average, self._how)
        for i, (means, history) in enumerate(zip(found, progress.histories, strict=True)):
            best = _best(task, history)
            row = {
                "epoch": progress.epoch + 1,
                "updates": int(updates[i]),
                "train_loss": progress.mean_loss(i),
                "valid_loss": means["loss"],
                "valid_score": task.score.of(means),
                "skipped": progress.skipped[i],
                "seconds": round(progress.seconds, 2),
            }
            history.append(row)
            better.append(best is None or _rank(task, row) > _rank(task, best))
        progress.end_epoch()
        if len(better) == 1:
            self._best = self._average if better[0] else self._best
        else:
            self._best = _choose(np.array(better), self._average, self._best)
        row = progress.histories[0][-1]
        names = "train_loss", "valid_loss", "valid_score"
        saving.log(row["updates"], {name: row[name] for name in names})
        valid = f"valid {task.score.write(row['valid_score'])}"
        bar.set_description_str(f"epoch {progress.epoch}/{self._recipe.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {row['train_loss']:.3f}, {valid}")
        if save_epoch is not None:
            save_epoch(progress.histories[0], cluster.fetch(self._average) if better[0] else None)

    def _updates(self) -> np.ndarray:
        """How many updates each network has made, [M]."""
        return np.ravel(cluster.fetch(self._state.step))

    def _show(self, bar: Bar, saving: Saving) -> None:
        """Show now and then how it stands: the loss, and the last score on the validation part."""
        if time.perf_counter() - self._shown < 2:
            return
        self._shown, task = time.perf_counter(), self._task
        history = self._progress.histories[0]
        last = f", valid {task.score.write(history[-1]['valid_score'])}" if history else ""
        loss = self._progress.mean_loss(0)
        bar.set_postfix_str(f"loss {loss:.3f}{last}")
        saving.log(int(self._state.step), {"loss": loss})

    def trained(self) -> list[Trained]:
        """The result, for each network."""
        progress, histories = self._progress, self._progress.histories
        state = dataclasses.replace(self._state, params=self._best)
        if cluster.mesh() is not None:  # what looks at it does so in each process alone
            state = cluster.fetch(state.restart())
        seconds = progress.seconds - progress.first_seconds
        updates = sum(history[-1]["updates"] for history in histories) - progress.first_updates
        rate = updates / seconds if updates > 0 else math.nan
        scored = progress.scored / progress.offered
        best = [_best(self._task, history) or {} for history in histories]
        return [
            Trained(state, row, history, progress.seconds, rate, scored)
            for row, history in zip(best, histories, strict=True)
        ]


def _best(task: Task, history: list[Row]) -> Row | None:
    """The best row so far, of equals the first."""
    return max(history, key=lambda row: _rank(task, row), default=None)


def _rank(task: Task, row: Row) -> tuple[float, float]:
    """What makes an epoch better: its score on the validation part, and then its loss there."""
    rank = task.score.rank(row["valid_score"]), -row["valid_loss"]
    return (-math.inf, -math.inf) if any(map(math.isnan, rank)) else rank


@jax.jit
def _choose(better: Array, new: Params, old: Params) -> Params:
    """The new parameters of the networks that are better, the old ones of the others."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def temporary_bytes(state: tbptt.TrainState, batch: Any, plan: tbptt.Truncation) -> int:
    """What a compiled `train_step` needs beyond its arguments and results; nothing is run."""
    analysis: Any = tbptt.lower(state, batch, plan).compile().memory_analysis()
    return analysis.temp_size_in_bytes
