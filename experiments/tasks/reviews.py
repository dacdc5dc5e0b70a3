"""The reviews: a text's words, and at its end whether they are in favour."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

import tbptt_jax as tbptt
from experiments.config import RunOptions, fast_values, flag
from experiments.tasks import imdb
from experiments.tasks.imdb import Texts
from experiments.tasks.networks import Dropout, remember
from experiments.tasks.task import Part, Task
from tbptt_jax import data

CELLS = {"lstm": tbptt.LSTM, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What is trained on reviews, and how."""

    k1: int = flag(30, "Words between parameter updates.", 1)
    k2: int = flag(30, "Words that the gradient reaches back.", 1)
    anchor: Literal["update", "loss"] = flag(
        "update", "What k2 is counted from: the end of the window, or each loss."
    )
    loss_at: Literal["chunk", "end"] = flag(
        "chunk", "Ask for the sentiment after every k1 words, or at the text's end only."
    )
    cell: Literal["lstm", "gru", "rnn"] = flag("lstm", "Recurrent cell.")
    embedding: int = flag(64, "Size of a word's embedding.", 1, fast=32)
    hidden: int = flag(64, "Units of the cell.", 1, fast=32)
    dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "What embedding and cell compute in; all that is kept stays in float32.",
        added=True,
    )  # fmt: skip
    dropout: float = flag(
        0.5, "Share of embeddings and outputs dropped while training, in 256ths.", 0, below=1,
        fast=0.3,
    )  # fmt: skip
    word_dropout: float = flag(0.2, "Share of whole words dropped while training.", 0, below=1)
    vocabulary: int = flag(10_000, "Ids; rarer words share one.", 3, fast=5_000)
    max_length: int = flag(420, "Longer texts keep their last so many words.", 1, fast=120)
    epochs: int = flag(3, "Passes over the training texts.", 1, fast=4)
    batch_size: int = flag(64, "Texts in a batch.", 1)
    learning_rate: float = flag(
        2e-3, "Adam's, at first; a cosine takes it to 0 by the end.", above=0, fast=5e-3
    )
    clip: float = flag(1.0, "Largest norm of a gradient.", above=0)
    averaging: float = flag(
        0.998, "Decay, per batch, of the average of the parameters, which is what is saved.", 0,
        below=1, fast=0.95,
    )  # fmt: skip
    seed: int = flag(0, "Of the weights, the order of the texts and the dropout.", 0)
    data_dir: str | None = flag(None, "The aclImdb folder, instead of the installed package.", 1)
    fast: bool = flag(False, "A small run of under a minute: fewer, shorter texts.")


def padding(multiple: int) -> int:
    """Padded lengths are multiples of this.

    Of `multiple`, so that the last words of every text fall in the last window; and not too small,
    since each length is compiled once.
    """
    return multiple * math.ceil(60 / multiple)


def load_texts(config: Config) -> tuple[dict[Part, Texts], imdb.Vocabulary]:
    """The texts of each part as ids; the vocabulary is that of the part for training.

    Raises:
      DataError: there are none.
    """
    step = 6 if config.fast else 1  # spread over the labels, which stand in blocks
    loaded = imdb.load(config.data_dir)
    words = {part: [imdb.tokenize(x) for x in both.texts[::step]] for part, both in loaded.items()}
    vocabulary = imdb.Vocabulary.build(words["train"], config.vocabulary)
    parts: dict[Part, Texts] = {}
    for part, both in loaded.items():
        ids = [vocabulary.encode(text, config.max_length) for text in words[part]]
        parts[part] = Texts(ids, both.labels[::step])
    return parts, vocabulary


def network(config: Config, words: int, seed: int) -> tbptt.SequenceModel:
    """Embedding, one recurrent cell, two classes; dropout on both sides of the cell."""
    rngs = nnx.Rngs(seed)
    dtype = jnp.dtype(config.dtype)
    options = {"bias_init": remember} if config.cell == "lstm" else {}
    return tbptt.SequenceModel(
        encoder=nnx.Sequential(
            nnx.Embed(words, config.embedding, dtype=dtype, rngs=rngs),
            nnx.Dropout(config.word_dropout, broadcast_dims=(-1,), rngs=rngs),
            Dropout(config.dropout, rngs=rngs),
        ),
        core=CELLS[config.cell](config.embedding, config.hidden, dtype=dtype, rngs=rngs, **options),
        readout=nnx.Sequential(
            Dropout(config.dropout, rngs=rngs), nnx.Linear(config.hidden, 2, rngs=rngs)
        ),
    )


def make_task(config: Config, parts: Mapping[Part, Texts], words: int) -> Task:
    """The task of a run; without texts it has a network all the same."""

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        return data.bucketed_batches(
            parts[part].texts,
            parts[part].labels,
            batch_size=config.batch_size,
            multiple=padding(multiple),
            rng=rng,
        )

    return Task(
        name="reviews",
        step="word",
        length=config.max_length,
        steps=min(30, config.max_length // 4),
        many_to_one=True,
        batches=batches,
        network=functools.partial(network, config, words),
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        averaging=config.averaging,
    )


def config(fast: bool) -> Config:
    """The configuration of the comparisons.

    Fast: half the passes, and the last 60 words, which is one shape to compile, without dropout,
    which is a third of what there is to compile.
    """
    if not fast:
        return Config()
    small = {"max_length": 60, "epochs": 2, "dropout": 0.0, "word_dropout": 0.0}
    return Config(fast=True, **{**fast_values(Config), **small})


def load(fast: bool) -> Task:
    """The task with its packaged texts."""
    chosen = config(fast)
    parts, vocabulary = load_texts(chosen)
    return make_task(chosen, parts, len(vocabulary))
