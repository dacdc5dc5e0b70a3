"""The job of every side of a comparison, and its numbers."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # PyTorch's side imports nothing of ours, except for an epoch
    from experiments.tasks.reviews import Config
    from experiments.tasks.task import Task
    from tbptt_jax import Batch

Run = Callable[[], float]
RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Job:
    """An LSTM and a linear readout learn `length` steps by TBPTT(k1, k2), squared error and SGD.

    The rows are sequences: in each call the carry starts at zero and runs through the windows.

    Attributes:
      rows, features, hidden: sizes of the batch, the inputs and the carry.
      length, k1, k2: steps of a call, of an interval and of a reach.
      networks: if not 0, the number of equal networks that learn.
      batches: if not 0, the job is the first so many batches of an epoch of sentiment instead.
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
    """Data and weights, the same for every side; the columns of the gates are i, f, g, o.

    Attributes:
      x, y: [rows, length, features] and [rows, length, 1].
      kernel, recurrent, bias: of the cell, [features or hidden, 4 * hidden] and [4 * hidden].
      out: of the readout, [hidden, 1].
    """

    x: np.ndarray
    y: np.ndarray
    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    out: np.ndarray


def problem(job: Job) -> Problem:
    """Random data and weights, float32."""
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
    """The arrays [rows, length, ...] cut into windows of k1 steps."""
    return [
        tuple(a[:, start : start + job.k1] for a in arrays)
        for start in range(0, job.length, job.k1)
    ]


def cell_params(numbers: Problem) -> dict[str, Any]:
    """The parameters of flax's OptimizedLSTMCell and nnx.Linear, as nested dicts."""
    return {
        "core": {
            "dense_i": {"kernel": numbers.kernel},
            "dense_h": {"kernel": numbers.recurrent, "bias": numbers.bias},
        },
        "readout": {"kernel": numbers.out, "bias": np.zeros(1, np.float32)},
    }


class Epoch(NamedTuple):
    """The sentiment job: its configuration, task, number of words and first batches."""

    config: "Config"
    task: "Task"
    words: int
    batches: "list[Batch]"


def epoch(job: Job) -> Epoch:
    """The first batches of the sentiment job."""
    from experiments import review_training
    from experiments.tasks import reviews

    config = reviews.Config()
    parts, vocabulary = reviews.load_texts(config)
    task = reviews.make_task(config, parts, len(vocabulary))
    technique = review_training.technique(config)
    batches = technique.batches(task, "train", np.random.default_rng(0))[: job.batches]
    return Epoch(config, task, len(vocabulary), batches)
