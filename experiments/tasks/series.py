"""Two series, one value ahead after each: half-hours of electricity demand, months of sunspots.

Demand of England and Wales, twelve weeks of 2000 (Taylor 2003), and the mean relative sunspot
numbers of 1749 to 1983, as the package pmdarima carries them. The first part is for training, as
lanes side by side; validation and test go on from what comes before them, which has no losses.
"""

import functools
import gzip
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

import tbptt_jax as tbptt
from experiments.packaged import DataError, PackagedFile
from experiments.tasks import networks
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
    """Megawatts, float32 [T]: the numbers of the one array in the module that holds them.

    Raises:
      DataError: there is no such array, or something else than numbers in it.
    """
    found = re.search(rb"np\.array\(\[([\d,.\s]+)\]\)", content)
    if found is None:
        raise DataError("the demand must stand in one np.array([...]), got none")
    try:
        numbers = np.array([float(x) for x in found[1].split(b",") if x.strip()])
    except ValueError as error:
        raise DataError(
            f"the demand must be numbers with commas between them: {str(error)[:200]}"
        ) from error
    return _checked("demand", numbers)


def parse_sunspots(content: bytes) -> np.ndarray:
    """Sunspot numbers, float32 [T].

    Raises:
      DataError: it is no gzipped text of numbers.
    """
    try:
        numbers = np.array(gzip.decompress(content).split(), np.float64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"the sunspots are not a gzipped text of numbers: {str(error)[:200]}"
        ) from error
    return _checked("sunspots", numbers)


def _checked(what: str, numbers: np.ndarray) -> np.ndarray:
    """The numbers as float32; there is one, and none is below 0, as with counts and power."""
    if not len(numbers):
        raise DataError(f"the {what} must be at least one number, got none")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= np.finfo(np.float32).max)))
    if len(wrong):
        raise DataError(
            f"the {what} must be finite numbers of at least 0, got {numbers[wrong[0]]} in place "
            f"{wrong[0] + 1} of {len(numbers)}"
        )
    return numbers.astype(np.float32)


class Series(NamedTuple):
    """A series, standardised by the part for training.

    Attributes:
      name, step, steps: as of a `Task`.
      values: float32 [T].
      train, valid: values before the first are for training, before the second for validation.
      lanes: how many rows the part for training is laid in.
    """

    name: str
    step: str
    steps: int
    values: np.ndarray
    train: int
    valid: int
    lanes: int


def demand() -> Series:
    """Eight weeks to learn from, two and two to judge by; a day is a window."""
    week = 336
    return _series(
        "demand", "half-hour", 48, parse_demand(DEMAND.read()), 8 * week, 10 * week, lanes=4
    )


def sunspots() -> Series:
    """165 years to learn from, 35 and 35 to judge by; square roots, which vary evenly."""
    values, year = np.sqrt(parse_sunspots(SUNSPOTS.read())), 12
    return _series("sunspots", "month", 132, values, 165 * year, 200 * year, lanes=3)


def _series(
    name: str, step: str, steps: int, values: np.ndarray, train: int, valid: int, lanes: int
) -> Series:
    """The series, standardised by its part for training."""
    if len(values) <= valid:
        raise DataError(
            f"the {name} must be more than {valid} numbers, so that some are left for test, got "
            f"{len(values)}"
        )
    if values[:train].min() == values[:train].max():
        raise DataError(f"the {name} must vary, got {values[0]} throughout the part for training")
    values = (values - values[:train].mean()) / values[:train].std()
    return Series(name, step, steps, values, train, valid, lanes)


def load(read: Callable[[], Series], fast: bool) -> Task:
    """The task of a series; fast: a smaller network, fewer passes."""
    series = read()
    values = series.values[:, None]
    lane = -(-(series.train - 1) // series.lanes)

    def judged(first: int, last: int) -> list[tbptt.Batch]:
        """One row that asks for the values first .. last - 1, after a lane to begin with."""
        begun = values[first - lane - 1 : last]
        batch = tbptt.Batch(begun[None, :-1], begun[None, 1:])
        weights = np.zeros(batch.inputs.shape[:2], np.float32)
        weights[:, lane:] = 1
        return [batch._replace(weights=weights)]

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        del multiple, rng  # there is one batch, the same each time; its last interval may be short
        if part == "valid":
            return judged(series.train, series.valid)
        if part == "test":
            return judged(series.valid, len(values))
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
        score=Score("mean squared error", lambda means: means["loss"], higher=False, form=".4f"),
        epochs=20 if fast else 200,
        learning_rate=1e-2,
        averaging=0.9,
    )


def squared_error(outputs, targets):
    """Of one value, [B, T, 1] to [B, T], in units of the series' variance."""
    return 2 * optax.losses.l2_loss(outputs, targets)[..., 0]


def persistence(task: Task) -> float:
    """The score of "the next value is the last one" on the test part: what is to be beaten."""
    (batch,) = task.batches("test", 1, None)
    errors = np.square(batch.targets - batch.inputs)[..., 0]
    return float(np.average(errors, weights=batch.weights))
