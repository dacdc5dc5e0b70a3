"""Invented texts that say what they think in their first words, and nothing after them.

"I love this film" or "I hate this film", and then words drawn without regard to that. Every pass
has new texts, so that there is nothing to learn by heart.
"""

import functools
import math

import numpy as np

import tbptt_jax as tbptt
from experiments.tasks import networks
from experiments.tasks.task import Part, Task
from tbptt_jax import data

OPENINGS = "I {} this film|we {} this story|they all {} it|my friends {} that book|how I {} it"
OPINIONS = "hate loathe dislike despise", "love adore enjoy admire"
NEUTRAL = (
    "the a of and to in on at by from with day house street car table window tree river stone paper"
    " green blue tall old new two three goes stands turns looks opens under over near far then it"
)
WORDS = sorted({*OPENINGS.replace("|", " ").split(), *" ".join((*OPINIONS, NEUTRAL)).split()})
OPENING = max(len(opening.split()) for opening in OPENINGS.split("|"))
PARTS: dict[Part, int] = {"train": 2_000, "valid": 500, "test": 1_000}
BATCH_SIZE, EMBEDDING, HIDDEN = 50, 16, 32


def encode(text: str) -> np.ndarray:
    """Ids of words, int32; 0 is padding."""
    return np.searchsorted(WORDS, text.split()).astype(np.int32) + 1


def invent(rng: np.random.Generator, lengths: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Texts of these lengths as ids, and their labels: 0 opens with hate, 1 with love."""
    openings = [
        [encode(opening.format(word)) for opening in OPENINGS.split("|") for word in words.split()]
        for words in OPINIONS
    ]
    labels = rng.integers(2, size=len(lengths))
    texts = []
    for length, label in zip(lengths, labels, strict=True):
        opening = openings[label][rng.integers(len(openings[label]))]
        filler = rng.choice(encode(NEUTRAL), length - len(opening))
        texts.append(np.concatenate([opening, filler]))
    return texts, labels


def padded(length: int, reach: int) -> int:
    """Steps of a text in its batch."""
    return math.ceil(length / reach) * reach


def batches(
    length: int,
    reach: int,
    share: float,
    seed: int,
    part: Part,
    multiple: int,
    rng: np.random.Generator | None,
) -> list[tbptt.Batch]:
    """A part: texts of `length` words; of those for training a share has `reach` at most."""
    lengths = np.full(PARTS[part], length)
    # Three numbers, so that no part has the texts of a pass, which the trainer draws from two.
    draw = np.random.default_rng((seed, 1, list(PARTS).index(part)))
    if part == "train":
        draw = draw if rng is None else rng
        short = round(share * len(lengths))
        lengths[:short] = draw.integers(OPENING, reach, short, endpoint=True)
    texts, labels = invent(draw, lengths)
    # Few shapes to compile, whatever the truncation.
    multiple = math.lcm(multiple, reach)
    return data.bucketed_batches(texts, labels, batch_size=BATCH_SIZE, multiple=multiple, rng=rng)


def make_task(*, length: int, reach: int, share: float, seed: int, epochs: int) -> Task:
    """The task, with a share of short texts in training; it is evaluated on long ones."""
    return Task(
        name="invented texts",
        step="word",
        length=padded(length, reach),
        steps=reach,
        many_to_one=True,
        batches=functools.partial(batches, length, reach, share, seed),
        network=functools.partial(networks.lstm, EMBEDDING, HIDDEN, 2, symbols=len(WORDS) + 1),
        epochs=epochs,
        learning_rate=5e-3,
        averaging=0.0,  # the parameters as they are: what did not move shows
    )
