"""One side of a comparison, in a process of its own, which works when it is told to.

python -m benchmarks.sides SIDE JOB, with a job as JSON, prints a line of JSON when it is ready,
and then, for every line it reads, the seconds that a call took, the mean of as many calls in a row
as fill a tenth of a second: in training, too, a call follows the one before. `benchmarks.peers`
starts it.
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
# The module and the function of each side, and what else it is given.
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
    """What a side does, ready to be called; only its own libraries are imported."""
    module, function, options = SIDES[side]
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)(job, **options)


def seconds(run: Run, calls: int) -> float:
    """Of a call, on average."""
    begun = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begun) / calls


def main() -> None:
    """Get ready, and then measure when told to."""
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
