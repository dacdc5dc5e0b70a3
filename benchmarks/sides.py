"""One side of a comparison, in a process of its own that runs on request.

python -m benchmarks.sides SIDE JOB, with a job as JSON, prints a line of JSON when it is ready. For
every line that it reads it prints the seconds of a call: the mean over as many calls in a row as
fill a tenth of a second, since in training one call follows another. `benchmarks.peers` starts it.
"""

import contextlib
import importlib
import json
import math
import sys
import time
from typing import Any

from benchmarks.job import Job, Run

TURN = 0.1
# The module and the function of each side, and further arguments.
SIDES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ours": ("ours", "ours", {}),
    "in turn": ("ours", "in_turn", {}),
    "alone": ("ours", "alone", {}),
    "matmul": ("ours", "matmul", {}),
    "torch": ("theirs", "torch", {}),
    "torch, fused Adam": ("theirs", "torch", {"fused": True}),
    "flax scan": ("theirs", "flax_scan", {}),
    "nnx.RNN": ("theirs", "nnx_rnn", {}),
    "keras": ("theirs", "keras", {}),
}


def make(side: str, job: Job) -> Run:
    """The function that runs a call of a side; imports only the side's own libraries."""
    module, function, options = SIDES[side]
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(job, **options)


def seconds(run: Run, calls: int) -> float:
    """Mean seconds of a call."""
    begun = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begun) / calls


def main() -> None:
    """Prepare the side, then measure it on request."""
    side, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    with contextlib.redirect_stdout(sys.stderr):
        begun = time.perf_counter()
        run = make(side, job)
        value = run()
        first = time.perf_counter() - begun
        run()
    calls = math.ceil(TURN / seconds(run, 1))
    print(json.dumps({"value": value, "first": first}), flush=True)
    for _ in sys.stdin:
        print(seconds(run, calls), flush=True)


if __name__ == "__main__":
    main()
