"""Which k1 and k2 are best, and by how much?

python -m experiments.grid_search --task=sunspots

How often the parameters are updated (k1) and how far back the gradient sees (k2) span a plane, once
for each thing that k2 can be counted from. Every plan of it trains networks of the same seeds, at
several learning rates. Each finished network is a line of rows.jsonl; after an interruption, even
by kill -9, --resume continues the search.
"""

import dataclasses
import sys
from typing import Any, Literal

from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import cluster, command, grid_report
from experiments.config import RunOptions, flag
from experiments.files import stop
from experiments.plane import Plane, make_plane, work
from experiments.run import RunFolder, slug
from experiments.tasks import TASKS, Task
from experiments.technique import Recipe, Technique
from experiments.trainer import Network, Spread, Trainer
from tbptt_jax import processes
from tbptt_jax.types import Anchor

ROWS, SPREAD = "rows.jsonl", "spread.json"
# What the lines of a search's rows must hold.
ROW = {
    **dict.fromkeys(("task", "anchor"), str),
    **dict.fromkeys(("k1", "k2", "seed", "best_epoch", "updates", "skipped"), int),
    **dict.fromkeys(("learning_rate", "valid_score", "test_score", "scored"), float),
    **dict.fromkeys(("seconds", "seconds_per_update"), float),
}


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a search is."""

    NAME = "grid_search"

    task: Literal["reviews", "digits", "book", "demand", "sunspots"] = flag(
        "sunspots", "What is learnt."
    )
    k1: tuple[int, ...] | None = flag(
        None, "Steps between updates; default: four factors of the length, of even ratios.", 1
    )
    k2: tuple[int, ...] | None = flag(
        None, "Steps that the gradient reaches back; default: as k1.", 1
    )
    anchor: Literal["both", "update", "loss"] = flag(
        "both", "What k2 is counted from: the end of the window, each loss, or one and the other."
    )
    learning_rate: tuple[float, ...] | None = flag(
        None, "Adam's, at first; default: 0.3 and 3 times the task's own choice.", above=0
    )
    seeds: int | None = flag(None, "Networks of each kind; default: 30.", 1)
    epochs: int | None = flag(
        None, "Passes over the data; default: 15, or the task's own choice where that is less.", 1
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "skip", "What to do at a non-finite update; at a high rate some are to be expected.",
    )  # fmt: skip
    fast: bool = flag(False, "A small task, 2 by 2 plans of 3 networks, under 30 seconds in all.")


def read_spreads(run: RunFolder) -> dict[str, Spread]:
    """How the networks of each anchor are trained, as far as it was measured."""
    if not (run.path / SPREAD).exists():
        return {}
    return run.read_json(SPREAD, dict.fromkeys(run.read_json(SPREAD), Spread))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row."""
    return tuple(row[name] for name in ("k1", "k2", "anchor", "learning_rate", "seed"))


def missing(
    plan: tbptt.Truncation, networks: list[Network], rows: list[dict[str, Any]]
) -> set[tuple[Any, ...]]:
    """The keys of a plan's networks that have no row."""
    return {(plan.k1, plan.k2, plan.anchor, *network) for network in networks} - set(map(key, rows))


def technique(plan: tbptt.Truncation) -> Technique:
    """What a plan is trained as; where a sequence has one target, every window has a loss."""
    return Technique(f"k1={plan.k1} k2={plan.k2} {plan.anchor}", plan, every=plan.k1)


def choose_spread(trainer: Trainer, plan: tbptt.Truncation) -> Spread:
    """Measure whether the networks are trained faster together or in turn."""
    seconds, count = trainer.measure(technique(plan)), len(trainer.networks)
    how = processes.on_first(lambda: min(seconds, key=lambda way: seconds[way]))
    times = ", ".join(f"{s:.3f} s {way}" for way, s in seconds.items())
    tqdm.write(
        f"{plan.anchor}, k1={plan.k1}, k2={plan.k2}: a batch takes {count} networks {times}; "
        f'anchor="{plan.anchor}" is trained {how}',
        file=sys.stderr,
    )
    return how


def train(
    trainer: Trainer, run: RunFolder, plan: tbptt.Truncation, how: Spread, show: Any
) -> list[dict[str, Any]]:
    """Train the networks by a plan: a row for each."""
    saving = run.saving(slug(technique(plan).name))
    trained = trainer.fit(technique(plan), saving, how, show=show)
    scores = trainer.scores(trained, "test", how)
    return [
        {
            "task": trainer.task.name,
            "k1": plan.k1,
            "k2": plan.k2,
            "anchor": plan.anchor,
            **network._asdict(),
            "valid_score": one.best["valid_score"],
            "test_score": score,
            "best_epoch": one.best["epoch"],
            "updates": one.history[-1]["updates"],
            "skipped": sum(row["skipped"] for row in one.history),
            "scored": one.scored,
            "seconds": one.seconds / len(trained),
            "seconds_per_update": 1 / one.updates_per_second,
        }
        for network, one, score in zip(trainer.networks, trained, scores, strict=True)
    ]


def search(
    run: RunFolder, task: Task, recipe: Recipe, plane: Plane, networks: list[Network]
) -> list[dict[str, Any]]:
    """Train by every plan without rows; all rows."""
    rows, spreads = run.read_rows(ROWS, ROW), read_spreads(run)
    jobs = [plan for plan in plane.runs if missing(plan, networks, rows)]
    for plan in plane.runs:
        if rows and plan not in jobs:  # a kill may have come between its rows and this
            run.saving(slug(technique(plan).name)).forget()
    if not jobs:
        return rows
    # Devices train as many networks each; further copies of the last one fill them up.
    more = cluster.rounded_up(len(networks)) - len(networks)
    trainer = Trainer(task, recipe, networks + more * networks[-1:])
    units = [round(1000 * work(plan, task.length)) for plan in jobs]
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=sum(units), bar_format=form, smoothing=0, mininterval=0.5) as bar:
        for plan, unit in zip(jobs, units, strict=True):
            before, number = bar.n, plane.runs.index(plan) + 1
            bar.set_description(f"{technique(plan).name} ({number} of {len(plane.runs)})")
            if plan.anchor not in spreads:
                # Where the time goes differs from plan to plan; a middling one speaks for all.
                alike = [p for p in plane.runs if p.anchor == plan.anchor]
                spreads[plan.anchor] = choose_spread(trainer, alike[len(alike) // 2])
                run.write_json(SPREAD, spreads)

            def show(done: float, before: int = before, unit: int = unit) -> None:
                bar.update(before + round(done * unit) - bar.n)

            # All networks, if a line was lost too: fewer at once are added up in another order.
            lost = missing(plan, networks, rows)
            found = train(trainer, run, plan, spreads[plan.anchor], show)
            rows += [row for row in found[: len(networks)] if key(row) in lost]
            run.write_rows(ROWS, rows)
            run.saving(slug(technique(plan).name)).forget()
    return rows


def main(config: Config) -> None:
    """Search, and report."""
    task = TASKS[config.task](config.fast)
    anchors: list[Anchor] = ["update", "loss"] if config.anchor == "both" else [config.anchor]
    for name, steps in (("k1", config.k1), ("k2", config.k2)):
        if max(steps or [1]) > task.length:
            stop(
                f"--{name}: expected at most the {task.length} {task.step}s of a sequence, which "
                f"is full BPTT, got {max(steps or [1])}"
            )
    plane = make_plane(task, config.k1, config.k2, anchors, 2 if config.fast else 4)
    recipe = Recipe(
        epochs=config.epochs or min(task.epochs, 8 if config.fast else 15),
        learning_rate=task.learning_rate,
        averaging=task.averaging,
    )
    around = [3.0] if config.fast else [0.3, 3.0]
    rates = config.learning_rate or [float(f"{f * task.learning_rate:.2g}") for f in around]
    seeds = range(config.seeds or (3 if config.fast else 30))
    networks = [Network(rate, seed) for rate in sorted(set(rates)) for seed in seeds]
    with RunFolder.create(config) as run:
        rows = search(run, task, recipe, plane, networks)
        grid_report.publish(run, task, recipe.epochs, plane, rows, read_spreads(run))


if __name__ == "__main__":
    command.run(Config, main)
