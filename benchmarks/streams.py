"""A stream from a disk against the same stream from memory: speed, and memory that stays flat.

python -m benchmarks.streams --characters=100000000

A file of random characters is written to a temporary folder, once. Two processes train the same
network on it by `data.Stream`, one from the file, memory-mapped, the other from an array that holds
it all, and take turns. Memory is what the process holds that belongs to no file, after each tenth.
"""

import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from experiments import command, figures
from experiments.run import versions

LANES, STEPS, HIDDEN = 256, 200, 32


def write(path: pathlib.Path, characters: int) -> None:
    """Random bytes as a .npy file, written in parts."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (characters,))
    for start in range(0, characters, 2**24):
        part = file[start : start + 2**24]
        part[:] = rng.integers(0, 64, part.shape, dtype=np.uint8)
    file.flush()


def private_mebibytes() -> float:
    """Memory of this process that belongs to no file."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def train(path: str, where: str) -> None:
    """For each line on standard input train on that many batches, and print seconds and memory."""
    import jax
    import optax
    from flax import nnx

    import tbptt_jax as tbptt

    text = np.load(path, mmap_mode="r" if where == "file" else None)
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        nnx.Embed(64, HIDDEN, rngs=rngs),
        tbptt.LSTM(HIDDEN, HIDDEN, rngs=rngs),
        nnx.Linear(HIDDEN, 64, rngs=rngs),
    )
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    state = tbptt.TrainState.create(model, optax.adam(1e-3), loss)
    parts = np.array_split(text, LANES)
    stream = tbptt.data.Stream(parts, lanes=LANES, steps=STEPS, passes=None)
    plan = tbptt.Truncation(50, 50)
    for line in sys.stdin:
        started, metrics = time.perf_counter(), None
        for batch in itertools.islice(stream, int(line)):
            state, metrics = tbptt.train_step(state, batch, plan)
        jax.block_until_ready(metrics)
        print(time.perf_counter() - started, private_mebibytes(), flush=True)


class Side:
    """A process that trains when it is asked to."""

    def __init__(self, path: pathlib.Path, where: str):
        words = [sys.executable, "-m", "benchmarks.streams", f"--side={where}", str(path)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, batches: int) -> tuple[float, float]:
        """Seconds of so many batches, and the memory after them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(batches, file=self._process.stdin, flush=True)
        seconds, memory = self._process.stdout.readline().split()
        return float(seconds), float(memory)

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(argv: list[str]) -> None:
    """Print the table."""
    if flags.FLAGS.side:
        command.start(argv[:1])
        train(argv[1], flags.FLAGS.side)
        return
    command.start(argv)
    print(" ".join(f"{name} {v}," for name, v in versions().items()))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "characters.npy")
        write(path, flags.FLAGS.characters)
        os.sync()
        sides = {where: Side(path, where) for where in ("file", "memory")}
        for side in sides.values():
            side.run(5)  # compiled
        batches = flags.FLAGS.characters // (LANES * STEPS) // flags.FLAGS.turns
        ratios, rows = [], []
        for turn in range(flags.FLAGS.turns):
            order = list(sides) if turn % 2 else list(reversed(sides))
            found = {where: sides[where].run(batches) for where in order}
            ratios.append(found["file"][0] / found["memory"][0])
            rate = batches * LANES * STEPS / found["file"][0]
            memory = [f"{found[where][1]:.0f}" for where in sides]
            rows.append([turn + 1, f"{rate:,.0f}", f"{ratios[-1]:.3f}", *memory])
        for side in sides.values():
            side.end()
    head = ["turn", "characters/s", "file / memory", "MiB, file", "MiB, memory"]
    print(figures.table(head, rows))
    print(
        f"\nseconds, file / memory: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("characters", 10**8, "Steps of the stream.", lower_bound=10**5)
    flags.DEFINE_integer("turns", 10, "Parts that the two take turns at.", lower_bound=1)
    flags.DEFINE_enum("side", None, ["file", "memory"], "Of a process that trains.")
    app.run(main)
