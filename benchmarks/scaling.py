"""Time and memory of a training step by its sizes, and by the number of devices.

python -m benchmarks.scaling

A model of the seconds and of the bytes of a `train_step` is fitted to some shapes and checked on
others that it has not seen. Then the rows of a batch grow with the number of devices (weak
scaling), on CPU devices that share this machine's cores; the bytes that travel are those of the
compiled program.
"""

import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks.job import Job
from experiments import command, figures
from experiments.run import versions

FITTED = [
    Job(rows=rows, features=features, hidden=hidden, length=400, k1=k1, k2=k2)
    for rows, (features, hidden) in itertools.product((4, 32), ((64, 32), (32, 128), (256, 256)))
    for k1, k2 in ((20, 20), (100, 100), (400, 400), (20, 100))
]
HELD_OUT = [
    Job(rows=rows, features=features, hidden=hidden, length=400, k1=k1, k2=k2)
    for rows, features, hidden, k1, k2 in (
        *((16, 64, 64, 40, 40), (16, 32, 64, 200, 200), (8, 64, 192, 50, 50)),
        *((64, 64, 64, 100, 100), (16, 192, 192, 25, 50), (8, 16, 96, 400, 400)),
        *((64, 128, 128, 80, 80), (24, 128, 128, 10, 60)),
    )
]
DEVICES = (1, 2, 4, 8)
ROWS_EACH = 16  # of a device
WEAK = Job(rows=0, features=128, hidden=128, length=200, k1=50, k2=50)


class Measured(NamedTuple):
    """A training step, as it was compiled and run."""

    seconds: float
    bytes: int  # beyond arguments and results
    travels: int  # bytes that each device sends in all-reduces of an update


def measure(job: Job, calls: int) -> Measured:
    """Compile and time a training step; on all devices that there are, rows spread over them."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import tbptt_jax as tbptt
    from benchmarks.job import problem
    from benchmarks.ours import our_state

    numbers, plan = problem(job), tbptt.Truncation(job.k1, job.k2)
    state, batch = our_state(job, numbers), tbptt.Batch(*map(jnp.asarray, (numbers.x, numbers.y)))
    if jax.device_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        batch = tbptt.data.spread(batch, mesh, "rows")
    compiled = tbptt.lower(state, batch, plan).compile()
    analysis: Any = compiled.memory_analysis()
    text, sizes = str(compiled.as_text()), {"f32": 4, "bf16": 2, "s32": 4, "pred": 1}
    travels = 0
    for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            travels += sizes[kind] * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
    seconds = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        state, metrics = tbptt.train_step(state, batch, plan)
        jax.block_until_ready(metrics.loss)
        seconds.append(time.perf_counter() - started)
        state = state.restart()
    return Measured(statistics.median(seconds[1:]), analysis.temp_size_in_bytes, travels)


def terms_of_seconds(job: Job) -> list[float]:
    """What the seconds of a call are made of: updates, steps of windows, products, elements."""
    updates, span = job.length // job.k1, max(job.k1, job.k2)
    steps = updates * span
    products = steps * job.rows * 4 * job.hidden * (job.features + job.hidden)
    return [1.0, updates, steps, products, steps * job.rows * job.hidden]


def terms_of_bytes(job: Job) -> list[float]:
    """What the bytes are made of: what a window saves of each step, the batch, the parameters."""
    span, parameters = max(job.k1, job.k2), 4 * job.hidden * (job.features + job.hidden)
    return [
        span * job.rows * job.hidden,
        span * job.rows * job.features,
        job.length * job.rows * job.features,
        parameters,
        1.0,
    ]


def fit(terms: list[list[float]], values: list[float]) -> np.ndarray:
    """Coefficients, none below 0, for the least sum of squared relative errors."""
    matrix, kept = np.array(terms) / np.array(values)[:, None], list(range(len(terms[0])))
    while True:
        found = np.linalg.lstsq(matrix[:, kept], np.ones(len(values)), rcond=None)[0]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    coefficients = np.zeros(matrix.shape[1])
    coefficients[kept] = found
    return coefficients


def check(name: str, terms: Any, values: dict[Job, float], unit: float) -> tuple[str, np.ndarray]:
    """Fit a model, and a table of what it says of shapes that it has not seen."""
    coefficients = fit([terms(job) for job in FITTED], [values[job] for job in FITTED])
    rows, errors = [], []
    for job in HELD_OUT:
        said = float(np.dot(terms(job), coefficients))
        errors.append(abs(said / values[job] - 1))
        shape = [job.rows, job.features, job.hidden, job.k1, job.k2]
        rows.append([*shape, f"{values[job] / unit:.3g}", f"{said / unit:.3g}"])
    head = ["rows", "inputs", "units", "k1", "k2", f"{name}, measured", "by the model"]
    seen = [abs(float(np.dot(terms(job), coefficients)) / values[job] - 1) for job in FITTED]
    said = (
        f"{name}: relative error on shapes not seen: median {statistics.median(errors):.0%}, "
        f"largest {max(errors):.0%}; on those fitted: median {statistics.median(seen):.0%}"
    )
    return f"{figures.table(head, rows)}\n\n{said}", coefficients


def in_process(job: Job, devices: int, calls: int) -> Measured:
    """`measure` in a process of its own, which has so many devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", f"--rows={job.rows}", f"--calls={calls}"],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str]) -> None:
    """Print the tables."""
    command.start(argv)
    calls = flags.FLAGS.calls
    if flags.FLAGS.rows:
        print(json.dumps(measure(dataclasses.replace(WEAK, rows=flags.FLAGS.rows), calls)))
        return
    print(" ".join(f"{name} {v}," for name, v in versions().items()))
    found = {job: measure(job, calls) for job in tqdm([*FITTED, *HELD_OUT], leave=False)}
    milliseconds = {job: 1e3 * one.seconds for job, one in found.items()}
    mebibytes = {job: one.bytes / 2**20 for job, one in found.items()}
    for name, terms, values in (
        ("ms of a call", terms_of_seconds, milliseconds),
        ("MiB", terms_of_bytes, mebibytes),
    ):
        table, coefficients = check(name, terms, values, 1)
        print(f"\n{table}\ncoefficients: {', '.join(f'{c:.3g}' for c in coefficients)}\n")
    rows: list[list[Any]] = []
    for devices in DEVICES:
        job = dataclasses.replace(WEAK, rows=ROWS_EACH * devices)
        turns = [in_process(job, devices, calls) for _ in range(3)]
        seconds = [one.seconds for one in turns]
        rate = job.rows * job.length / statistics.median(seconds)
        spread = f"{1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}"
        rows.append([devices, job.rows, f"{1e3 * statistics.median(seconds):.1f}", spread])
        rows[-1] += [f"{rate:,.0f}", f"{turns[0].travels:,}"]
    head = ["devices", "rows", "ms of a call", "3 processes", "steps/s", "bytes of an update"]
    print(f"{figures.table(head, rows)}\n\nthe devices share {os.cpu_count()} cores")


if __name__ == "__main__":
    flags.DEFINE_integer("calls", 5, "Calls that are timed, of each shape.", lower_bound=1)
    flags.DEFINE_integer("rows", 0, "Of a process that measures one shape.", lower_bound=0)
    app.run(main)
