"""Two series, one value ahead after each: half-hours of electricity demand, months of sunspots.

Demand of England and Wales, twelve weeks of 2000 (Taylor 2003), and the mean relative sunspot
numbers of 1749 to 1983, as the package pmdarima carries them. The first part is for training, as
lanes side by side; validation and test continue what comes before them, which has no losses.
"""

import functools
import gzip
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

import tbptt_jax as tbptt
from experiments.tasks import networks
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.task import Part, Score, Task
from tbptt_jax import data

DEMAND = PackagedFile(
    module="pmdarima",
    path="datasets/taylor.py",
    sha256="3df2f44f654bfe4338ea39350912140c9710fa776270f50a2529b2f5c87a4e19",
    what="the series of electricity demand",
    requirement="pmdarima==2.1.1",
)
SUNSPOTS = PackagedFile(
    module="pmdarima",
    path="datasets/data/sunspots.txt.gz",
    sha256="da008320ca46c8fb7d4c08a6dc5ba1282be9209c8b943a7ca5ea5d5409d0b36a",
    what="the series of sunspots",
    requirement="pmdarima==2.1.1",
)


def parse_demand(content: bytes) -> np.ndarray:
    """Megawatts, float32 [T]: the numbers of the one array in the module that holds them."""
    (numbers,) = re.findall(rb"np\.array\(\[([\d,.\s]+)\]\)", content)
    return np.array(numbers.split(b","), np.float32)


def parse_sunspots(content: bytes) -> np.ndarray:
    """Sunspot numbers, float32 [T], of a gzipped text."""
    return np.array(gzip.decompress(content).split(), np.float32)


class Series(NamedTuple):
    """A series, standardised by the part for training."""

    name: str
    step: str
    steps: int
    values: np.ndarray  # float32 [T]
    train: int  # values before it are for training
    valid: int  # those from there to before this one are for validation
    lanes: int  # how many rows the part for training is laid in


def demand() -> Series:
    """Eight weeks to train on, two and two to evaluate; a day is a window."""
    week, values = 336, parse_demand(DEMAND.read())
    standard = standardise(values, 8 * week)
    return Series("demand", "half-hour", 48, standard, 8 * week, 10 * week, lanes=4)


def sunspots() -> Series:
    """165 years to train on, 35 and 35 to evaluate; square roots, which vary evenly."""
    year, values = 12, np.sqrt(parse_sunspots(SUNSPOTS.read()))
    standard = standardise(values, 165 * year)
    return Series("sunspots", "month", 132, standard, 165 * year, 200 * year, lanes=3)


def standardise(values: np.ndarray, train: int) -> np.ndarray:
    """Values whose first `train` have mean 0 and variance 1."""
    return (values - values[:train].mean()) / values[:train].std()


ERROR = Score(
    "mean squared error",
    lambda means: means["loss"],
    higher=False,
    form=".4f",
    unit="variance of the series",
)


def load(read: Callable[[], Series], fast: bool) -> Task:
    """The task of a series; fast: a smaller network, fewer passes."""
    series = read()
    values = series.values[:, None]
    lane = -(-(series.train - 1) // series.lanes)

    def after_a_lane(first: int, last: int) -> list[tbptt.Batch]:
        """One row with losses at the values first .. last - 1, after a lane without."""
        steps = values[first - lane - 1 : last]
        batch = tbptt.Batch(steps[None, :-1], steps[None, 1:])
        weights = np.zeros(batch.inputs.shape[:2], np.float32)
        weights[:, lane:] = 1
        return [batch._replace(weights=weights)]

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        del multiple, rng  # there is one batch, the same each time; its last interval may be short
        if part == "valid":
            return after_a_lane(series.train, series.valid)
        if part == "test":
            return after_a_lane(series.valid, len(values))
        (whole,) = data.batchify(values[: series.train], batch_size=series.lanes, steps=lane)
        return [whole._replace(reset=None)]

    return Task(
        name=series.name,
        step=series.step,
        length=lane,
        steps=series.steps,
        many_to_one=False,
        batches=batches,
        network=functools.partial(networks.lstm, 1, 16 if fast else 32, 1),
        loss=squared_error,
        metrics={},
        score=ERROR,
        epochs=20 if fast else 200,
        learning_rate=1e-2,
        averaging=0.9,
    )


def squared_error(outputs, targets):
    """Of one value, [B, T, 1] to [B, T], in units of the series' variance."""
    return 2 * optax.losses.l2_loss(outputs, targets)[..., 0]


def persistence(task: Task) -> float:
    """The persistence baseline: the test error of predicting each value by the one before it."""
    (batch,) = task.batches("test", 1, None)
    errors = np.square(batch.targets - batch.inputs)[..., 0]
    return float(np.average(errors, weights=batch.weights))
