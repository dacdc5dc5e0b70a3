"""Is there a 1 among 20 steps, when the gradient reaches back 10?

python -m experiments.presence_of_one

The toy of the question this project starts from. A network is trained on sequences whose 1, if
there is one, stands in the first ten steps, anywhere, or in the last ten, with the gradient of the
last k2 steps and with full BPTT. At the end of a sequence it is asked whether there was a 1, for
each position of the 1. What the input weights learn from steps beyond the gradient's reach is
nothing, to the bit.
"""

import dataclasses
import functools
import itertools
from typing import Any, TypeAlias

import jax
import numpy as np
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import command, figures, watched
from experiments.config import RunOptions, flag
from experiments.figures import Curve, Panel
from experiments.run import RunFolder
from experiments.tasks import Task, networks
from experiments.tasks.task import Part
from experiments.technique import Technique
from tbptt_jax.types import Params

PASS = 50  # updates
PARTS = ("first_half", "second_half", "none")
Row: TypeAlias = dict[str, Any]
Found: TypeAlias = dict[tuple[str, str], list[Row]]  # by place of the 1s in training, and plan


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What is trained."""

    NAME = "presence_of_one"

    length: int = flag(20, "Steps of a sequence.", 2)
    k2: int = flag(10, "Steps that the gradient reaches back from the end.", 1)
    hidden: int = flag(16, "Units of the LSTM.", 1)
    passes: int = flag(20, f"Passes of {PASS} parameter updates.", 1, fast=6)
    batch_size: int = flag(64, "Sequences in a batch; every second one holds a 1.", 2)
    learning_rate: float = flag(
        1e-2, "Adam's, at first; a cosine takes it to 0 by the end.", above=0
    )
    seeds: int = flag(10, "Networks of each kind.", 1, fast=3)
    fast: bool = flag(False, "3 networks of each kind and 6 passes.")


def regimes(config: Config) -> dict[str, tuple[int, int]]:
    """Where a 1 may stand in training: steps first + 1 .. last."""
    half, length = config.length // 2, config.length
    places = {f"steps 1 to {half}": (0, half), "anywhere": (0, length)}
    return {**places, f"steps {half + 1} to {length}": (half, length)}


def make_batch(length: int, places: np.ndarray) -> tbptt.Batch:
    """Sequences with a 1 at their places, [B, N], N of them one after the other in each lane.

    A sequence whose place is `length` holds none. The loss is at a sequence's end.
    """
    ones, steps = places[..., None] == np.arange(length), np.arange(places.shape[1] * length)
    inputs = ones.reshape(len(places), -1, 1).astype(np.float32)
    targets = ones.any(-1).repeat(length, axis=1).astype(np.int32)
    first, last = (
        np.broadcast_to(steps % length == step, targets.shape) for step in (0, length - 1)
    )
    return tbptt.Batch(inputs, targets, weights=last.astype(np.float32), reset=first)


def make_task(config: Config, where: str) -> Task:
    """Is there a 1? In every second sequence, at a place that training has."""
    first, last = regimes(config)[where]

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        del multiple  # all sequences are of one length
        if part == "train":
            draw = rng or np.random.default_rng(0)
            places = draw.integers(first, last, (config.batch_size, PASS))
        else:
            # Of one shape wherever a 1 may be, to compile once.
            places = np.resize(np.arange(first, last), config.length).repeat(2)[:, None]
        places[::2] = config.length
        return [make_batch(config.length, places)]

    return Task(
        name=f"1s in {where}",
        step="step",
        length=config.length,
        steps=config.k2,
        many_to_one=False,
        batches=batches,
        network=functools.partial(networks.lstm, 1, config.hidden, 2),
        epochs=config.passes,
        learning_rate=config.learning_rate,
        averaging=0.0,  # the parameters as they are: what did not move shows
    )


def train_all(config: Config, run: RunFolder) -> Found:
    """For each network the probability of "there is a 1" by the position of the 1, none last.

    And the largest entry, by size, of the gradients of its input weights.
    """
    length, k2 = config.length, f"k2 = {config.k2}"
    plans = {k2: tbptt.Truncation(length, config.k2), "full BPTT": tbptt.Truncation(length, length)}
    every, found = make_batch(length, np.arange(length + 1)[:, None]), {}
    jobs = list(itertools.product(regimes(config), plans, range(config.seeds)))
    for where, plan, seed in tqdm(jobs, "networks", leave=False):
        task, technique = make_task(config, where), Technique(plan, plans[plan])
        probes = task.batches("valid", 1, None)
        about = run, task, technique, seed, input_weights, probes
        trained, seen = watched.fit(*about, show=lambda share: None)  # no bar of its own
        probability = jax.nn.softmax(tbptt.predict(trained.state, every)[:, -1])[:, 1]
        row = {"probability": probability.tolist(), "largest_input_gradient": seen["gradient"]}
        found.setdefault((where, plan), []).append(row)
    return found


def input_weights(params: Params) -> jax.Array:
    """What the LSTM reads its input with."""
    return params["core"]["dense_i"]["kernel"]


def panels(config: Config, found: Found) -> list[Panel]:
    """The probability by position, of all networks; a panel for each place of training's 1s."""
    steps, end = np.arange(1, config.length + 1), config.length + 0.5
    axes = {
        "limits": (-0.03, 1.03),
        "beyond": (0.5, end - config.k2, f"beyond k2 = {config.k2} from the loss"),
    }
    by_place: dict[str, list[Curve]] = {}
    for (where, plan), nets in found.items():
        curve = Curve(plan, steps, [net["probability"][:-1] for net in nets])
        by_place.setdefault(where, []).append(curve)
    y = 'probability of "there is a 1"'
    return [
        Panel("step of the 1", y, curves, f"trained on 1s {where}", **axes)
        for where, curves in by_place.items()
    ]


def summary(config: Config, found: Found) -> list[Row]:
    """Each network's shares of correct answers by where the 1 is, as result.json holds them."""
    half, length, rows = config.length // 2, config.length, []
    for (where, plan), nets in found.items():
        p = np.array([net["probability"] for net in nets])
        right = np.where(np.arange(length + 1) < length, p > 0.5, p <= 0.5)
        shares = right[:, :half], right[:, half:length], right[:, length]
        row: Row = {"trained_on": where, "plan": plan}
        for name, share in zip(PARTS, shares, strict=True):
            row[name] = share.reshape(len(nets), -1).mean(1).tolist()
        row["largest_input_gradient"] = max(net["largest_input_gradient"] for net in nets)
        rows.append({**row, "probability": p.mean(0).tolist()})
    return rows


def main(config: Config) -> None:
    """Train all networks, and report."""
    with RunFolder.create(config) as run:
        found = train_all(config, run)
        rows = summary(config, found)
        run.write_result({"rows": rows})
        run.write_figure("presence_of_one.png", figures.curves(panels(config, found)))
    half, largest = config.length // 2, "largest_input_gradient"
    places = f"1 in 1 to {half}", f"1 in {half + 1} to {config.length}", "no 1"
    head = ["1s in training", "gradient", *places, "largest gradient of the input weights"]
    cells = [
        [
            *(r["trained_on"], r["plan"]),
            *(figures.mean_and_range(r[part], "{:.0%}".format) for part in PARTS),
            f"{r[largest]:.1e}",
        ]
        for r in rows
    ]
    print(f"\nShare of correct answers, {config.seeds} networks of each kind:\n")
    print(figures.table(head, cells))
    print(f"\nsaved in {run.path}: presence_of_one.png and result.json")


if __name__ == "__main__":
    command.run(Config, main)
