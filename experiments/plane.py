"""The plane of plans that a grid search covers: k1 by k2, once for each anchor."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import tbptt_jax as tbptt
from experiments.tasks import Task
from tbptt_jax import data
from tbptt_jax.types import Anchor

# A plan of which a pass takes longer than so many of full BPTT is left out, unless requested.
MOST_WORK = 30
# So many of the k2 rounds that anchor="loss" makes cost as much as all else; measured, on a CPU.
ROUNDS = 15


class Plane(NamedTuple):
    """The plans of a search; the axes are ascending."""

    k1: list[int]
    k2: list[int]
    anchors: list[Anchor]
    runs: list[tbptt.Truncation]  # the plans that are run, the quickest first
    # For every plan that gets a result, the one that is run for it, mostly itself.
    same: dict[tbptt.Truncation, tbptt.Truncation]
    left_out: list[tbptt.Truncation]  # those that would take too long


def default_steps(length: int, count: int) -> list[int]:
    """So many factors of the length, spaced about evenly on a log scale, the length the last."""
    factors = [c.steps for c in data.candidate_steps(length) if not c.padded]
    aims = [length ** (i / count) for i in range(1, count + 1)]
    # Rounded, as two factors may lie equally far from their aim: then the larger one.
    return sorted({min(factors, key=lambda f: (round(abs(math.log(f / a)), 9), -f)) for a in aims})


def work(plan: tbptt.Truncation, length: int) -> float:
    """About how long a pass takes, in passes of full BPTT."""
    windows = math.ceil(length / plan.k1)
    if plan.anchor == "update":
        return windows * max(plan.k1, min(plan.k2, length)) / length
    span = min(plan.k1 + plan.k2 - 1, length)
    return windows * span / length * max(1.0, plan.k2 / ROUNDS)


def credit_of(plan: tbptt.Truncation, task: Task, stream: bool) -> tuple[int, bytes]:
    """What a training is made of: plans for which this is equal train the same networks.

    It is when updates are made, and the rows of the credit matrix that have a loss. A stream goes
    on after the length of the task, so three lengths are compared.
    """
    length = 3 * task.length if stream else task.length
    matrix = tbptt.credit_matrix(plan, length) > 0
    if task.many_to_one:  # a loss at the end of every window, and of the sequence
        matrix = matrix[[*range(plan.k1 - 1, length - 1, plan.k1), length - 1]]
    return plan.k1, np.packbits(matrix).tobytes()


def make_plane(
    task: Task,
    k1: Sequence[int] | None,
    k2: Sequence[int] | None,
    anchors: list[Anchor],
    count: int,
) -> Plane:
    """The plane over these steps; None: `count` factors of the task's length.

    Where both are given nothing is left out.
    """
    default = default_steps(task.length, count)
    across, up = sorted(set(k1 or default)), sorted(set(k2 or default))
    stream = task.batches("train", 1, None)[0].reset is not None
    first: dict[tuple[int, bytes], tbptt.Truncation] = {}
    same, left_out = {}, []
    for anchor, a, b in itertools.product(anchors, across, up):
        plan = tbptt.Truncation(a, b, anchor)
        run = first.setdefault(credit_of(plan, task, stream), plan)
        if (k1 and k2) or work(run, task.length) <= MOST_WORK:
            same[plan] = run
        else:
            left_out.append(plan)
    runs = sorted(set(same.values()), key=lambda p: (work(p, task.length), p.k1, p.k2))
    return Plane(across, up, anchors, runs, same, left_out)
