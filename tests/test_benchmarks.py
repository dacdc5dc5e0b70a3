"""Benchmarks run, and their sides agree; what they measure is not looked at."""

import pytest

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
