"""Is there a 1 among 20 steps, asked at the end, when the gradient reaches back 10?

python -m experiments.presence_of_one

The toy of the question this project starts from. A network is trained on sequences whose 1, if
there is one, stands in the first ten steps, anywhere, or in the last ten, with the gradient of the
last k2 steps and with full BPTT, and then asked about a 1 at each position. What the input weights
learn from steps beyond the gradient's reach is nothing, to the bit.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from absl import app
from flax import nnx

import tbptt_jax as tbptt
from experiments import common, run_folder
from experiments.common import RunOptions, flag
from experiments.run_folder import Journal, RunFolder

NAME = "presence_of_one"


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a run is."""

    length: int = flag(20, "Steps of a sequence.", 2)
    k2: int = flag(10, "Steps that the gradient reaches back from the end.", 1)
    hidden: int = flag(16, "Units of the LSTM.", 1)
    updates: int = flag(1000, "Parameter updates of a network.", 1)
    batch_size: int = flag(64, "Sequences in a batch; every second one holds a 1.", 2)
    learning_rate: float = flag(1e-2, "Adam's.", above=0)
    seeds: int = flag(10, "Networks of each kind.", 1)
    fast: bool = flag(False, "3 networks of each kind and 300 updates.")


def regimes(config: Config) -> dict[str, tuple[int, int]]:
    """Where a 1 may stand in training: steps first + 1 .. last."""
    half = config.length // 2
    return {
        f"steps 1 to {half}": (0, half),
        "anywhere": (0, config.length),
        f"steps {half + 1} to {config.length}": (half, config.length),
    }


def make_batch(config: Config, places: np.ndarray, rows: int) -> tbptt.Batch:
    """The first sequences hold a 1 at each of the places, the others none; asked at the end."""
    inputs = np.zeros((rows, config.length, 1), np.float32)
    inputs[np.arange(len(places)), places] = 1
    targets = np.zeros((rows, config.length), np.int32)
    targets[: len(places)] = 1
    weights = np.zeros((rows, config.length), np.float32)
    weights[:, -1] = 1
    return tbptt.Batch(inputs, targets, weights=weights)


def make_state(config: Config, optimizer: Any, seed: int) -> tbptt.TrainState:
    """A small LSTM that reads numbers and tells two classes apart."""
    rngs = nnx.Rngs(seed)
    model = tbptt.SequenceModel(
        core=tbptt.LSTM(1, config.hidden, rngs=rngs),
        readout=nnx.Linear(config.hidden, 2, rngs=rngs),
    )
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optimizer, loss)


def input_gradient(state: tbptt.TrainState, batch: tbptt.Batch, plan: tbptt.Truncation) -> float:
    """The largest entry, by size, of the gradient of the input weights."""
    grads = tbptt.gradient(state, batch, plan)
    return float(np.abs(grads["core"]["dense_i"]["kernel"]).max())


def train(
    config: Config, where: tuple[int, int], plan: tbptt.Truncation, optimizer: Any, seed: int
) -> tuple[np.ndarray, float]:
    """The probability of "there is a 1" by the position of the 1, none last; the gradient seen."""
    state, rng = make_state(config, optimizer, seed), np.random.default_rng(seed)
    largest = 0.0
    for i in range(config.updates):
        batch = make_batch(config, rng.integers(*where, config.batch_size // 2), config.batch_size)
        if i % 50 == 0:
            largest = max(largest, input_gradient(state, batch, plan))
        state, metrics = tbptt.train_step(state, batch, plan)
        if config.on_nonfinite == "stop" and not np.all(metrics.finite):
            common.stop(
                f"update {i + 1} of seed {seed}, {plan}: the loss is {float(metrics.loss[0]):g}, "
                f"the norm of the gradient {float(metrics.grad_norm[0]):g}; it was not trained on. "
                "Lower --learning_rate, or leave such updates out with --on_nonfinite=skip"
            )
    every = make_batch(config, np.arange(config.length), config.length + 1)
    outputs = tbptt.predict(state, every)[:, -1]
    return np.asarray(jax.nn.softmax(outputs)[:, 1]), largest


def draw(config: Config, found: dict[tuple[str, str], np.ndarray], run: RunFolder) -> None:
    """The probability by position: one panel for each place of the 1s in training."""
    names = list(regimes(config))
    figure, axes = common.figure(1, len(names), width=8, height=2.8)
    steps = np.arange(1, config.length + 1)
    for ax, name in zip(axes, names, strict=True):
        styles = iter(("C0o-", "C1s--"))
        for (regime, plan), ones in found.items():
            if regime == name:
                ax.plot(
                    steps, ones[:, :-1].mean(0), next(styles), label=plan, markersize=3, linewidth=1
                )
        ax.axvspan(config.length - config.k2 + 0.5, config.length + 0.5, color="0.93", zorder=0)
        ax.set(title=f"trained on 1s {name}", xlabel="position of the 1", ylim=(-0.03, 1.03))
        ax.title.set_fontsize(9)
    axes[0].set_ylabel('probability of "there is a 1", mean')
    axes[1].legend(frameon=False, loc="lower left")
    figure.savefig(run.path / "presence_of_one.png")


def main(argv: list[str]) -> None:
    """Train all networks, and tell."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME, {"seeds": 3, "updates": 300})
    run = RunFolder.create(config, NAME)
    length, half = config.length, config.length // 2
    plans = {
        f"k2 = {config.k2}": tbptt.Truncation(length, config.k2),
        "full BPTT": tbptt.Truncation(length, length),
    }
    # One optimizer for all: functions are compared by identity, and a new one is compiled anew.
    optimizer = optax.adam(config.learning_rate)
    jobs = [(r, p, s) for r in regimes(config) for p in plans for s in range(config.seeds)]
    journal = Journal(run.path / "networks.jsonl")
    done = {(row["trained_on"], row["plan"], row["seed"]): row for row in journal.read()}
    for job in common.progress([job for job in jobs if job not in done], "networks"):
        regime, plan, seed = job
        p, seen = train(config, regimes(config)[regime], plans[plan], optimizer, seed)
        row = {"trained_on": regime, "plan": plan, "seed": seed}
        done[job] = {**row, "probability": p.tolist(), "largest_input_gradient": seen}
        journal.add([done[job]])
    ones: dict[tuple[str, str], list[list[float]]] = {}
    largest: dict[tuple[str, str], float] = {}
    for job in jobs:
        row, key = done[job], job[:2]
        ones.setdefault(key, []).append(row["probability"])
        largest[key] = max(largest.get(key, 0.0), row["largest_input_gradient"])
    found = {key: np.stack(results) for key, results in ones.items()}
    draw(config, found, run)
    rows, records = [], []
    for (regime, plan), p in found.items():
        right = np.where(np.arange(length + 1) < length, p > 0.5, p <= 0.5)
        parts = right[:, :half].mean(), right[:, half:length].mean(), right[:, length].mean()
        largest_here = largest[regime, plan]
        rows.append([regime, plan, *(f"{part:.0%}" for part in parts), f"{largest_here:.1e}"])
        names = ("first_half", "second_half", "none")
        records.append(
            {
                "trained_on": regime,
                "plan": plan,
                **{name: float(part) for name, part in zip(names, parts, strict=True)},
                "largest_input_gradient": largest_here,
                "probability": p.mean(0).tolist(),
            }
        )
    run.write_json("result.json", {"rows": records, "versions": common.versions()})
    head = ["1s in training", "gradient", f"1 in 1 to {half}", f"1 in {half + 1} to {length}"]
    print(f"\nShare answered rightly, {config.seeds} networks of each kind:\n")
    print(common.table([*head, "no 1", "largest gradient of the input weights"], rows))
    print(f"\nsaved in {run.path}: presence_of_one.png and result.json")


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
