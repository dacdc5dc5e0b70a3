"""What a task is."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

import tbptt_jax as tbptt
from tbptt_jax.types import LossFn

Part: TypeAlias = Literal["train", "valid", "test"]


class Score(NamedTuple):
    """How a network is evaluated."""

    name: str  # what the number is
    of: Callable[[Mapping[str, float]], float]  # from what `tbptt.evaluate` returns to the number
    higher: bool  # whether more of it is better
    form: str  # how it is written
    unit: str = ""  # of the number, where it has one

    @property
    def axis(self) -> str:
        """The number and its unit, for an axis."""
        return f"{self.name}\n({self.unit})" if self.unit else self.name

    @property
    def percent(self) -> bool:
        """Whether it is written as a percentage."""
        return self.form.endswith("%")

    def write(self, value: float) -> str:
        """The number as a reader wants it."""
        return format(value, self.form)

    def rank(self, value: float) -> float:
        """The number, more is better."""
        return value if self.higher else -value


def right(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where the class is right, [B, T]."""
    return (outputs.argmax(-1) == targets).astype(outputs.dtype)


ACCURACY = Score("accuracy", lambda means: means["accuracy"], higher=True, form=".2%")


class Task(NamedTuple):
    """Data, network and loss, whatever the truncation; of classes, unless it says otherwise.

    `batches` takes a part, `multiple` and rng to batches, whole sequences or pieces of a stream in
    order; their steps are a multiple of `multiple` where the data are padded or cut anyway. rng
    shuffles what can be shuffled; None: as they are.
    """

    name: str  # on the command line
    step: str  # what a step is, in the singular
    length: int  # T of its longest batches: what full BPTT reaches back
    steps: int  # a usual length of a window
    many_to_one: bool  # a sequence has one target, at its end; else every step has one
    batches: Callable[[Part, int, np.random.Generator | None], list[tbptt.Batch]]
    network: Callable[[int], tbptt.SequenceModel]  # by the seed of its weights
    epochs: int  # as the next two, where nothing else is requested
    learning_rate: float
    averaging: float
    loss: LossFn = optax.losses.softmax_cross_entropy_with_integer_labels  # of each step
    metrics: Mapping[str, LossFn] = {"accuracy": right}  # what else `evaluate` finds
    score: Score = ACCURACY
