"""What is lost when sequences are cut into pieces of equal length?

python -m experiments.naive --task=reviews

Pieces with the carry running through them, one update for each; the same pieces as sequences of
their own, each from the initial carry; with the loss at a sequence's end only, where it has one
target; and whole sequences, full BPTT.
"""

from experiments import compare
from experiments.tasks import Task
from experiments.technique import Technique
from tbptt_jax import Truncation


def techniques(task: Task, steps: int) -> list[Technique]:
    """The naive split, two variants, and no split."""
    cut, whole = Truncation(steps, steps), Truncation(task.length, task.length)
    pieces = f"pieces of {steps}"
    at_end = [Technique(f"{pieces}, carry kept, loss at the end", cut)] if task.many_to_one else []
    return [
        Technique(f"{pieces}, carry kept", cut, every=steps),
        Technique(f"{pieces}, each on its own", cut, every=steps, pieces=steps),
        *at_end,
        Technique("whole, full BPTT", whole),
    ]


if __name__ == "__main__":
    compare.run("naive", techniques)
