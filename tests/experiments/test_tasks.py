"""The tasks: their loaders on small contents, the packaged data, and the batches they make."""

import gzip
import hashlib
import importlib.machinery
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import compare
from experiments.files import DataError
from experiments.tasks import TASKS, book, digits, packaged, series
from experiments.tasks.networks import Dropout
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.task import Part

PARTS: tuple[Part, ...] = ("train", "test")
# name: batches for training [B, T], for test, steps with a loss in the test part
PACKAGED = {
    "digits": ((80, 50, 784), (10, 50, 784), 500),
    "book": ((34, 32, 500), (2, 32, 500), 29_999),
    "demand": ((1, 4, 672), (1, 1, 1344), 672),
    "sunspots": ((1, 3, 660), (1, 1, 1080), 420),
}


def packed(content):
    # Without the time, which would give the test another name in each of pytest's workers.
    return gzip.compress(content, mtime=0)


def digit_rows(per_digit):
    rows = [
        [*(pixel % 256 for pixel in range(i, i + 784)), digit]
        for digit in range(10)
        for i in range(per_digit)
    ]
    return packed("\n".join(",".join(map(str, row)) for row in rows).encode())


def test_digits_are_rows_of_pixels_and_a_digit():
    images, labels = digits.parse(digit_rows(2))
    assert images.shape == (20, 28, 28)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[1, 0, :3], np.array([1, 2, 3]) / 255)
    np.testing.assert_allclose(images[1, 1, 0], 29 / 255)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 2))


def test_every_digit_has_its_share_of_each_part():
    labels = np.repeat(np.arange(10), 30)
    parts = digits.split(labels)
    assert list(parts) == ["train", "valid", "test"]
    for rows, size in zip(parts.values(), (24, 3, 3), strict=True):
        np.testing.assert_array_equal(np.bincount(labels[rows]), [size] * 10)
    together = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(300))


def test_the_book_is_what_stands_in_the_first_triple_quotes():
    assert book.parse(b'import x\nBible(\n"""\nIn the beginning\n""", {"""a""": 1})') == (
        "In the beginning"
    )


def test_the_book_is_split_in_order_and_goes_to_ids_and_back():
    text = "abcæ" * 100
    parts = book.split(text)
    assert parts.characters == "abcæ"
    assert [len(ids) for ids in parts.parts.values()] == [360, 20, 20]
    assert "".join(parts.decode(ids) for ids in parts.parts.values()) == text
    np.testing.assert_array_equal(parts.encode("æa"), [3, 0])
    with pytest.raises(DataError, match=r"the book has no \['x'\]"):
        parts.encode("abx")


def test_every_character_is_asked_for_once_in_a_pass_wherever_it_begins():
    text = book.split("".join(chr(97 + i % 26) for i in range(26 * 200)))
    for rng in (None, np.random.default_rng(3)):
        batches = book.batches(text, 50, "train", 20, rng)
        assert {batch.inputs.shape for batch in batches} == {(book.LANES, 40)}
        asked = sum(int(batch.mask.sum()) for batch in batches if batch.mask is not None)
        assert asked == len(text.parts["train"]) - 1
        for batch in batches:
            # The next letter of the alphabet, but where the stream was joined end to start.
            follows = batch.targets == (batch.inputs + 1) % 26
            assert (~follows & batch.mask).sum() <= 1


def test_demand_is_read_and_not_run():
    source = b"raise SystemExit\nrslt = np.array([\n    22262, 21756,\n 22247.5]).astype(dtype)"
    np.testing.assert_array_equal(series.parse_demand(source), [22262, 21756, 22247.5])


def test_sunspots_are_a_gzipped_text_of_numbers():
    np.testing.assert_array_equal(
        series.parse_sunspots(packed(b" 58.0  62.6\n 70.0")),
        np.array([58, 62.6, 70], np.float32),
    )


def invented():
    values = np.arange(100, dtype=np.float32)
    return series.Series("demand", "half-hour", 10, values, train=60, valid=80, lanes=3)


def test_a_series_is_asked_one_value_ahead_and_each_value_in_one_part():
    task = series.load(invented, fast=True)
    asked = {}
    for part in ("train", "valid", "test"):
        (batch,) = task.batches(part, 1, None)
        weights = batch.weights
        if weights is None:
            weights = np.ones(batch.inputs.shape[:2]) if batch.mask is None else batch.mask
        inputs, targets = batch.inputs[..., 0], batch.targets[..., 0]
        np.testing.assert_array_equal((targets - inputs)[weights > 0], 1)
        asked[part] = sorted(targets[weights > 0].astype(int).tolist())
    assert asked["train"] == list(range(1, 60))
    assert asked["valid"] == list(range(60, 80))
    assert asked["test"] == list(range(80, 100))


def test_comparisons_offer_every_task():
    field = typing.get_type_hints(compare.Config)["task"]
    assert set(typing.get_args(field)) == set(TASKS)


def test_a_file_is_known_by_its_hash_and_a_package_found_without_running_it(monkeypatch, tmp_path):
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was run')")
    (package / "numbers.txt").write_bytes(b"1 2 3")
    known = PackagedFile(
        module="made_up_package",
        path="numbers.txt",
        sha256=hashlib.sha256(b"1 2 3").hexdigest(),
        what="the numbers",
        requirement="made-up-package==1.0",
    )
    with pytest.raises(DataError, match=r'not installed; pip install "made-up-package==1.0"$'):
        known.read()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert known.read() == b"1 2 3"
    with pytest.raises(DataError, match=r"made-up-package holds no other.txt; pip install"):
        known._replace(path="other.txt").read()
    with pytest.raises(DataError, match=r"is not the known file .* --force-reinstall"):
        known._replace(sha256="0").read()


def test_what_is_no_package_is_not_installed(monkeypatch):
    spec = importlib.machinery.ModuleSpec("numbers", None)
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"the digits are not installed"):
        digits.FILE.read()


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_the_packaged_data_are_those_described(name):
    task = TASKS[name](False)
    train, test, asked = PACKAGED[name]
    for part, (count, *shape) in zip(PARTS, (train, test), strict=True):
        batches = task.batches(part, 1, None)
        assert len(batches) == count
        assert list(batches[0].inputs.shape[:2]) == shape
    assert task.steps < task.length
    assert task.length == max(b.inputs.shape[1] for b in task.batches("train", 1, None))
    batches = task.batches("test", 1, None)
    weights = [b.mask if b.weights is None else b.weights for b in batches]
    assert sum(w.sum() for w in weights) == asked


@pytest.mark.parametrize(("rate", "share"), [(0.5, 128), (0.3, 77), (1e-4, 1), (0.9999, 255)])
def test_dropout_drops_the_nearest_share_and_keeps_the_mean(rate, share):
    share /= 256
    layer = Dropout(rate, rngs=nnx.Rngs(0))
    inputs = jnp.full((201, 7, 43), 3.0)  # no multiple of the four numbers that a word gives

    outputs = np.asarray(layer(inputs))
    gradient = nnx.grad(lambda layer, inputs: layer(inputs).sum(), argnums=1)(layer, inputs)
    gradient = np.asarray(gradient)
    for found, kept in ((outputs, 3 / (1 - share)), (gradient, 1 / (1 - share))):
        np.testing.assert_allclose(np.unique(found), [0, kept], rtol=1e-6)
        deviation = (share * (1 - share) / inputs.size) ** 0.5
        assert abs(np.mean(found == 0) - share) < 5 * deviation
    # Another draw, and neighbours within one draw, which come of one random word, do not agree.
    again = np.asarray(layer(inputs))
    chance = share**2 + (1 - share) ** 2
    for other in (again, np.roll(outputs, 1, axis=-1)):
        agreed = np.mean((outputs == 0) == (other == 0))
        assert abs(agreed - chance) < 5 * (chance * (1 - chance) / inputs.size) ** 0.5 + 1e-9


def test_dropout_leaves_alone_what_is_not_trained_or_has_no_rate():
    inputs = jnp.arange(30.0).reshape(5, 6)
    layer = Dropout(0.5, rngs=nnx.Rngs(0))
    layer.eval()
    np.testing.assert_array_equal(layer(inputs), inputs)
    np.testing.assert_array_equal(Dropout(0.0, rngs=nnx.Rngs(0))(inputs), inputs)
