"""The domain-specific split: windows as long as the data suggest, against a sweep of lengths.

python -m experiments.domain_split --task=demand

A series: the order that its PACF shows and the period of its ACF. Reviews: sentences, each padded
to windows of the average sentence's length, so that a window begins and a loss is asked where a
sentence does. The sweep cuts wherever a length falls.
"""

import dataclasses
from typing import Literal

import numpy as np
from absl import app

import tbptt_jax as tbptt
from experiments import common, comparison, run_folder
from experiments.common import flag
from experiments.comparison import Budget, Result
from experiments.run_folder import RunFolder
from experiments.tasks import Task, reviews, series
from experiments.tasks.task import Part
from experiments.technique import Technique
from tbptt_jax import data

NAME = "domain_split"
SERIES = {"demand": series.demand, "sunspots": series.sunspots}
SWEEP = (2, 5, 10, 20, 50, 100, 200, 500)
SHORT_SWEEP = (2, 20)
RULES: dict[str, Literal["order", "period"]] = {"PACF": "order", "ACF": "period"}


@dataclasses.dataclass(frozen=True)
class Config(Budget):
    """What a run is."""

    task: Literal["demand", "sunspots", "reviews"] = flag("demand", "What is to be learnt.")


def of_series(config: Config, run: RunFolder) -> tuple[Task, list[tuple[Task, Technique]]]:
    """The sweep and the two suggestions, with a figure of what they were read from."""
    task = common.load(series.load, SERIES[config.task], config.fast)
    read = SERIES[config.task]()
    suggestions = {
        name: data.suggest_steps(read.values[: read.train], rule=rule)
        for name, rule in RULES.items()
    }
    for name, found in suggestions.items():
        print(f"{name} suggests {found.why}")
    print(f"to say that the next value is the last one has an error of {persistence(read):.4f}")
    draw_suggestions(task, suggestions, run)
    suggested = {found.steps: f", by the {name}" for name, found in suggestions.items()}
    sweep = SHORT_SWEEP if config.fast else SWEEP
    lengths = sorted({k for k in sweep if k < task.length} | set(suggested) | {task.length})
    return task, [
        (task, Technique(f"{k}{suggested.get(k, '')}", tbptt.Truncation(k, k))) for k in lengths
    ]


def persistence(read: series.Series) -> float:
    """The mean squared error of the part for test when the last value is said once more."""
    values = read.values[read.valid - 1 :]
    return float(np.mean(np.square(np.diff(values))))


def draw_suggestions(task: Task, suggestions: dict[str, data.Suggestion], run: RunFolder) -> None:
    """The PACF and the ACF with their bands."""
    figure, axes = common.figure(2, 1, width=7, height=4.2)
    for ax, (name, found) in zip(axes, suggestions.items(), strict=True):
        values = found.pacf if name == "PACF" else found.acf
        band = found.pacf_band if name == "PACF" else found.acf_band
        lags = np.arange(1, len(values))
        ax.fill_between(lags, -band[1:], band[1:], color="0.88", zorder=0, label="95% band")
        ax.vlines(lags, 0, values[1:], linewidth=0.8)
        ax.axhline(0, color="0.5", linewidth=0.5)
        ax.axvline(found.steps, color="C1", linestyle="--", linewidth=1, label="suggested")
        ax.annotate(
            f"{found.steps}", (found.steps, 0.98), xytext=(3, 0), textcoords="offset points",
            xycoords=("data", "axes fraction"), color="C1", va="top",
        )  # fmt: skip
        ax.set(ylabel=name, xlim=(0, len(values)))
    axes[0].legend(frameon=False)
    axes[1].set(xlabel=f"lag ({task.step}s)")
    figure.savefig(run.path / "suggestion.png")


def of_reviews(config: Config) -> tuple[Task, list[tuple[Task, Technique]]]:
    """The sweep, and windows that are sentences."""
    chosen = reviews.config(config.fast)
    parts, vocabulary = common.load(reviews.load_texts, chosen)
    task, texts = reviews.make_task(chosen, parts, len(vocabulary)), parts["train"]
    stops = vocabulary.encode([".", "!", "?"], 3)
    ends = [sentence_ends(ids, stops) for ids in texts.ids]
    steps = data.sentence_steps(ends)
    print(f"sentences suggest {steps} words, their average length")
    sweep = (5, 15) if config.fast else (5, 10, 30, 60, 120)
    jobs = [(task, Technique(f"{k}", tbptt.Truncation(k, k), every=k)) for k in (*sweep, steps)]
    jobs.sort(key=lambda job: job[1].plan.k1)
    sentences = Technique(f"{steps}, at sentences", tbptt.Truncation(steps, steps), every=steps)
    whole = Technique("whole", tbptt.Truncation(task.length, task.length))
    return task, [
        *jobs,
        (at_sentences(task, texts, ends, steps, chosen.batch_size), sentences),
        (task, whole),
    ]


def sentence_ends(ids: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Where sentences end, bool [T]: at the last of what stands together of full stops and such."""
    ends = np.isin(ids, stops)
    ends[:-1] &= ~ends[1:]
    return ends


def at_sentences(
    task: Task, texts: reviews.Texts, ends: list[np.ndarray], steps: int, batch_size: int
) -> Task:
    """The task with every sentence in windows of its own while training."""
    placed = [
        data.sentence_windows([ids], [ids], [end], steps=steps).inputs[0]
        for ids, end in zip(texts.ids, ends, strict=True)
    ]

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        if part != "train":
            return task.batches(part, multiple, rng)
        whole = data.bucketed_batches(
            placed,
            texts.labels,
            batch_size=batch_size,
            multiple=reviews.padding(multiple),
            rng=rng,
        )
        # No word has the id 0, with which gaps are filled.
        return [batch._replace(mask=batch.inputs != 0) for batch in whole]

    return task._replace(batches=batches)


def draw(task: Task, results: list[Result], run: RunFolder, title: str) -> None:
    """The score by length; what was suggested stands out."""
    figure, axes = common.figure(1, 1, width=6, height=3.4)
    swept = [r for r in results if "," not in r.technique.name]
    lengths = [r.technique.plan.k1 for r in swept]
    axes.plot(
        lengths,
        [np.mean(r.test) for r in swept],
        "o-",
        color="0.5",
        markersize=4,
        label="sweep",
    )
    named = [r for r in results if "," in r.technique.name]
    for marker, result in zip(("C1s", "C2^"), named, strict=False):
        k1 = result.technique.plan.k1
        axes.plot([k1], [np.mean(result.test)], marker, label=result.technique.name, markersize=7)
    axes.set(xscale="log", xlabel=f"k1 = k2 ({task.step}s)", ylabel=f"test {task.score.name}")
    axes.set_xticks(lengths, lengths, rotation=45)
    axes.minorticks_off()
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(run.path / "domain_split.png")


def main(argv: list[str]) -> None:
    """Find what the data suggest, train with it and with the sweep, and tell."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME)
    run = RunFolder.create(config, NAME)
    task, jobs = of_reviews(config) if config.task == "reviews" else of_series(config, run)
    results = comparison.compare(config, run, jobs)
    draw(task, results, run, comparison.describe(config, task))
    figures = "domain_split.png" + ("" if config.task == "reviews" else ", suggestion.png")
    print(f"\nsaved in {run.path}: {figures} and result.json")


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
