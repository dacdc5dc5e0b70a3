"""Benchmarks run, and their sides agree; what they measure is not looked at."""

import importlib.util

import jax
import numpy as np
import pytest

from benchmarks import sides
from benchmarks.job import Job
from experiments.tasks.imdb import Texts
from experiments.tasks.task import Part
from tests.command_line import ROOT, run


def table(module, *arguments):
    """The numbers of each row of the table that a benchmark prints, by the row's first cell."""
    done = run(f"benchmarks.{module}", *arguments)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line[:1] == "|"]
    assert len({len(row) for row in rows}) == 1
    return {
        name.strip(): [float(cell.split(" to ")[0].replace(",", "")) for cell in cells]
        for name, *cells in rows[2:]
    }


@pytest.mark.slow
def test_the_price_of_per_loss_windows_is_a_table_of_ratios():
    found = table("per_loss", "--steps=100", "--batch=1", "--k2=5", "--block=30")
    ((batch, k2, _, rounds, _, re_unrolled, ratio),) = found.values()
    assert (list(found), batch, k2) == (["100"], 1, 5)
    assert ratio == pytest.approx(re_unrolled / rounds, abs=0.06, rel=0.02)


@pytest.mark.slow
def test_memory_grows_with_the_window_and_not_with_the_sequence():
    found = table("memory", "--lengths=200,400")
    short, long = found["full BPTT"]
    assert long - short > 4  # MiB, of 200 steps more
    short, long = found["k1 = k2 = 100"]
    assert abs(long - short) < 0.2


@pytest.mark.slow
def test_checkouts_are_compared_in_pairs_of_processes():
    ((name, found),) = table("commits", str(ROOT), "--rows=single, (1,", "--pairs=1").items()
    assert name == "single, (1, 16, 32)"
    assert found[1] == found[2] > 0  # of one pair, median and range


# Keras begins each window with an empty carry, so it agrees on one window only.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("k1", "length", "peers"),
    [(4, 4, ["keras"]), (4, 12, ["torch", "flax scan", "nnx.RNN"]), (1, 5, ["torch", "nnx.RNN"])],
)
def test_the_peers_train_as_we_do(k1, length, peers):
    job = Job(rows=2, features=3, hidden=4, length=length, k1=k1, k2=k1)
    with jax.numpy_rank_promotion("allow"):  # Keras cannot do without
        runs = {name: sides.make(name, job) for name in ("ours", *peers) if can_run(name)}
        # The losses of later calls are those of parameters that earlier ones have trained.
        losses = {name: [side() for _ in range(3)] for name, side in runs.items()}
    for name in runs:
        assert losses[name] == pytest.approx(losses["ours"], rel=1e-4), name


def can_run(name):
    return name not in ("torch", "keras") or importlib.util.find_spec(name) is not None


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="only with [bench]")
@pytest.mark.parametrize(("k1", "k2"), [(1, 3), (2, 5), (3, 4)])
def test_pytorch_by_hand_looks_back_as_we_do(k1, k2):
    job = Job(rows=2, features=3, hidden=4, length=12, k1=k1, k2=k2)
    ours, torch = (sides.make(name, job) for name in ("ours", "torch"))
    assert [ours() for _ in range(3)] == pytest.approx([torch() for _ in range(3)], rel=1e-4)


def opinions(rows):
    """Every text has the same words; the pairs that they form say whether it is in favour."""
    texts = ["good. bad. good! bad!", "good! bad! good. bad."] * rows
    return Texts(texts, np.tile(np.array([1, 0], np.int32), rows))


def test_pairs_tell_what_words_do_not():
    pytest.importorskip("sklearn", reason="only with [bench] or [series]")
    from benchmarks import tfidf

    reviews: dict[Part, Texts]
    reviews = {"train": opinions(20), "valid": opinions(2), "test": opinions(5)}
    found = {name: tfidf.evaluate(reviews, ngrams)[1] for name, ngrams in tfidf.FEATURES.items()}
    assert found == {"words": 0.5, "words and pairs": 1.0}


def test_tfidf_takes_the_strength_that_is_best_on_the_validation_texts(monkeypatch):
    pytest.importorskip("sklearn", reason="only with [bench] or [series]")
    from benchmarks import tfidf

    # So strong a regularization that the intercept decides: all but one text are negative.
    monkeypatch.setattr(tfidf, "STRENGTHS", (1e-9, 1.0))
    texts, labels = ["bad"] * 5 + ["good"] * 3, np.array([0] * 5 + [1] * 3, np.int32)
    train = Texts(texts, labels)
    negative = Texts(["bad"], np.array([0], np.int32))
    for valid, found in ((train, (1.0, 1.0)), (negative, (1e-9, 0.625))):
        assert tfidf.evaluate({"train": train, "valid": valid, "test": train}, (1, 1)) == found
