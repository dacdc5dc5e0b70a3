"""The systematic way: every k1 with every k2, many networks each, judged side by side.

python -m experiments.grid_search --task=sunspots

How often the parameters are updated (k1) and how far back the gradient sees (k2) span a plane, once
for each thing that k2 can be counted from. Every plan of it trains networks of the same seeds, at
several learning rates. Each finished network is a line of rows.jsonl; interrupted, even by
kill -9, a search goes on where it stopped with --resume.
"""

import dataclasses
import sys
from typing import Any, Literal

from absl import app
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import common, grid_report, run_folder
from experiments.common import RunOptions, flag
from experiments.many_seeds import ManySeeds, Network, Outcome, Spread
from experiments.plane import Plane, make_plane, work
from experiments.run_folder import Journal, RunFolder, slug
from experiments.tasks import TASKS, Task
from experiments.technique import Recipe, Technique
from tbptt_jax.types import Anchor

NAME, ROWS, SPREAD, VERSIONS = "grid_search", "rows.jsonl", "spread.json", "versions.json"


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a search is."""

    task: Literal["reviews", "digits", "book", "demand", "sunspots"] = flag(
        "sunspots", "What is to be learnt."
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
        "skip", "What follows an update that is not finite; at a high rate some are to be expected."
    )
    fast: bool = flag(False, "A small task, 2 by 2 plans of 3 networks, under 30 seconds in all.")


def tell_versions(run: RunFolder) -> None:
    """Say so if a search goes on with other versions than it was begun with."""
    if not (run.path / VERSIONS).exists():
        run.write_json(VERSIONS, common.versions())
    before, now = run.read_json(VERSIONS), common.versions()
    changed = [f"{k} {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        print(f"{run.path} was begun with other versions: {'; '.join(changed)}")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from the others."""
    return tuple(row[name] for name in ("k1", "k2", "anchor", "learning_rate", "seed"))


def missing(
    plan: tbptt.Truncation, networks: list[Network], rows: list[dict[str, Any]]
) -> set[tuple[Any, ...]]:
    """The keys of a plan's networks that have no row."""
    return {(plan.k1, plan.k2, plan.anchor, *network) for network in networks} - set(map(key, rows))


def rows_of(
    task: Task, plan: tbptt.Truncation, networks: list[Network], outcome: Outcome
) -> list[dict[str, Any]]:
    """A row for each network."""
    each = (outcome.valid, outcome.test, outcome.epochs, outcome.updates, outcome.skipped)
    return [
        {
            "task": task.name,
            "k1": plan.k1,
            "k2": plan.k2,
            "anchor": plan.anchor,
            "learning_rate": network.learning_rate,
            "seed": network.seed,
            "valid_score": float(valid),
            "test_score": float(test),
            "best_epoch": int(epoch),
            "updates": int(updates),
            "skipped": int(skipped),
            "scored": outcome.scored,
            "seconds": outcome.seconds / len(networks),
            "seconds_per_update": outcome.seconds_per_update,
        }
        for network, valid, test, epoch, updates, skipped in zip(networks, *each, strict=True)
    ]


def choose_spread(
    learner: ManySeeds, plan: tbptt.Truncation, networks: list[Network]
) -> dict[str, Any]:
    """Measure whether the networks are trained faster together or in turn."""
    seconds = learner.measure(technique(plan), networks)
    how = min(seconds, key=lambda way: seconds[way])
    times = ", ".join(f"{s:.3f} s {way}" for way, s in seconds.items())
    tqdm.write(
        f"{plan.anchor}, k1={plan.k1}, k2={plan.k2}: a batch takes {len(networks)} networks "
        f'{times}; anchor="{plan.anchor}" is trained {how}',
        file=sys.stderr,
    )
    measured = {"k1": plan.k1, "k2": plan.k2, "networks": len(networks), "seconds": seconds}
    return {"how": how, **measured}


def technique(plan: tbptt.Truncation) -> Technique:
    """What a plan is trained as; where a sequence has one target it is asked in every window."""
    return Technique(f"k1={plan.k1} k2={plan.k2} {plan.anchor}", plan, every=plan.k1)


def search(
    run: RunFolder,
    task: Task,
    recipe: Recipe,
    plane: Plane,
    networks: list[Network],
    rows: list[dict[str, Any]],
) -> None:
    """Run what has no row yet, and add its rows."""
    jobs = [plan for plan in plane.runs if missing(plan, networks, rows)]
    if not jobs:
        return
    learner = ManySeeds(task, recipe, sorted({network.seed for network in networks}))
    spreads: dict[str, Any] = run.read_json(SPREAD) if (run.path / SPREAD).exists() else {}
    units = [round(1000 * work(plan, task.length)) for plan in jobs]
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} to go"
    bar = tqdm(total=sum(units), bar_format=form, smoothing=0, mininterval=0.5)
    with bar:
        for plan, unit in zip(jobs, units, strict=True):
            before, number = bar.n, plane.runs.index(plan) + 1
            bar.set_description(f"{technique(plan).name} ({number} of {len(plane.runs)})")
            if plan.anchor not in spreads:
                # Where the time goes differs from plan to plan; a middling one speaks for all.
                alike = [p for p in plane.runs if p.anchor == plan.anchor]
                spreads[plan.anchor] = choose_spread(learner, alike[len(alike) // 2], networks)
                run.write_json(SPREAD, spreads)

            def show(done: float, before: int = before, unit: int = unit) -> None:
                bar.update(before + round(done * unit) - bar.n)

            how: Spread = spreads[plan.anchor]["how"]
            saving = run.saving(slug(technique(plan).name))
            # All of them, if a line was lost too: fewer at once are added up in another order.
            outcome = learner.fit(technique(plan), networks, how, saving, show)
            lost = missing(plan, networks, rows)
            found = [row for row in rows_of(task, plan, networks, outcome) if key(row) in lost]
            Journal(run.path / ROWS).add(found)
            rows += found
            saving.forget()


def main(argv: list[str]) -> None:
    """Search, and tell."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME)
    task = common.load(TASKS[config.task], config.fast)
    anchors: list[Anchor] = ["update", "loss"] if config.anchor == "both" else [config.anchor]
    for name, steps in (("k1", config.k1), ("k2", config.k2)):
        if max(steps or [1]) > task.length:
            common.stop(
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
    run = RunFolder.create(config, NAME)
    tell_versions(run)
    rows = Journal(run.path / ROWS).read()
    search(run, task, recipe, plane, networks, rows)
    spreads = run.read_json(SPREAD)
    grid_report.report(run, task, recipe.epochs, plane, rows, spreads)


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
