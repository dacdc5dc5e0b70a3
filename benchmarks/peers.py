"""Training steps against what people would use instead, side by side.

pip install -e ".[bench]"
python -m benchmarks.peers                      all tables, a quarter of an hour
python -m benchmarks.peers --tables=windows

Every side has a process of its own (`benchmarks.sides`), which waits for its turn; they take turns,
one call each, and the medians over the turns are given, of ratios within a turn. A ratio above 1
says that ours is faster by so much. All sides are given the same numbers and must come to the same
loss, but for Keras, which does not hand the carry on.
"""

import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

from benchmarks.sides import Job
from experiments import common

WINDOWS = 4
SHAPES = [
    (32, 30, 64, 128),
    (32, 100, 128, 256),
    (8, 100, 64, 64),
    (128, 30, 256, 512),
    (1, 30, 16, 32),
]
JAX_PEERS = ("flax scan", "nnx.RNN", "keras")


def job(rows: int, length: int, features: int, hidden: int, k1: int, k2: int) -> Job:
    """A job by its numbers, in the order of the tables."""
    return Job(rows=rows, features=features, hidden=hidden, length=length, k1=k1, k2=k2)


def flops(job: Job) -> float:
    """Of the matrix products of a call: forward, weights' gradients, adjoints of the carries."""
    per_step = 2 * job.rows * 4 * job.hidden * (2 * job.features + 3 * job.hidden)
    return per_step * job.length * job.k2 / job.k1


class Side:
    """A process that measures one side."""

    def __init__(self, name: str, job: Job):
        command = [sys.executable, "-m", "benchmarks.sides", name]
        self._process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {self._process.args} ended with {self._process.wait()}")
        return line

    def seconds(self) -> float:
        """Of one call."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._read())

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(job: Job, names: Sequence[str], turns: int) -> dict[str, list[float]]:
    """Seconds of a call of each side, turn by turn."""
    sides = {name: Side(name, job) for name in names}
    values = {n: s.ready["value"] for n, s in sides.items() if n not in ("keras", "matmul")}
    if not job.batches and max(values.values()) - min(values.values()) > 1e-3:
        sys.exit(f"error: the sides do not compute the same: {values}")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in common.progress(range(turns), str(job)):
        for name, side in sides.items():
            found[name].append(side.seconds())
    for side in sides.values():
        side.end()
    return found


def ratio(found: dict[str, list[float]], peer: str) -> float:
    """How much longer a peer takes than we."""
    return statistics.median(p / o for p, o in zip(found[peer], found["ours"], strict=True))


def windows(turns: int) -> str:
    """A window of T steps an update, k1 = k2 = T."""
    rows, against_torch, against_jax = [], [], []
    for shape in SHAPES:
        batch, steps, features, hidden = shape
        one = job(batch, WINDOWS * steps, features, hidden, steps, steps)
        found = measure(one, ("ours", "torch", *JAX_PEERS, "matmul"), turns)
        ours = statistics.median(found["ours"])
        rate = 2 * 1024**3 / statistics.median(found["matmul"])
        ratios = [ratio(found, peer) for peer in ("torch", *JAX_PEERS)]
        against_torch.append(ratios[0])
        against_jax.append(min(ratios[1:]))
        share = f"{flops(one) / ours / rate:.0%}"
        rows.append(
            [str(shape), f"{1e3 * ours / WINDOWS:.2f}", *(f"{r:.2f}" for r in ratios), share]
        )
    means = [statistics.geometric_mean(r) for r in (against_torch, against_jax)]
    head = ["batch, T, in, hidden", "ours, ms", "torch", *JAX_PEERS, "share of matmul rate"]
    return (
        common.table(head, rows)
        + f"\n\ngeometric means: {means[0]:.2f} against torch, {means[1]:.2f} against the best of "
        "the others in each row"
    )


def single_steps(turns: int) -> str:
    """TBPTT(1, 1), an update for each of 200 steps."""
    rows = []
    for batch, features, hidden in ((1, 16, 32), (32, 64, 128)):
        one = job(batch, 200, features, hidden, 1, 1)
        found = measure(one, ("ours", "torch", *JAX_PEERS), turns)
        rate = one.length / statistics.median(found["ours"])
        ratios = [f"{ratio(found, peer):.1f}" for peer in ("torch", *JAX_PEERS)]
        rows.append([str((batch, features, hidden)), f"{rate:,.0f}", *ratios])
    return common.table(["batch, in, hidden", "updates/s", "torch", *JAX_PEERS], rows)


def lookback(turns: int) -> str:
    """k2 > k1; the other JAX libraries have no such thing."""
    rows = []
    for k1, k2 in ((1, 5), (10, 50), (30, 60)):
        one = job(32, 300, 64, 128, k1, k2)
        found = measure(one, ("ours", "torch"), turns)
        rate = one.length / k1 / statistics.median(found["ours"])
        rows.append([f"k1 = {k1}, k2 = {k2}", f"{rate:,.0f}", f"{ratio(found, 'torch'):.2f}"])
    return common.table(["batch 32, in 64, hidden 128", "updates/s", "torch"], rows)


def epoch(turns: int) -> str:
    """The sentiment job's first 40 batches of an epoch, windows of 30 words."""
    found = measure(Job(batches=40), ("ours", "torch"), max(3, turns // 4))
    ours = statistics.median(found["ours"])
    return common.table(
        ["40 batches", "torch"], [[f"{ours:.2f} s", f"{ratio(found, 'torch'):.2f}"]]
    )


TABLES = {"windows": windows, "single": single_steps, "lookback": lookback, "epoch": epoch}


def main(argv: list[str]) -> None:
    """Print the tables."""
    common.begin(argv)
    versions = {n: importlib.metadata.version(n) for n in ("torch", "keras")}
    print(" ".join(f"{name} {v}," for name, v in (common.versions() | versions).items()))
    for name in flags.FLAGS.tables:
        text = TABLES[name](flags.FLAGS.turns)
        print(f"\n{name}: {TABLES[name].__doc__}\n\n{text}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("tables", list(TABLES), f"Which of {', '.join(TABLES)}.")
    flags.DEFINE_integer("turns", 15, "How often each side is called.", lower_bound=1)
    app.run(main)
