"""Scripts run as a user runs them, small."""

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


def command(module, *arguments):
    """The command line of a script."""
    # -W error: nothing that a user sees may warn.
    return [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]


def start(line, folder=ROOT):
    """A process that says nothing here."""
    return subprocess.Popen(
        line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(module, *arguments):
    """Run a script to its end."""
    return subprocess.run(
        command(module, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
