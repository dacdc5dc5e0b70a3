"""What every side of a comparison is to do, and the numbers that it is given."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[], float]
RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Job:
    """An LSTM and a linear readout learn `length` steps by TBPTT(k1, k2), squared error and SGD.

    The rows are sequences: the carry begins at zero in each call and runs through its windows.
    `networks`, if not 0: so many of them, which differ in nothing.
    `batches`, if not 0: an epoch of the sentiment job instead, its first so many batches.
    """

    rows: int = 0
    features: int = 0
    hidden: int = 0
    length: int = 0
    k1: int = 0
    k2: int = 0
    networks: int = 0
    batches: int = 0


class Problem(NamedTuple):
    """The same numbers for every side: gates stand in the order i, f, g, o."""

    x: np.ndarray
    y: np.ndarray
    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    out: np.ndarray


def problem(job: Job) -> Problem:
    """Random data and weights."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    gates, scale = 4 * job.hidden, job.hidden**-0.5
    return Problem(
        normal(job.rows, job.length, job.features),
        normal(job.rows, job.length, 1),
        normal(job.features, gates, scale=scale),
        normal(job.hidden, gates, scale=scale),
        normal(gates, scale=scale),
        normal(job.hidden, 1, scale=scale),
    )


def windows(job: Job, *arrays: Any) -> list[tuple[Any, ...]]:
    """The arrays in pieces of k1 steps."""
    return [
        tuple(a[:, start : start + job.k1] for a in arrays)
        for start in range(0, job.length, job.k1)
    ]


def cell_params(given: Problem) -> dict[str, Any]:
    """The weights of flax's OptimizedLSTMCell and nnx.Linear."""
    return {
        "core": {
            "dense_i": {"kernel": given.kernel},
            "dense_h": {"kernel": given.recurrent, "bias": given.bias},
        },
        "readout": {"kernel": given.out, "bias": np.zeros(1, np.float32)},
    }


def epoch_batches(job: Job) -> tuple[Any, Any, Any, list[Any]]:
    """The sentiment job: its configuration, task and technique, and the first batches of it."""
    from experiments import review_training
    from experiments.tasks import reviews

    config = reviews.Config()
    parts, vocabulary = reviews.load_texts(config)
    task = reviews.make_task(config, parts, len(vocabulary))
    technique = review_training.technique(config)
    batches = technique.batches(task, "train", np.random.default_rng(0))[: job.batches]
    return config, task, len(vocabulary), batches
