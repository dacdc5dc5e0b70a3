"""The systematic way: every k1 with every k2, many networks each, judged side by side.

python -m experiments.grid_search --task=sunspots

How often the parameters are updated (k1) and how far back the gradient sees (k2) span a plane, once
for each thing that k2 can be counted from. Every plan of it trains networks of the same seeds, at
several learning rates. Each finished network is a line of rows.jsonl: interrupted, even by kill -9,
the same command with the same --output_dir goes on where it stopped.
"""

import dataclasses
import json
import os
import shlex
import sys
from typing import Any, Literal

from absl import app
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import common, grid_report
from experiments.common import flag
from experiments.driver import Recipe, Technique
from experiments.many_seeds import ManySeeds, Network, Outcome, Spread
from experiments.plane import Plane, make_plane, work
from experiments.tasks import TASKS, Task
from tbptt_jax.types import Anchor

NAME, ROWS, SPREAD, VERSIONS = "grid_search", "rows.jsonl", "spread.json", "versions.json"


@dataclasses.dataclass(frozen=True)
class Config:
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
        None, "Adam's, at first; default: 0.3 and 3 times the task's own choice.", 0
    )
    seeds: int | None = flag(None, "Networks of each kind; default: 30.", 1)
    epochs: int | None = flag(
        None, "Passes over the data; default: 15, or the task's own choice where that is less.", 1
    )
    output_dir: str | None = flag(None, "Folder of the search; default runs/grid_search-TIME.")
    fast: bool = flag(False, "A small task, 2 by 2 plans of 3 networks, under 30 seconds in all.")


def open_folder(config: Config) -> common.RunFolder:
    """The folder of this very search, new or begun before."""
    run = common.RunFolder(config.output_dir or "")
    if config.output_dir is None or not (run.path / "config.json").exists():
        run = common.RunFolder.create(config.output_dir, NAME, config)
    asked: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    begun: dict[str, Any] = run.read_json("config.json")
    if begun.keys() != asked.keys():
        common.stop(f"--output_dir: {run.path} holds a run of something else; give another folder")
    for name, value in asked.items():
        if name != "output_dir" and begun[name] != value:
            common.stop(
                f"--{name}: {run.path} holds a search with {begun[name]}, got {value}; give the "
                "same flags to go on with it, or another --output_dir"
            )
    if not (run.path / VERSIONS).exists():
        run.write_json(VERSIONS, common.versions())
    before, now = run.read_json(VERSIONS), common.versions()
    changed = [f"{k} {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        print(f"{run.path} was begun with other versions: {'; '.join(changed)}")
    return run


def read_rows(run: common.RunFolder) -> list[dict[str, Any]]:
    """The finished networks; a last line that an interruption tore is cut off."""
    path = run.path / ROWS
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            common.stop(
                f"--output_dir: expected JSON in every line of {path}, got something else in line "
                f"{number}; remove that line, and the network is trained again"
            )
    return rows


def key_of(plan: tbptt.Truncation, network: Network) -> tuple[Any, ...]:
    """What tells a row from the others."""
    return plan.k1, plan.k2, plan.anchor, *network


def missing(
    plan: tbptt.Truncation, networks: list[Network], rows: list[dict[str, Any]]
) -> list[Network]:
    """The networks of a plan that have no row."""
    names = ("k1", "k2", "anchor", "learning_rate", "seed")
    finished = {tuple(row[name] for name in names) for row in rows}
    return [network for network in networks if key_of(plan, network) not in finished]


def write_rows(
    run: common.RunFolder,
    task: Task,
    plan: tbptt.Truncation,
    networks: list[Network],
    outcome: Outcome,
) -> list[dict[str, Any]]:
    """Append a line for each network, in one go."""
    found = zip(networks, outcome.valid, outcome.test, outcome.epochs, strict=True)
    rows = [
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
            "updates": outcome.updates,
            "scored": outcome.scored,
            "seconds": outcome.seconds / len(networks),
            "seconds_per_update": outcome.seconds_per_update,
        }
        for network, valid, test, epoch in found
    ]
    with (run.path / ROWS).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return rows


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
    run: common.RunFolder,
    task: Task,
    recipe: Recipe,
    plane: Plane,
    networks: list[Network],
    rows: list[dict[str, Any]],
) -> bool:
    """Run what has no row yet, and add its rows; False when Ctrl-C ended it."""
    jobs = [(plan, missing(plan, networks, rows)) for plan in plane.runs]
    jobs = [(plan, some) for plan, some in jobs if some]
    if not jobs:
        return True
    learner = ManySeeds(task, recipe, sorted({network.seed for network in networks}))
    spreads: dict[str, Any] = run.read_json(SPREAD) if (run.path / SPREAD).exists() else {}
    units = [round(1000 * work(plan, task.length) * len(some)) for plan, some in jobs]
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} to go"
    bar = tqdm(total=sum(units), bar_format=form, smoothing=0, mininterval=0.5)
    with common.ctrl_c() as pressed, bar:
        for (plan, some), unit in zip(jobs, units, strict=True):
            before, number = bar.n, plane.runs.index(plan) + 1
            bar.set_description(f"{technique(plan).name} ({number} of {len(plane.runs)})")
            if plan.anchor not in spreads:
                # Where the time goes differs from plan to plan; a middling one speaks for all.
                alike = [p for p in plane.runs if p.anchor == plan.anchor]
                spreads[plan.anchor] = choose_spread(learner, alike[len(alike) // 2], networks)
                run.write_json(SPREAD, spreads)

            def go_on(done: float, before: int = before, unit: int = unit) -> bool:
                bar.update(before + round(done * unit) - bar.n)
                return not pressed

            how: Spread = spreads[plan.anchor]["how"]
            outcome = learner.fit(technique(plan), some, how, go_on)
            if outcome is None:
                return False
            rows += write_rows(run, task, plan, some, outcome)
    return True


def resume_command(run: common.RunFolder, config: Config) -> str:
    """What to type to go on."""
    given = sys.argv[1:] + ([] if config.output_dir else [f"--output_dir={run.path}"])
    return shlex.join(["python", "-m", f"experiments.{NAME}", *given])


def main(argv: list[str]) -> None:
    """Search, and tell."""
    common.begin(argv)
    config = common.from_flags(Config)
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
    run = open_folder(config)
    rows = read_rows(run)
    if not search(run, task, recipe, plane, networks, rows):
        print(
            f"stopped by Ctrl-C; {len(rows):,} of {len(plane.runs) * len(networks):,} networks are "
            f"finished and kept; go on with\n{resume_command(run, config)}"
        )
        return
    spreads = run.read_json(SPREAD)
    grid_report.report(run, task, recipe.epochs, plane, rows, spreads)


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
