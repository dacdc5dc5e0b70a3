"""What a grid search found: a table of the plane, its best plan, and heat maps."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
from scipy import special

import tbptt_jax as tbptt
from experiments import figures
from experiments.figures import HeatMap
from experiments.plane import MOST_WORK, Plane
from experiments.run import RunFolder
from experiments.tasks import Task

K = TypeVar("K")
Row: TypeAlias = dict[str, Any]
Cells: TypeAlias = dict[tbptt.Truncation, Row]

CONFIDENCE = 0.95
# What a mark in the figure says of a plan.
SAID = dict(zip(("best", "no worse", "better"), figures.MARKS, strict=True))
NOTES = """
Each plan at the learning rate of its best mean validation score. 95% interval: of the mean, by
Student's t over the seeds. Better, no worse, worse: where zero lies to the interval of the mean
difference to the best plan on test, taken seed by seed (Student's t, 95%, not corrected for the
number of plans). scored: share of the losses; with k2 < k1 and anchor "update" the others give no
gradient. ms: of an update, a network's share of the call that trains all of them."""


def half_width(values: np.ndarray) -> float:
    """Of Student's confidence interval of the mean, to either side; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile * np.std(values, ddof=1)) / math.sqrt(len(values))


def best_of(task: Task, scores: Mapping[K, np.ndarray]) -> K:
    """Which has the best mean score; NaN is the worst."""

    def rank(key: K) -> float:
        mean = task.score.rank(float(scores[key].mean()))
        return -math.inf if math.isnan(mean) else mean

    return max(scores, key=rank)


def verdict(task: Task, scores: np.ndarray, best: np.ndarray) -> str:
    """Whether scores by seed are "better" than those of the best plan, "no worse", or "worse".

    It depends on which side of zero the confidence interval of the mean difference lies.
    """
    differences = (1 if task.score.higher else -1) * (scores - best)
    mean, half = differences.mean(), half_width(differences)
    if math.isnan(half):
        return ""
    return "no worse" if abs(mean) <= half else "better" if mean > 0 else "worse"


def make_cells(task: Task, plane: Plane, rows: list[Row]) -> Cells:
    """For each plan that was run, its results at its best learning rate, as in result.json."""
    nets: dict[tuple[Any, ...], dict[float, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (row["learning_rate"], row["seed"])):
        by_rate = nets.setdefault((row["k1"], row["k2"], row["anchor"]), {})
        by_rate.setdefault(row["learning_rate"], []).append(row)

    def scores(part: str, rows: list[Row]) -> np.ndarray:
        return np.array([row[f"{part}_score"] for row in rows])

    chosen: dict[tbptt.Truncation, list[Row]] = {}
    for plan in plane.runs:
        by_rate = nets[plan.k1, plan.k2, plan.anchor]
        chosen[plan] = by_rate[best_of(task, {r: scores("valid", n) for r, n in by_rate.items()})]
    best = best_of(task, {plan: scores("valid", mine) for plan, mine in chosen.items()})
    best_scores, cells = scores("test", chosen[best]), {}
    for plan, mine in chosen.items():
        test = scores("test", mine)
        half = half_width(test)
        cells[plan] = {
            **{name: getattr(plan, name) for name in ("k1", "k2", "anchor")},
            "learning_rate": mine[0]["learning_rate"],
            "valid_mean": float(scores("valid", mine).mean()),
            "test_mean": float(test.mean()),
            "test_half_width": None if math.isnan(half) else half,
            "against_best": "best" if plan == best else verdict(task, test, best_scores),
            "updates": mine[0]["updates"],
            "scored": mine[0]["scored"],
            "milliseconds_per_update": 1000
            * statistics.fmean(row["seconds_per_update"] for row in mine),
        }
    return cells


def around(task: Task, cell: Row) -> str:
    """The interval of a cell's test score, in words; nothing for a single network."""
    mean, half = cell["test_mean"], cell["test_half_width"]
    return "" if half is None else " to ".join(map(task.score.write, (mean - half, mean + half)))


def table(task: Task, plane: Plane, cells: Cells) -> str:
    """A row for each plan that was run."""
    write, rows = task.score.write, []
    for plan in sorted(cells, key=lambda p: (p.anchor != "update", p.k1, p.k2)):
        cell = cells[plan]
        twins = [p.anchor for p, run in plane.same.items() if run == plan and p != plan]
        scores = write(cell["valid_mean"]), write(cell["test_mean"]), around(task, cell)
        costs = f"{cell['updates']:,}", f"{cell['scored']:.0%}"
        rows.append(
            [
                " = ".join([plan.anchor, *twins]),
                *(plan.k1, plan.k2, f"{cell['learning_rate']:g}", *scores, cell["against_best"]),
                *(*costs, f"{cell['milliseconds_per_update']:.3g}"),
            ]
        )
    head = ["anchor", "k1", "k2", "learning rate", "validation", "test", "95% interval"]
    return figures.table([*head, "against the best", "updates", "scored", "ms"], rows)


def heat_maps(task: Task, plane: Plane, cells: Cells) -> list[list[HeatMap]]:
    """The plane of each anchor: above the mean score on test, below the time of an update."""
    x, y = f"k1 ({task.step}s between updates)", f"k2 ({task.step}s of gradient)"
    columns, lines = ({i: str(k) for i, k in enumerate(ks)} for ks in (plane.k1, plane.k2))
    kinds: list[tuple[str, str, Callable[[float], str]]] = [
        (f"test {task.score.name}", "test_mean", task.score.write),
        ("ms for an update", "milliseconds_per_update", "{:.3g}".format),
    ]
    maps: list[list[HeatMap]] = [[], []]
    for row, (what, name, write) in zip(maps, kinds, strict=True):
        for anchor in plane.anchors:
            values, marks = np.full((len(plane.k2), len(plane.k1)), math.nan), []
            texts = np.full(values.shape, "too long", object)
            for plan, run in plane.same.items():
                if plan.anchor == anchor:
                    place = plane.k2.index(plan.k2), plane.k1.index(plan.k1)
                    values[place], found = cells[run][name], cells[run]["against_best"]
                    texts[place] = write(values[place])
                    if row is maps[0] and found in SAID:
                        marks.append((*place, SAID[found]))
            title = f'anchor="{anchor}": {what}'
            row.append(HeatMap(title, values, x, y, columns, lines, texts, marks, what))
    return maps


def publish(
    run: RunFolder,
    task: Task,
    epochs: int,
    plane: Plane,
    rows: list[Row],
    spreads: dict[str, Any],
) -> None:
    """Print, draw and save what was found."""
    cells = make_cells(task, plane, rows)
    (best,) = (cell for cell in cells.values() if cell["against_best"] == "best")
    pairs = [pair for pair in plane.same.items() if pair[0] != pair[1]]
    run.write_result(
        {
            "best": best,
            "cells": list(cells.values()),
            "same": [[dataclasses.asdict(plan) for plan in pair] for pair in pairs],
            "left_out": [dataclasses.asdict(plan) for plan in plane.left_out],
            "epochs": epochs,
            "spread": spreads,
            "seconds": sum(row["seconds"] for row in rows),
        }
    )
    networks = len({row["seed"] for row in rows})
    title = f"{task.name}, mean of {networks} networks"
    if plane.left_out:
        title += f"; too long: a pass takes over {MOST_WORK} of full BPTT"
    scales = ["high" if task.score.higher else "low", "low"]
    maps, size = heat_maps(task, plane, cells), (1.6 + 3.4 * len(plane.anchors), 6)
    run.write_figure("plane.png", figures.heat_maps(maps, scales, title, size))
    verdicts = [cell["against_best"] for cell in cells.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("better", "no worse", "worse"))
    interval = f", 95% interval {near}" if (near := around(task, best)) else ""
    print(
        f"\n{task.name}: {task.score.name}, mean of {networks} networks, {epochs} passes:\n\n"
        f"{table(task, plane, cells)}\n{NOTES}\n\n"
        f"best on validation: k1={best['k1']}, k2={best['k2']}, "
        f'anchor="{best["anchor"]}" at learning rate {best["learning_rate"]:g}: '
        f"test {task.score.name} {task.score.write(best['test_mean'])}{interval}; "
        f"of {len(cells) - 1} others {counts}"
    )
    if plane.left_out:
        names = ", ".join(f"({p.k1}, {p.k2}, {p.anchor})" for p in plane.left_out)
        print(f"left out, since they take long: {names}; give --k1 and --k2 to run them")
    print(f"\nsaved in {run.path}: plane.png, result.json and rows.jsonl")
