"""What do all of the credit and few updates give?

python -m experiments.full_bptt --task=digits

Full BPTT makes one update for each sequence. It is compared with the same losses and as many
updates with less credit, K steps from the end of the sequence or from each loss; and with more
updates, TBPTT(K, K).
"""

from experiments import compare
from experiments.tasks import Task
from experiments.technique import Technique
from tbptt_jax import Truncation


def techniques(task: Task, steps: int) -> list[Technique]:
    """Full BPTT, and then less credit or other losses, one change at a time."""
    length, asked = task.length, f", loss every {steps}"
    full, end = Truncation(length, length), Truncation(length, steps)
    each, cut = Truncation(length, steps, "loss"), Truncation(steps, steps)
    from_end, from_each = (f"one update, {steps} steps from {x}" for x in ("the end", "each loss"))
    if task.many_to_one:
        return [
            Technique("full BPTT, loss at the end", full),
            Technique(f"full BPTT{asked}", full, every=steps),
            Technique(from_end, end),
            Technique(f"{from_each}, every {steps}", each, every=steps),
            Technique(f"TBPTT({steps}, {steps}){asked}", cut, every=steps),
        ]
    plans = {"full BPTT": full, from_each: each, from_end: end, f"TBPTT({steps}, {steps})": cut}
    return [Technique(name, plan) for name, plan in plans.items()]


if __name__ == "__main__":
    compare.run("full_bptt", techniques)
