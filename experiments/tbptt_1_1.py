"""TBPTT(1, 1): an update at every step, with the gradient of that step alone.

python -m experiments.tbptt_1_1 --task=demand

Against a longer reach at the same clock, TBPTT(1, 5); longer windows, TBPTT(K, K); and full BPTT.
"""

from absl import app

import tbptt_jax as tbptt
from experiments import common, comparison
from experiments.tasks import Task
from experiments.technique import Technique


def techniques(task: Task, steps: int) -> list[Technique]:
    """From one step of credit to all of them."""
    length = task.length
    plans = [(1, 1), (1, 5), (steps, steps), (length, length)]
    return [
        Technique(
            "full BPTT" if k1 == length else f"TBPTT({k1}, {k2})",
            tbptt.Truncation(k1, k2),
            every=None if k1 == length else k1,
        )
        for k1, k2 in plans
    ]


def main(argv: list[str]) -> None:
    """Compare."""
    common.begin(argv)
    comparison.main("tbptt_1_1", techniques)


if __name__ == "__main__":
    common.define_flags(comparison.Config)
    app.run(main)
