"""What a task is."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np

import tbptt_jax as tbptt
from tbptt_jax.types import LossFn

Part: TypeAlias = Literal["train", "valid", "test"]


class Score(NamedTuple):
    """How a network is judged.

    Attributes:
      name: what the number is.
      of: from what `tbptt.evaluate` returns to the number.
      higher: whether more of it is better.
      form: how it is written.
    """

    name: str
    of: Callable[[Mapping[str, float]], float]
    higher: bool
    form: str

    def write(self, value: float) -> str:
        """The number as a reader wants it."""
        return format(value, self.form)

    def rank(self, value: float) -> float:
        """The number, more is better."""
        return value if self.higher else -value


class Task(NamedTuple):
    """Data, network and loss, whatever the truncation.

    Attributes:
      name: what it is called on the command line.
      step: what a step is, in the singular.
      length: T of its longest batches: what full BPTT reaches back.
      steps: a window to begin with.
      many_to_one: whether a sequence has one target, asked at its end; else every step has one.
      batches: `(part, multiple, rng)` to the batches of a part, whole sequences or pieces of a
        stream in order; their steps are a multiple of `multiple` where the data are padded or cut
        anyway. rng shuffles what can be shuffled; None: as they are.
      network: a network, by the seed of its weights.
      loss: of each step.
      metrics: what else `evaluate` finds.
      score: how it is judged.
      epochs, learning_rate, averaging: of training, where nothing else is asked for.
    """

    name: str
    step: str
    length: int
    steps: int
    many_to_one: bool
    batches: Callable[[Part, int, np.random.Generator | None], list[tbptt.Batch]]
    network: Callable[[int], tbptt.SequenceModel]
    loss: LossFn
    metrics: Mapping[str, LossFn]
    score: Score
    epochs: int
    learning_rate: float
    averaging: float


def right(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where the class is right, [B, T]."""
    return (outputs.argmax(-1) == targets).astype(outputs.dtype)


ACCURACY = Score("accuracy", lambda means: means["accuracy"], higher=True, form=".2%")
