"""What is to be learnt, apart from how: every task that the comparisons know."""

import functools
from collections.abc import Callable

from experiments.tasks import book, digits, reviews, series
from experiments.tasks.task import Score, Task

TASKS: dict[str, Callable[[bool], Task]] = {
    "reviews": reviews.load,
    "digits": digits.load,
    "book": book.load,
    "demand": functools.partial(series.load, series.demand),
    "sunspots": functools.partial(series.load, series.sunspots),
}

__all__ = ["TASKS", "Score", "Task"]
