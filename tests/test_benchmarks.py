"""Benchmarks run, and their sides agree; what they measure is not looked at."""

import importlib.util

import jax
import pytest

from benchmarks import sides
from benchmarks.job import Job
from tests.command_line import run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "row"),
    [
        ("benchmarks.per_loss", ["--steps=100", "--batch=1", "--k2=5", "--block=30"], "| 100 |"),
        ("benchmarks.memory", ["--lengths=150"], "| full BPTT"),
    ],
)
def test_a_benchmark_prints_its_table(module, arguments, row):
    done = run(module, *arguments)
    assert done.returncode == 0, done.stderr
    assert row in done.stdout


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
