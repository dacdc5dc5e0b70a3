"""What a grid search found: a table of the plane, its best plan, and heat maps."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

import tbptt_jax as tbptt
from experiments import common
from experiments.plane import Plane
from experiments.run_folder import RunFolder
from experiments.tasks import Task

CONFIDENCE = 0.95
MARKERS = {"best": ("*", 60), "no worse": ("o", 14), "better": ("^", 20)}
NOTES = """
Each plan at the learning rate of its best mean validation score. 95% interval: of the mean, by
Student's t over the seeds. Better, no worse, worse: where zero lies to the interval of the mean
difference to the best plan on test, taken seed by seed (Student's t, 95%, not corrected for the
number of plans). scored: share of the losses; with k2 < k1 and anchor "update" the others give no
gradient. ms: of an update, a network's share of the call that trains all of them."""


class Interval(NamedTuple):
    """A mean and its confidence interval, mean - half to mean + half; NaN for a single value."""

    mean: float
    half: float


class Cell(NamedTuple):
    """A plan at its best learning rate.

    Attributes:
      rate: the learning rate of the best mean score on validation.
      valid, test: scores by seed, in ascending order of the seeds.
      updates: of a network.
      milliseconds: of an update of one network.
      scored: share of the losses that was scored.
    """

    plan: tbptt.Truncation
    rate: float
    valid: np.ndarray
    test: np.ndarray
    updates: int
    milliseconds: float
    scored: float


def t_quantile(p: float, degrees: int) -> float:
    """Of Student's t, by adding up its density over the angle a where t = sqrt(degrees) tan a."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    density = np.abs(np.cos(angles)) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(float(np.interp(p, below / below[-1], angles)))


def interval(values: np.ndarray) -> Interval:
    """Student's confidence interval of the mean."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, t_quantile((1 + CONFIDENCE) / 2, count - 1) * error)


def written(task: Task, found: Interval) -> str:
    """From where to where; nothing for a single value."""
    if math.isnan(found.half):
        return ""
    low, high = found.mean - found.half, found.mean + found.half
    return f"{task.score.write(low)} to {task.score.write(high)}"


def best_of(task: Task, cells: Iterable[Cell]) -> Cell:
    """That of the best mean score on validation; one that is no number is the worst."""

    def rank(cell: Cell) -> float:
        mean = task.score.rank(float(cell.valid.mean()))
        return -math.inf if math.isnan(mean) else mean

    return max(cells, key=rank)


def make_cells(task: Task, plane: Plane, rows: list[dict[str, Any]]) -> list[Cell]:
    """A cell for each plan that was run."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        key = row["k1"], row["k2"], row["anchor"], row["learning_rate"]
        found.setdefault(key, []).append(row)
    rates = sorted({row["learning_rate"] for row in rows})

    def cell(plan: tbptt.Truncation, rate: float) -> Cell:
        mine = found[plan.k1, plan.k2, plan.anchor, rate]
        return Cell(
            plan,
            rate,
            np.array([row["valid_score"] for row in mine]),
            np.array([row["test_score"] for row in mine]),
            mine[0]["updates"],
            1000 * statistics.fmean(row["seconds_per_update"] for row in mine),
            mine[0]["scored"],
        )

    return [best_of(task, [cell(plan, rate) for rate in rates]) for plan in plane.runs]


def verdict(task: Task, cell: Cell, best: Cell) -> str:
    """Whether a plan's scores on test are "better" than the best one's, "no worse", or "worse".

    The differences to the best, seed by seed, have a mean; what counts is on which side of zero its
    confidence interval lies, or whether it holds zero.
    """
    if cell is best:
        return "best"
    sign = 1 if task.score.higher else -1
    mean, half = interval(sign * (cell.test - best.test))
    if math.isnan(half):
        return ""
    return "better" if mean - half > 0 else "worse" if mean + half < 0 else "no worse"


def table(task: Task, plane: Plane, cells: list[Cell], best: Cell) -> str:
    """A row for each plan that was run."""
    write, rows = task.score.write, []
    for cell in sorted(cells, key=lambda c: (c.plan.anchor != "update", c.plan.k1, c.plan.k2)):
        plan, test = cell.plan, interval(cell.test)
        twins = [p.anchor for p, run in plane.same.items() if run == plan and p != plan]
        rows.append(
            [
                " = ".join([plan.anchor, *twins]),
                plan.k1,
                plan.k2,
                f"{cell.rate:g}",
                write(float(cell.valid.mean())),
                write(test.mean),
                written(task, test),
                verdict(task, cell, best),
                f"{cell.updates:,}",
                f"{cell.scored:.0%}",
                f"{cell.milliseconds:.3g}",
            ]
        )
    head = ["anchor", "k1", "k2", "learning rate", "validation", "test", "95% interval"]
    return common.table([*head, "against the best", "updates", "scored", "ms"], rows)


def draw(run: RunFolder, task: Task, plane: Plane, cells: list[Cell], best: Cell) -> None:
    """Heat maps over the plane: above the mean score on test, below the time of an update."""
    by_run = {cell.plan: cell for cell in cells}
    shown = {plan: by_run[same] for plan, same in plane.same.items()}
    figure, axes = common.figure(2, len(plane.anchors), 1.6 + 3.4 * len(plane.anchors), 6)
    scores = {plan: float(cell.test.mean()) for plan, cell in shown.items()}
    times = {plan: cell.milliseconds for plan, cell in shown.items()}
    above, below = axes.reshape(2, -1)
    _heat_maps(above, plane, scores, task.score.write, task.score.higher)
    _heat_maps(below, plane, times, lambda ms: f"{ms:.3g}", False)
    for ax, anchor in zip(above, plane.anchors, strict=True):
        ax.set_title(f'anchor="{anchor}": test {task.score.name}', fontsize=9)
        for plan, cell in shown.items():
            found = verdict(task, cell, best)
            if plan.anchor == anchor and found in MARKERS:
                x, y = plane.k1.index(plan.k1) + 0.36, plane.k2.index(plan.k2) + 0.32
                marker, size = MARKERS[found]
                ax.scatter(x, y, marker=marker, s=size, color="C3", edgecolor="w", linewidth=0.5)
    for ax, anchor in zip(below, plane.anchors, strict=True):
        ax.set_title(f'anchor="{anchor}": ms for an update', fontsize=9)
        ax.set_xlabel(f"k1, {task.step}s between updates")
    for ax in axes.reshape(2, -1)[:, 0]:
        ax.set_ylabel(f"k2, {task.step}s of gradient")
    figure.suptitle(
        f"{task.name}, mean of {len(best.test)} networks "
        "(star: best on validation; on test, dot: no worse, triangle: better)",
        fontsize=9,
    )
    figure.savefig(run.path / "plane.png")


def _heat_maps(
    axes: Iterable[Any],
    plane: Plane,
    values: dict[tbptt.Truncation, float],
    write: Callable[[float], str],
    higher: bool,
) -> None:
    """A panel for each anchor, in colours that all of them share; what is better is lighter."""
    from matplotlib import colors

    finite = [v for v in values.values() if math.isfinite(v)]
    kind = colors.Normalize if higher else colors.LogNorm
    norm = kind(min(finite, default=1), max(finite, default=1))
    for ax, anchor in zip(axes, plane.anchors, strict=True):
        plans = [[tbptt.Truncation(a, b, anchor) for a in plane.k1] for b in plane.k2]
        grid = np.array([[values.get(plan, math.nan) for plan in row] for row in plans])
        colours = "viridis" if higher else "viridis_r"
        ax.imshow(grid, norm=norm, cmap=colours, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            run = plans[y][x] in values
            light = not math.isfinite(value) or (norm(value) > 0.5) == higher
            text = write(value) if run else "not run"
            ax.text(x, y, text, ha="center", va="center", color="k" if light else "w", fontsize=8)
        ax.set_xticks(range(len(plane.k1)), plane.k1)
        ax.set_yticks(range(len(plane.k2)), plane.k2)
        ax.spines[:].set_visible(False)


def record(task: Task, cell: Cell, best: Cell) -> dict[str, Any]:
    """What is kept of a cell."""
    test = interval(cell.test)
    return {
        "k1": cell.plan.k1,
        "k2": cell.plan.k2,
        "anchor": cell.plan.anchor,
        "learning_rate": cell.rate,
        "valid_mean": float(cell.valid.mean()),
        "test_mean": test.mean,
        "test_half_width": None if math.isnan(test.half) else test.half,
        "against_best": verdict(task, cell, best),
        "updates": cell.updates,
        "scored": cell.scored,
        "milliseconds_per_update": cell.milliseconds,
    }


def report(
    run: RunFolder,
    task: Task,
    epochs: int,
    plane: Plane,
    rows: list[dict[str, Any]],
    spreads: dict[str, Any],
) -> None:
    """Print and keep what was found."""
    cells = make_cells(task, plane, rows)
    best = best_of(task, cells)
    result = {
        "best": record(task, best, best),
        "cells": [record(task, cell, best) for cell in cells],
        "same": [
            [dataclasses.asdict(p) for p in pair]
            for pair in plane.same.items()
            if pair[0] != pair[1]
        ],
        "left_out": [dataclasses.asdict(plan) for plan in plane.left_out],
        "epochs": epochs,
        "spread": spreads,
        "seconds": sum(row["seconds"] for row in rows),
        "versions": common.versions(),
    }
    run.write_json("result.json", result)
    draw(run, task, plane, cells, best)
    networks = len(best.test)
    print(f"\n{task.name}: {task.score.name}, mean of {networks} networks, {epochs} passes:\n")
    print(table(task, plane, cells, best))
    print(NOTES)
    test = interval(best.test)
    around = "" if math.isnan(test.half) else f", 95% interval {written(task, test)}"
    verdicts = [verdict(task, cell, best) for cell in cells]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("better", "no worse", "worse"))
    print(
        f"\nbest on validation: k1={best.plan.k1}, k2={best.plan.k2}, "
        f'anchor="{best.plan.anchor}" at learning rate {best.rate:g}: test {task.score.name} '
        f"{task.score.write(test.mean)}{around}; of {len(cells) - 1} others {counts}"
    )
    if plane.left_out:
        names = ", ".join(f"({p.k1}, {p.k2}, {p.anchor})" for p in plane.left_out)
        print(f"left out, since they take long: {names}; give --k1 and --k2 to run them")
    print(f"\nsaved in {run.path}: plane.png, result.json and rows.jsonl")
