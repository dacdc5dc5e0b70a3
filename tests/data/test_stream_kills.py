"""Killed where a pass or a document ends, a training on a stream ends as one left alone."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.command_line import ROOT
from tests.data import stream_training


def start(files: pathlib.Path, folder: pathlib.Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.data.stream_training", str(files), str(folder)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def borders(files: pathlib.Path) -> list[int]:
    """How many batches were done when a pass ended, and when a lane began another document."""
    stream, found, before = stream_training.make_stream(files), [], (0, 2)
    for number, _ in enumerate(stream, 1):
        saved = stream.state()
        if (now := (saved["passes"], saved["begun"])) != before:
            found.append((number, now[0] != before[0]))
        before = now
    passes = [number for number, is_pass in found if is_pass]
    documents = [number for number, is_pass in found if not is_pass]
    return sorted({*passes, *documents[1::3]})


@pytest.mark.slow
def test_kills_at_the_borders_of_passes_and_documents_change_nothing(tmp_path):
    files, rng = tmp_path / "files", np.random.default_rng(0)
    files.mkdir()
    for number, size in enumerate((50, 31, 67)):
        np.save(files / f"{number}.npy", rng.integers(0, 256, size, dtype=np.uint8))
    alone = start(files, tmp_path / "alone").communicate()[0].splitlines()
    assert alone[-1].startswith("end ")
    points = borders(files)
    assert len(points) >= 4
    lines: list[str] = []
    for at in [*points, None]:
        process = start(files, tmp_path / "run")
        assert process.stdout is not None
        lines = [line.strip() for line in itertools.takewhile(
            lambda line, at=at: line.strip() != str(at), process.stdout
        )]  # fmt: skip
        if at is not None:
            process.kill()  # while the batch after it is trained on or saved
        process.communicate()
    assert lines[-1] == alone[-1]
    assert len(lines) < len(alone)
