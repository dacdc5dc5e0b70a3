"""Reviews that are invented here, and a run on them."""

import numpy as np
import pytest

from tests.command_line import SMALL, run


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The aclImdb layout, with texts whose first word tells the label."""
    root = tmp_path_factory.mktemp("aclImdb")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, word in (("pos", "wonderful"), ("neg", "dreadful")):
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(40):
                filler = " ".join(rng.choice(list("abcdef"), rng.integers(2, 18)))
                (folder / f"{i}_5.txt").write_text(f"{word} {filler}")
    return root


@pytest.fixture(scope="session")
def finished(data_dir, tmp_path_factory):
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    folders = f"--data_dir={data_dir}", f"--output_dir={folder}"
    done = run("experiments.sentiment", *SMALL, "--epochs=9", *folders)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout
