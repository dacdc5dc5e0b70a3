"""Techniques side by side on one task: score, time, memory, and bias against full BPTT.

Every technique sees the same data as often, at the same learning rate. They differ in how many
updates they make, and in how far back their gradients reach.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optax
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import command, figures, trainer
from experiments.config import RunOptions, flag
from experiments.figures import Curve, Panel
from experiments.files import stop
from experiments.run import RunFolder, slug
from experiments.tasks import TASKS, Task
from experiments.technique import Recipe, Technique
from tbptt_jax.types import Params, batch_shape

PROBE_ROWS = 16
NO_TRAINING = optax.identity()  # one optimizer for all states: with another, all compiles anew
NOTES = """
MiB: what the compiled call of the longest batch needs beyond its arguments. bias and cosine:
the technique's gradient against full BPTT's with the same losses, at what it learnt.
updates/s and seconds: of the first network."""


@dataclasses.dataclass(frozen=True)
class Budget(RunOptions):
    """What every technique of a comparison gets."""

    epochs: int | None = flag(None, "Passes over the data; default: the task's own choice.", 1)
    learning_rate: float | None = flag(None, "Adam's; default: the task's own choice.", above=0)
    seeds: int = flag(1, "Networks of each kind.", 1)
    fast: bool = flag(False, "A small task and network, under 30 seconds in all.")


@dataclasses.dataclass(frozen=True)
class Config(Budget):
    """A comparison of techniques."""

    task: Literal["reviews", "digits", "book", "demand", "sunspots"] = flag(
        "reviews", "What is to be learnt."
    )
    steps: int | None = flag(None, "Steps of a window; default: the task's own choice.", 1)


class Result(NamedTuple):
    """The result of a technique, as result.json holds it."""

    technique: str  # as the next three, of the `Technique`
    plan: dict[str, Any]
    loss_every: int | None
    pieces: int | None
    test: list[float]  # the score on the test part, for each network
    histories: list[list[dict[str, Any]]]  # of each training, a row for each epoch
    updates_per_second: float  # of the first network, without the calls that compiled
    temporary_mebibytes: float  # of the compiled call of the longest batch
    scored: float  # share of the losses
    bias: list[dict[str, float]]  # for each network, a `tbptt.Bias` at what it learnt


def untrained(task: Task, params: Params) -> tbptt.TrainState:
    """A state with these parameters that no stream runs through."""
    state = tbptt.TrainState.create(task.network(0), NO_TRAINING, task.loss)
    return dataclasses.replace(state, params=params)


def longest(batches: list[tbptt.Batch]) -> tbptt.Batch:
    """The batch of the most steps."""
    return max(batches, key=lambda batch: batch_shape(batch)[1])


def bias(task: Task, technique: Technique, params: Params) -> tbptt.Bias:
    """Of the technique's gradient, resets included, against full BPTT with the same losses.

    It is measured on the first rows of the longest training batch.
    """
    state, batch = untrained(task, params), longest(task.batches("train", 1, None))
    rows = tbptt.Batch(*(None if x is None else x[:PROBE_ROWS] for x in batch))
    whole = technique._replace(pieces=None)
    (cut,), (full,) = (t.mark(task, [rows._replace(reset=None)]) for t in (technique, whole))
    length = batch_shape(full)[1]
    return tbptt.compare_gradients(
        [tbptt.gradient(state, cut, technique.plan)],
        tbptt.gradient(state, full, tbptt.Truncation(length, length)),
    )["all"]


def measure(run: RunFolder, task: Task, technique: Technique, recipes: list[Recipe]) -> Result:
    """Train a network for each recipe, and evaluate it."""
    name, test = slug(technique.name), task.batches("test", 1, None)
    found = [trainer.fit(task, r, technique, run.saving(f"{name}-{r.seed}")) for r in recipes]
    params, batch = [t.state.params for t in found], longest(technique.batches(task, "train", None))
    means = [tbptt.evaluate(untrained(task, p), test, task.metrics) for p in params]
    return Result(
        technique=technique.name,
        plan=dataclasses.asdict(technique.plan),
        loss_every=technique.every,
        pieces=technique.pieces,
        test=[task.score.of(m) for m in means],
        histories=[t.history for t in found],
        updates_per_second=found[0].updates_per_second,
        temporary_mebibytes=trainer.temporary_bytes(found[0].state, batch, technique.plan) / 2**20,
        scored=found[0].scored,
        bias=[bias(task, technique, p)._asdict() for p in params],
    )


def table(task: Task, results: list[Result]) -> str:
    """A row for each technique."""
    rows = []
    for r in results:
        last = r.histories[0][-1]
        speed = f"{last['updates']:,}", f"{r.updates_per_second:,.0f}", f"{last['seconds']:,.0f}"
        memory, scored = f"{r.temporary_mebibytes:,.1f}", f"{r.scored:.0%}"
        biases = (
            figures.mean_and_range([b[key] for b in r.bias], "{:.2f}".format)
            for key in ("relative", "cosine")
        )
        score = figures.mean_and_range(r.test, task.score.write)
        rows.append([r.technique, score, *speed, memory, scored, *biases])
    head = ["technique", f"test {task.score.name}", "updates", "updates/s", "seconds", "MiB"]
    return figures.table([*head, "losses scored", "bias", "cosine"], rows)


def panels(task: Task, results: list[Result]) -> list[Panel]:
    """The validation score of all networks, by passes and by seconds without compilation."""
    by_passes, by_seconds = [], []
    for r in results:
        scores = [[row["valid_score"] for row in history] for history in r.histories]
        first = r.histories[0]
        by_passes.append(Curve(r.technique, [row["epoch"] for row in first], scores))
        seconds = [row["updates"] / r.updates_per_second for row in first]
        by_seconds.append(Curve(r.technique, seconds, scores))
    y, log = f"validation {task.score.axis}", "" if task.score.higher else "y"
    return [
        Panel("passes over the data", y, by_passes, "", log, task.score.percent),
        Panel(
            "seconds, without compilation",
            y,
            by_seconds,
            log=log,
            percent=task.score.percent,
            from_zero=True,
        ),
    ]


def recipes(config: Budget, task: Task) -> list[Recipe]:
    """How the networks of each kind are trained, one for each seed."""
    epochs, rate = config.epochs or task.epochs, config.learning_rate or task.learning_rate
    return [Recipe(epochs, rate, task.averaging, seed=seed) for seed in range(config.seeds)]


def describe(config: Budget, task: Task) -> str:
    """The budget in words."""
    one = recipes(config, task)[0]
    passes = "1 pass" if one.epochs == 1 else f"{one.epochs} passes"
    several = f", mean and range of {config.seeds} networks" if config.seeds > 1 else ""
    return f"{task.name}, {passes}, learning rate {one.learning_rate:g}{several}"


def compare(config: Budget, run: RunFolder, jobs: list[tuple[Task, Technique]]) -> list[Result]:
    """Measure every technique on its task; save and print the results.

    The tasks differ at most in how their training part is cut.
    """
    results = [
        measure(run, task, technique, recipes(config, task))
        for task, technique in tqdm(jobs, "techniques", leave=False)
    ]
    run.write_result({"results": [r._asdict() for r in results]})
    task = jobs[0][0]
    print(f"\n{describe(config, task)}:\n\n{table(task, results)}\n{NOTES}")
    return results


def run(name: str, techniques: Callable[[Task, int], list[Technique]]) -> None:
    """Run the command of a name: compare the techniques for a task and the steps of a window."""

    def main(config: Config) -> None:
        task = TASKS[config.task](config.fast)
        steps = config.steps or task.steps
        if steps >= task.length:
            stop(
                f"--steps: expected fewer than the {task.length} {task.step}s of a sequence, which "
                f"is full BPTT, got {steps}"
            )
        with RunFolder.create(config) as run:
            results = compare(config, run, [(task, t) for t in techniques(task, steps)])
            drawn = figures.curves(panels(task, results), describe(config, task))
            run.write_figure("comparison.png", drawn)
        print(f"\nsaved in {run.path}: comparison.png and result.json")

    command.run(type("Config", (Config,), {"NAME": name}), main)
