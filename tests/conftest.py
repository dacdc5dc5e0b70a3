"""Reviews that are invented here, a run on them, and scripts that run in this process."""

import runpy
import signal
import sys
import warnings

import numpy as np
import pytest
from absl import app, flags

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


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script in this process and give what it said last; nothing of it stays.

    In a process of its own each would take three seconds.
    """

    def run(name, arguments):
        app.define_help_flags()
        own = set(flags.FLAGS)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                with pytest.raises(SystemExit) as ended:
                    runpy.run_module(f"experiments.{name}", run_name="__main__")
        finally:
            for flag in set(flags.FLAGS) - own:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        said = ended.value.code
        return said if isinstance(said, str) else capsys.readouterr().err

    return run
