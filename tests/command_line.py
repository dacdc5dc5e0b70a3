"""Experiments run as a user runs them, small."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
    "--k1=5",
    "--k2=5",
    "--max_length=40",
    "--embedding=8",
    "--hidden=8",
    "--batch_size=8",
    "--learning_rate=0.02",
    "--dropout=0.1",
    "--word_dropout=0",
    "--averaging=0.5",
]


def command(name, *arguments):
    """The command line of an experiment."""
    # -W error: nothing that a user sees may warn.
    return [sys.executable, "-W", "error", "-m", f"experiments.{name}", *map(str, arguments)]


def run(name, *arguments):
    """Run an experiment to its end."""
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
