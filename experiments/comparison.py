"""One technique against others on one task and one budget: what every comparison shares.

The budget is passes over the part for training: every technique sees the same data as often, at the
same learning rate. What differs is how many updates it makes of them, and how far back they see.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optax

import tbptt_jax as tbptt
from experiments import common, driver, run_folder
from experiments.common import RunOptions, flag
from experiments.driver import Trained
from experiments.run_folder import RunFolder, slug
from experiments.tasks import TASKS, Task
from experiments.technique import Recipe, Technique
from tbptt_jax.windows import batch_shape

PROBE_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Budget(RunOptions):
    """What every technique of a comparison is given."""

    epochs: int | None = flag(None, "Passes over the data; default: the task's own choice.", 1)
    learning_rate: float | None = flag(None, "Adam's; default: the task's own choice.", above=0)
    seeds: int = flag(1, "Networks of each kind.", 1)
    fast: bool = flag(False, "A small task and network, under 30 seconds in all.")


@dataclasses.dataclass(frozen=True)
class Config(Budget):
    """What a comparison of techniques is."""

    task: Literal["reviews", "digits", "book", "demand", "sunspots"] = flag(
        "reviews", "What is to be learnt."
    )
    steps: int | None = flag(None, "Steps of a window; default: the task's own choice.", 1)


class Result(NamedTuple):
    """What a technique came to.

    Attributes:
      trained: a training for each seed.
      test: the score on the part for test, for each seed.
      megabytes: what the compiled call of the longest batch needs beyond arguments and results.
      bias: of its gradient at what it learnt, against full BPTT with the same losses; first seed.
    """

    technique: Technique
    trained: list[Trained]
    test: list[float]
    megabytes: float
    bias: tbptt.Bias


@functools.cache
def _no_training() -> optax.GradientTransformation:
    """One optimizer for all states that are only looked at: a new one is compiled anew."""
    return optax.identity()


def look(task: Task, params: Any) -> tbptt.TrainState:
    """A state with these parameters that no stream runs through."""
    state = tbptt.TrainState.create(task.network(0), _no_training(), task.loss)
    return dataclasses.replace(state, params=params)


def probe(task: Task) -> tbptt.Batch:
    """The first rows of the longest batch for training."""
    longest = max(task.batches("train", 1, None), key=lambda batch: batch_shape(batch)[1])
    rows = [None if x is None else x[:PROBE_ROWS] for x in longest]
    return tbptt.Batch(*rows)._replace(reset=None)


def bias(task: Task, technique: Technique, params: Any) -> tbptt.Bias:
    """Of the technique's gradient, resets included, against full BPTT with the same losses."""
    state = look(task, params)
    whole = technique._replace(pieces=None)
    (cut,), (full,) = (t.mark(task, [probe(task)]) for t in (technique, whole))
    length = batch_shape(full)[1]
    return tbptt.compare_gradients(
        [tbptt.gradient(state, cut, technique.plan)],
        tbptt.gradient(state, full, tbptt.Truncation(length, length)),
    )["all"]


def measure(run: RunFolder, task: Task, technique: Technique, recipes: list[Recipe]) -> Result:
    """Train a network for each recipe, and judge it."""
    trained, scores = [], []
    test = task.batches("test", 1, None)
    for recipe in recipes:
        saving = run.saving(f"{slug(technique.name)}-{recipe.seed}")
        trained.append(driver.fit(task, recipe, technique, saving))
        params = trained[-1].state.params
        scores.append(task.score.of(tbptt.evaluate(look(task, params), test, task.metrics)))
    batches = technique.batches(task, "train", None)
    longest = max(batches, key=lambda batch: batch_shape(batch)[1])
    return Result(
        technique,
        trained,
        scores,
        driver.temporary_bytes(trained[0].state, longest, technique.plan) / 2**20,
        bias(task, technique, trained[0].state.params),
    )


def written(task: Task, scores: list[float]) -> str:
    """The mean, and the range where there are several."""
    text = task.score.write(statistics.fmean(scores))
    if len(scores) == 1:
        return text
    return f"{text} ({task.score.write(min(scores))} to {task.score.write(max(scores))})"


def table(task: Task, results: list[Result]) -> str:
    """A row for each technique."""
    rows = [
        [
            r.technique.name,
            written(task, r.test),
            f"{r.trained[0].history[-1]['updates']:,}",
            f"{r.trained[0].updates_per_second:,.0f}",
            f"{r.trained[0].history[-1]['seconds']:,.0f}",
            f"{r.megabytes:,.1f}",
            f"{r.trained[0].scored:.0%}",
            f"{r.bias.relative:.2f}",
            f"{r.bias.cosine:.2f}",
        ]
        for r in results
    ]
    head = ["technique", f"test {task.score.name}", "updates", "updates/s", "seconds", "MiB"]
    return common.table([*head, "losses scored", "bias", "cosine"], rows)


def record(result: Result) -> dict[str, Any]:
    """What is kept of a result."""
    technique = result.technique
    return {
        "technique": technique.name,
        "plan": dataclasses.asdict(technique.plan),
        "loss_every": technique.every,
        "pieces": technique.pieces,
        "test": result.test,
        "histories": [t.history for t in result.trained],
        "updates_per_second": result.trained[0].updates_per_second,
        "temporary_mebibytes": result.megabytes,
        "scored": result.trained[0].scored,
        "bias": result.bias._asdict(),
    }


def draw(task: Task, results: list[Result], run: RunFolder, title: str) -> None:
    """The score on validation by passes and by seconds, first seed."""
    figure, axes = common.figure(1, 2, width=8, height=3.2)
    styles = ("C0o-", "C1s--", "C2^-.", "C3v:", "C4D-", "C5P--", "C6X-.")
    for style, result in zip(styles, results, strict=False):
        history = result.trained[0].history
        scores = [row["valid_score"] for row in history]
        options = {"markersize": 3, "linewidth": 1, "markevery": max(1, len(scores) // 10)}
        seconds = [row["seconds"] for row in history]
        axes[0].plot([row["epoch"] for row in history], scores, style, **options)
        axes[1].plot(seconds, scores, style, label=result.technique.name, **options)
    axes[0].set(xlabel="passes over the data", ylabel=f"validation {task.score.name}")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set(xlabel="seconds of training")
    if not task.score.higher:
        axes[0].set_yscale("log")
        axes[1].set_yscale("log")
    axes[1].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(run.path / "comparison.png")


def recipes(config: Budget, task: Task) -> list[Recipe]:
    """How the networks of each kind are trained, one for each seed."""
    given = config.learning_rate
    rate = task.learning_rate if given is None else given
    one = Recipe(config.epochs or task.epochs, rate, task.averaging)
    return [dataclasses.replace(one, seed=seed) for seed in range(config.seeds)]


def describe(config: Budget, task: Task) -> str:
    """The budget in words."""
    one = recipes(config, task)[0]
    passes = "1 pass" if one.epochs == 1 else f"{one.epochs} passes"
    return f"{task.name}, {passes}, learning rate {one.learning_rate:g}"


def compare(config: Budget, run: RunFolder, jobs: list[tuple[Task, Technique]]) -> list[Result]:
    """Measure every technique on its task; keep and print what came out.

    The tasks differ at most in how their part for training is cut.
    """
    results: list[Result] = []
    for task, technique in common.progress(jobs, "techniques"):
        results.append(measure(run, task, technique, recipes(config, task)))
    run.write_json(
        "result.json",
        {"results": [record(r) for r in results], "versions": common.versions()},
    )
    task = jobs[0][0]
    several = f", mean and range of {config.seeds} networks" if config.seeds > 1 else ""
    print(f"\n{describe(config, task)}{several}:\n")
    print(table(task, results))
    print(
        "\nMiB: what the compiled call of the longest batch needs beyond its arguments. bias and "
        "cosine:\nthe technique's gradient against full BPTT's with the same losses, at what it "
        "learnt."
    )
    return results


def main(name: str, techniques: Callable[[Task, int], list[Technique]]) -> None:
    """Compare the techniques that `(task, steps)` gives, and tell."""
    config = run_folder.configure(Config, name)
    task = common.load(TASKS[config.task], config.fast)
    steps = config.steps or task.steps
    if steps >= task.length:
        common.stop(
            f"--steps: expected fewer than the {task.length} {task.step}s of a sequence, which is "
            f"full BPTT, got {steps}"
        )
    run = RunFolder.create(config, name)
    results = compare(config, run, [(task, t) for t in techniques(task, steps)])
    draw(task, results, run, describe(config, task))
    print(f"\nsaved in {run.path}: comparison.png and result.json")
