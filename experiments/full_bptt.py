"""Full BPTT: one update for each sequence, with all of its credit.

python -m experiments.full_bptt --task=digits

Against the same losses and as many updates with less credit, K steps from the end of the sequence
or from each loss; and against more updates, TBPTT(K, K).
"""

from absl import app

import tbptt_jax as tbptt
from experiments import common, comparison
from experiments.tasks import Task
from experiments.technique import Technique


def techniques(task: Task, steps: int) -> list[Technique]:
    """Full BPTT, and what is left of it when credit or losses change one at a time."""
    length = task.length
    full = tbptt.Truncation(length, length)
    end = tbptt.Truncation(length, steps)
    each = tbptt.Truncation(length, steps, "loss")
    if not task.many_to_one:
        return [
            Technique("full BPTT", full),
            Technique(f"one update, {steps} steps from each loss", each),
            Technique(f"one update, {steps} steps from the end", end),
            Technique(f"TBPTT({steps}, {steps})", tbptt.Truncation(steps, steps)),
        ]
    return [
        Technique("full BPTT, loss at the end", full),
        Technique(f"full BPTT, loss every {steps}", full, every=steps),
        Technique(f"one update, {steps} steps from the end", end),
        Technique(f"one update, {steps} steps from each loss, every {steps}", each, every=steps),
        Technique(
            f"TBPTT({steps}, {steps}), loss every {steps}",
            tbptt.Truncation(steps, steps),
            every=steps,
        ),
    ]


def main(argv: list[str]) -> None:
    """Compare."""
    common.begin(argv)
    comparison.main("full_bptt", techniques)


if __name__ == "__main__":
    common.define_flags(comparison.Config)
    app.run(main)
