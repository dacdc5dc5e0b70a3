"""Training steps against those of other libraries, side by side.

pip install -e ".[bench]"
python -m benchmarks.peers                      all tables, a quarter of an hour
python -m benchmarks.peers --tables=windows

Every side has a process of its own (`benchmarks.sides`). The sides take turns; a turn is one call
or, if that is short, a tenth of a second of calls. The tables hold medians over the turns of ratios
within a turn; above 1, ours is faster by that factor. All sides use the same numbers and must reach
the same loss, except Keras, which does not pass the carry on.
"""

import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags
from tqdm import tqdm

from benchmarks.job import Job
from experiments import command, figures
from experiments.run import versions

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


WINDOWS_JOBS = {str(s): job(s[0], WINDOWS * s[1], *s[2:], s[1], s[1]) for s in SHAPES}
SINGLE_JOBS = {str(s): job(s[0], 200, *s[1:], 1, 1) for s in ((1, 16, 32), (32, 64, 128))}
LOOKBACK_JOBS = {
    f"k1 = {k1}, k2 = {k2}": job(32, 300, 64, 128, k1, k2)
    for k1, k2 in ((1, 5), (10, 50), (30, 60))
}
SEEDS_JOBS = {
    f"{k}": dataclasses.replace(job(3, 120, 1, 32, k, k), networks=30) for k in (5, 30, 120)
}


def flops(job: Job) -> float:
    """Of the matrix products of a call: forward, weights' gradients, adjoints of the carries."""
    per_step = 2 * job.rows * 4 * job.hidden * (2 * job.features + 3 * job.hidden)
    return per_step * job.length * job.k2 / job.k1


class Side:
    """A process that measures one side, in the checkout at `folder`; None: this one."""

    def __init__(self, name: str, job: Job, folder: str | None = None):
        command = [sys.executable, "-m", "benchmarks.sides", name]
        self._process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(job))],
            cwd=folder,
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
    for _ in tqdm(range(turns), str(job), leave=False):
        for name, side in sides.items():
            found[name].append(side.seconds())
    for side in sides.values():
        side.end()
    return found


def ratio(found: dict[str, list[float]], peer: str) -> float:
    """How much longer a peer takes than we."""
    return statistics.median(p / o for p, o in zip(found[peer], found["ours"], strict=True))


def table(first: str, jobs: dict[str, Job], peers: Sequence[str], turns: int) -> str:
    """A row for each job: our time and rate, the ratios, and our share of the matmul rate."""
    ratios: dict[str, list[float]] = {peer: [] for peer in peers}
    rows = []
    for name, job in jobs.items():
        found = measure(job, ("ours", *peers, "matmul"), turns)
        ours, updates = statistics.median(found["ours"]), job.length // job.k1
        for peer in peers:
            ratios[peer].append(ratio(found, peer))
        rate = 2 * 1024**3 / statistics.median(found["matmul"])
        times = [f"{1e3 * ours / updates:.3g}", f"{updates / ours:,.0f}"]
        share = f"{flops(job) / ours / rate:.0%}"
        rows.append([name, *times, *(f"{ratios[peer][-1]:.2f}" for peer in peers), share])
    text = figures.table([first, "ours, ms", "updates/s", *peers, "of the matmul rate"], rows)
    others = [peer for peer in peers if peer != "torch"]
    means = [f"{statistics.geometric_mean(ratios['torch']):.2f} against torch"]
    if others:
        best = [min(row) for row in zip(*(ratios[peer] for peer in others), strict=True)]
        means.append(f"{statistics.geometric_mean(best):.2f} against the best other of each row")
    return f"{text}\n\ngeometric means: {', '.join(means)}"


def windows(turns: int) -> str:
    """An update for every window of T steps, k1 = k2 = T, four windows a call."""
    return table("batch, T, in, hidden", WINDOWS_JOBS, ("torch", *JAX_PEERS), turns)


def single_steps(turns: int) -> str:
    """TBPTT(1, 1), an update for each of 200 steps."""
    return table("batch, in, hidden", SINGLE_JOBS, ("torch", *JAX_PEERS), turns)


def lookback(turns: int) -> str:
    """k2 > k1, 300 steps; the other JAX libraries have no such thing."""
    return table("batch 32, in 64, hidden 128", LOOKBACK_JOBS, ("torch",), turns)


def epoch(turns: int) -> str:
    """The first 40 batches of the sentiment job, windows of 30 words; two Adams of PyTorch's."""
    peers = ("torch", "torch, fused Adam")
    found = measure(Job(batches=40), ("ours", *peers), max(3, turns // 4))
    ours = f"{statistics.median(found['ours']):.2f} s"
    return figures.table(
        ["ours", *peers], [[ours, *(f"{ratio(found, peer):.2f}" for peer in peers)]]
    )


def seeds(turns: int) -> str:
    """Thirty networks: one call of `vmap`, one of `lax.map`, and thirty calls."""
    ways = ("ours", "in turn", "alone")
    rows = []
    for k, one in SEEDS_JOBS.items():
        found = measure(one, ways, turns)
        ours = f"{1e3 * statistics.median(found['ours']):.1f}"
        rows.append([k, ours, *(f"{ratio(found, way):.2f}" for way in ways[1:])])
    return figures.table(["k1 = k2", "vmap, ms", "lax.map", "30 calls"], rows)


def first_update(turns: int) -> str:
    """Seconds from an empty process that has JAX or PyTorch to import, to the first loss."""
    del turns
    rows = []
    for shape, one in list(WINDOWS_JOBS.items())[:3]:
        found = []
        for name in ("ours", "torch", *JAX_PEERS):
            side = Side(name, one)
            found.append(f"{side.ready['first']:.1f}")
            side.end()
        rows.append([shape, *found])
    return figures.table(["batch, T, in, hidden", "ours", "torch", *JAX_PEERS], rows)


TABLES = {
    "windows": windows,
    "single": single_steps,
    "lookback": lookback,
    "epoch": epoch,
    "seeds": seeds,
    "first": first_update,
}


def main(argv: list[str]) -> None:
    """Print the tables."""
    command.start(argv)
    peers = {n: importlib.metadata.version(n) for n in ("torch", "keras")}
    print(" ".join(f"{name} {v}," for name, v in (versions() | peers).items()))
    for name in flags.FLAGS.tables:
        text = TABLES[name](flags.FLAGS.turns)
        print(f"\n{name}: {TABLES[name].__doc__}\n\n{text}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("tables", list(TABLES), f"Which of {', '.join(TABLES)}.")
    flags.DEFINE_integer("turns", 15, "How many turns each side has.", lower_bound=1)
    app.run(main)
