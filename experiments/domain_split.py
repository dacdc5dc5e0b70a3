"""Can the data suggest how long a window should be?

python -m experiments.domain_split --task=demand

Windows as long as the data suggest, against a sweep of lengths. A series suggests the order that
its PACF shows and the period of its ACF. Reviews suggest sentences, each padded to windows of the
average sentence's length, so that a window starts and a loss stands where a sentence does. The
sweep cuts wherever a length falls.
"""

import dataclasses
from typing import Literal

import numpy as np

from experiments import command, compare, figures
from experiments.compare import Budget, Result
from experiments.config import flag
from experiments.figures import Curve, Panel
from experiments.run import RunFolder
from experiments.tasks import Task, reviews, series
from experiments.tasks.task import Part
from experiments.technique import Technique
from tbptt_jax import Batch, Truncation, data

SERIES = {"demand": series.demand, "sunspots": series.sunspots}
SWEEP = (2, 5, 10, 20, 50, 100, 200, 500)
RULES: dict[str, Literal["order", "period"]] = {"PACF": "order", "ACF": "period"}
AT_SENTENCES = "at sentences"


@dataclasses.dataclass(frozen=True)
class Config(Budget):
    """A comparison of lengths."""

    NAME = "domain_split"

    task: Literal["demand", "sunspots", "reviews"] = flag("demand", "What is to be learnt.")


def of_series(config: Config) -> tuple[list[tuple[Task, Technique]], list[Panel]]:
    """The sweep and the two suggestions, and what the suggestions were read from."""
    task, read = series.load(SERIES[config.task], config.fast), SERIES[config.task]()
    training = read.values[: read.train]
    suggestions = {name: data.suggest_steps(training, rule=rule) for name, rule in RULES.items()}
    for name, found in suggestions.items():
        print(f"{name} suggests {found.why}")
    print(f"the persistence baseline has an error of {series.persistence(task):.4f}")
    suggested = {found.steps: f", by the {name}" for name, found in suggestions.items()}
    sweep = (2, 20) if config.fast else SWEEP
    lengths = sorted({k for k in sweep if k < task.length} | set(suggested) | {task.length})
    jobs = [(task, Technique(f"{k}{suggested.get(k, '')}", Truncation(k, k))) for k in lengths]
    return jobs, [correlations(task, name, found) for name, found in suggestions.items()]


def correlations(task: Task, name: str, found: data.Suggestion) -> Panel:
    """The PACF or the ACF with its band."""
    pair = (found.pacf, found.pacf_band) if name == "PACF" else (found.acf, found.acf_band)
    values, band = (array[1:] for array in pair)
    lags = np.arange(1, 1 + len(values))
    bands, lines = (
        [Curve("95% band", lags, [-band, band])],
        {f"suggested: {found.steps}": found.steps},
    )
    x, y = f"lag ({task.step}s)", f"{name}, 95% band"
    return Panel(x, y, bands, bars=(lags, values), lines=lines)


def of_reviews(config: Config) -> tuple[list[tuple[Task, Technique]], list[Panel]]:
    """The sweep, windows that are sentences, and whole texts."""
    chosen = reviews.config(config.fast)
    parts, vocabulary = reviews.load_texts(chosen)
    task, texts = reviews.make_task(chosen, parts, len(vocabulary)), parts["train"]
    stops = vocabulary.encode([".", "!", "?"], 3)
    ends = [sentence_ends(ids, stops) for ids in texts.texts]
    steps = data.sentence_steps(ends)
    print(f"sentences suggest {steps} words, their average length")
    lengths = sorted((*((5, 15) if config.fast else (5, 10, 30, 60, 120)), steps))
    cut = at_sentences(task, texts, ends, steps, chosen.batch_size)
    return [
        *((task, Technique(f"{k}", Truncation(k, k), every=k)) for k in lengths),
        (cut, Technique(f"{steps}, {AT_SENTENCES}", Truncation(steps, steps), every=steps)),
        (task, Technique("whole", Truncation(task.length, task.length))),
    ], []


def sentence_ends(ids: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Where sentences end, bool [T]: at the last of neighbouring full stops and the like."""
    ends = np.isin(ids, stops)
    ends[:-1] &= ~ends[1:]
    return ends


def at_sentences(
    task: Task, texts: reviews.Texts, ends: list[np.ndarray], steps: int, batch_size: int
) -> Task:
    """The task with every training sentence in windows of its own."""
    placed = [
        data.sentence_windows([ids], [ids], [end], steps=steps).inputs[0]
        for ids, end in zip(texts.texts, ends, strict=True)
    ]

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[Batch]:
        if part != "train":
            return task.batches(part, multiple, rng)
        sizes = {"batch_size": batch_size, "multiple": reviews.padding(multiple)}
        whole = data.bucketed_batches(placed, texts.labels, **sizes, rng=rng)
        # No word has the id 0, which fills the gaps.
        return [batch._replace(mask=batch.inputs != 0) for batch in whole]

    return task._replace(batches=batches)


def panel(task: Task, results: list[Result]) -> Panel:
    """The test score by the length of the windows; suggestions stand out."""
    whole = [r for r in results if "whole" in r.technique]
    swept = [r for r in results if r not in whole and AT_SENTENCES not in r.technique]
    scores = np.array([r.test for r in swept]).T
    curves = [Curve("TBPTT(k, k)", [r.plan["k1"] for r in swept], scores)]
    for r in results:
        if "," in r.technique or r in whole:
            name = "full BPTT" if r in whole else r.technique
            curves.append(Curve(name, [r.plan["k1"]], np.array([r.test]).T, line=False))
    ticks = {r.plan["k1"]: str(r.plan["k1"]) for r in results if "," not in r.technique}
    axes = f"k1 = k2 ({task.step}s)", f"test {task.score.axis}"
    return Panel(*axes, curves, log="x", percent=task.score.percent, ticks=ticks)


def main(config: Config) -> None:
    """Read what the data suggest, and train with it and with the sweep."""
    jobs, read = (of_reviews if config.task == "reviews" else of_series)(config)
    with RunFolder.create(config) as run:
        if read:
            run.write_figure("suggestion.png", figures.curves(read, rows=2, size=(7, 4.4)))
        results, task = compare.compare(config, run, jobs), jobs[0][0]
        figure = figures.curves([panel(task, results)], compare.describe(config, task), size=(7, 4))
        run.write_figure("domain_split.png", figure)
    drawn = "domain_split.png" + (", suggestion.png" if read else "")
    print(f"\nsaved in {run.path}: {drawn} and result.json")


if __name__ == "__main__":
    command.run(Config, main)
