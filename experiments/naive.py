"""The naive split: sequences cut into pieces of so many steps, wherever that cuts them.

python -m experiments.naive --task=reviews

The pieces with the carry running through them, one update for each; the same pieces as sequences
of their own, each from the initial carry; with the loss at a sequence's end only, where it has one
target; and whole sequences, full BPTT.
"""

from absl import app

import tbptt_jax as tbptt
from experiments import common, comparison
from experiments.tasks import Task
from experiments.technique import Technique


def techniques(task: Task, steps: int) -> list[Technique]:
    """The naive split, what is made of it, and none."""
    cut, whole = tbptt.Truncation(steps, steps), tbptt.Truncation(task.length, task.length)
    found = [
        Technique(f"pieces of {steps}, carry kept", cut, every=steps),
        Technique(f"pieces of {steps}, each on its own", cut, every=steps, pieces=steps),
    ]
    if task.many_to_one:
        found.append(Technique(f"pieces of {steps}, carry kept, loss at the end", cut))
    return [*found, Technique("whole, full BPTT", whole)]


def main(argv: list[str]) -> None:
    """Compare."""
    common.begin(argv)
    comparison.main("naive", techniques)


if __name__ == "__main__":
    common.define_flags(comparison.Config)
    app.run(main)
