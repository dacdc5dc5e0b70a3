"""What do many updates with one step of credit give?

python -m experiments.tbptt_1_1 --task=demand

TBPTT(1, 1) makes an update at every step, with the gradient of that step alone. It is compared with
a longer reach at the same clock, TBPTT(1, 5); longer windows, TBPTT(K, K); and full BPTT.
"""

from experiments import compare
from experiments.tasks import Task
from experiments.technique import Technique
from tbptt_jax import Truncation


def techniques(task: Task, steps: int) -> list[Technique]:
    """From one step of credit to all of them."""
    plans = (1, 1), (1, 5), (steps, steps)
    cut = [Technique(f"TBPTT({k1}, {k2})", Truncation(k1, k2), every=k1) for k1, k2 in plans]
    return [*cut, Technique("full BPTT", Truncation(task.length, task.length))]


if __name__ == "__main__":
    compare.run("tbptt_1_1", techniques)
