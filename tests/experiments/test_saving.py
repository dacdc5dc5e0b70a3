"""What a training does when a loss is not finite, or when it cannot be saved."""

import contextlib
import gc
import io
import shutil
import signal
import subprocess
import sys
import time
from typing import Literal

import jax
import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import trainer
from experiments.config import RunOptions
from experiments.run import RunFolder
from experiments.saving import Saving, Signals
from experiments.technique import Recipe, Technique
from experiments.trainer import Network, Trainer
from tests.command_line import ROOT
from tests.experiments.test_trainer import TASK

TECHNIQUE = Technique("cut", tbptt.Truncation(6, 6))
RECIPE = Recipe(epochs=3, learning_rate=1e-2, averaging=0.5)
# Window 3 of 5, in every epoch.
SAID = r"epoch 1, batch 1 of 1, window 3, steps 13 to 18, after update 2: the loss is inf, the norm"


def spoilt(task):
    """The task with a target whose squared error is infinite, step 15 of its first row."""

    def batches(part, multiple, rng):
        first, *others = task.batches(part, multiple, rng)
        if part == "train":
            targets = np.array(first.targets)
            targets[0, 14] = 1e30
            first = first._replace(targets=targets)
        return [first, *others]

    return task._replace(batches=batches)


def saving(folder, on_nonfinite: Literal["stop", "skip"] = "stop"):
    return Saving(folder, RunOptions(on_nonfinite=on_nonfinite), None, "RESUME")


def bits(trained):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained.state.params)]


def test_it_stops_saved_and_resumes_without_what_is_not_finite(tmp_path, capsys):
    task = spoilt(TASK)
    with pytest.raises(SystemExit, match=SAID) as stopped:
        trainer.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "a"))
    message = str(stopped.value)
    assert "; it was not trained on\nLook into the data or lower the learning rate." in message
    assert message.endswith("RESUME --on_nonfinite=skip")
    resumed = trainer.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "a", "skip"))
    assert "resuming after 4 updates" in capsys.readouterr().out
    skipped = trainer.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "b", "skip"))
    assert bits(resumed) == bits(skipped)
    assert [row["skipped"] for row in skipped.history] == [1, 1, 1]
    assert [row["updates"] for row in skipped.history] == [4, 8, 12]
    assert all(np.isfinite(row["train_loss"]) for row in skipped.history)
    assert "warning: epoch 3, batch 1 of 1, window 3" in capsys.readouterr().out


def test_many_networks_stop_or_skip_it_too(tmp_path):
    many = Trainer(spoilt(TASK), RECIPE, [Network(0.01, 0), Network(0.01, 1)])
    said = f"cut, learning rate 0.01, seed 0, {SAID}"
    with pytest.raises(SystemExit, match=said):
        many.fit(TECHNIQUE, saving(tmp_path / "a"), "together")
    found = many.fit(TECHNIQUE, saving(tmp_path / "a", "skip"), "together")
    for network in found:
        assert [row["skipped"] for row in network.history] == [1, 1, 1]
        assert [row["updates"] for row in network.history] == [4, 8, 12]
    assert np.isfinite(many.scores(found, "test", "together")).all()


def test_what_cannot_be_saved_is_reported_and_trained_all_the_same(tmp_path, monkeypatch, capsys):
    expected = trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path / "b"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    trained = trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path / "a"))
    assert bits(trained) == bits(expected)
    warned = capsys.readouterr().err
    assert "warning: [Errno 28] checkpoint 0 needs " in warned
    assert "bytes and 1,000 are left; make room. There is none before it" in warned


@pytest.mark.parametrize("training", [True, False])
def test_a_signal_waits_for_the_batch_of_a_training(training, capsys):
    numbers, left = (signal.SIGINT, signal.SIGTERM), []
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        signals = Signals(left.append)
        with signals.training() if training else contextlib.nullcontext():
            signal.raise_signal(signal.SIGTERM)
            assert left == [signal.SIGTERM] * (not training)
            if training:
                signals.obey(signals.noted)
        assert left == [signal.SIGTERM]
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    said = "stopping after this batch (once more: at once)"
    assert (said in capsys.readouterr().err) == training


def test_a_signal_while_garbage_is_collected_is_obeyed_when_the_training_begins():
    numbers, left = (signal.SIGINT, signal.SIGTERM), []
    handlers = [signal.getsignal(number) for number in numbers]

    def collect(phase, info):
        if phase == "start" and not left:
            signal.raise_signal(signal.SIGTERM)

    def leave(number):
        left.append(number)
        raise SystemExit(number)

    try:
        signals = Signals(leave)
        gc.callbacks.append(collect)
        gc.collect()
        gc.callbacks.remove(collect)
        assert left == []
        with pytest.raises(SystemExit), signals.training():
            raise AssertionError("the training began")
        assert left == [signal.SIGTERM]
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


class Writes(io.StringIO):
    """A stream that knows what each call wrote."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def write(self, text):
        self.calls.append(text)
        return super().write(text)


def test_what_a_signal_says_is_one_write_so_that_no_thread_writes_into_its_line(
    tmp_path, monkeypatch
):
    stream = Writes()
    monkeypatch.setattr(sys, "stderr", stream)
    numbers = signal.SIGINT, signal.SIGTERM
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        with Signals(lambda number: None).training():
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    with pytest.raises(SystemExit):
        RunFolder(tmp_path).leave(signal.SIGTERM)
    said = [call for call in stream.calls if call]
    assert len(said) == 2
    assert all(call.endswith("\n") for call in said)


# A training of a batch each 50 ms whose checkpoints hang, as on a network file system that is gone.
HANGS = """
import os, pathlib, sys, threading, time
import numpy as np
from experiments import saving
from experiments.config import RunOptions
from tbptt_jax.checkpoints import store

def hang(*_):
    os.write(1, b"writes\\n")
    threading.Event().wait()

def leave(number):
    sys.stderr.write("leaves\\n")
    sys.exit(128 + number)

store.write, saving.GRACE = hang, float(sys.argv[2])
signals = saving.Signals(leave)
kept = saving.Saving(pathlib.Path(sys.argv[1]), RunOptions(checkpoint_every=0), signals, "RESUME")
with kept.running({}, dict):
    for batch in range(1000):
        os.write(1, b"trains\\n")
        time.sleep(0.05)
        kept.after_batch(lambda: ({"a": np.ones(3)}, batch))
"""
# Compiled code runs in the main thread, which no handler interrupts.
COMPUTES = HANGS.replace("time.sleep(0.05)", "np.linalg.svd(np.ones((8000, 8000)))")


def hanging(tmp_path, grace, code=HANGS):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(grace)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process, line):
    while process.stdout.readline() != f"{line}\n":
        assert process.poll() is None, process.communicate()


def seconds_to_end(process, *numbers, apart=0.002):
    begun = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(apart)
    _, errors = process.communicate(timeout=60)
    assert "leaves" in errors.splitlines(), errors
    assert "Traceback" not in errors
    return time.monotonic() - begun, errors


@pytest.mark.parametrize("apart", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_whose_checkpoint_hangs(first, apart, tmp_path):
    process = hanging(tmp_path, grace=1000)
    read_until(process, "writes")
    # Another one: of two alike that wait for a busy process the kernel delivers one.
    both = {signal.SIGINT, signal.SIGTERM}
    (second,) = both - {first}
    seconds, _ = seconds_to_end(process, first, second, apart=apart)
    assert seconds < 5
    assert process.returncode in {128 + number for number in both}


def test_a_second_signal_ends_a_process_that_computes(tmp_path):
    process = hanging(tmp_path, grace=1000, code=COMPUTES)
    read_until(process, "trains")
    time.sleep(0.5)
    # Far enough apart: of two that wait for a busy process the kernel delivers either first.
    seconds, _ = seconds_to_end(process, signal.SIGINT, signal.SIGTERM, apart=0.3)
    assert seconds < 5
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("wait_for", ["trains", "writes"])
def test_after_the_first_signal_a_save_has_its_time_and_no_more(wait_for, tmp_path):
    process = hanging(tmp_path, grace=1.5)
    read_until(process, wait_for)
    seconds, errors = seconds_to_end(process, signal.SIGTERM)
    assert 1.4 < seconds < 6
    assert process.returncode == 128 + signal.SIGTERM
    assert "warning: no checkpoint after 1.5 seconds; the one before it stays\nleaves\n" in errors


def test_where_only_damaged_ones_are_left_a_training_does_not_restart(tmp_path):
    trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path))
    for path in tmp_path.iterdir():
        (path / "record" / "metadata").write_bytes(b"")
    for _ in range(3):
        with pytest.raises(SystemExit, match="--resume: .*no checkpoint can be read: .*; give"):
            trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path))
    assert all(path.name.startswith("damaged-") for path in tmp_path.iterdir())


def test_a_folder_in_use_ends_the_program_with_whose_it_is(tmp_path):
    with (
        tbptt.Checkpoints(tmp_path),
        pytest.raises(SystemExit, match=r"--output_dir: .*in use by this process \(process \d+ on"),
    ):
        trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path))


def test_what_is_forgotten_is_ours_alone(tmp_path):
    kept = saving(tmp_path / "a")
    trainer.fit(TASK, RECIPE, TECHNIQUE, kept)
    (tmp_path / "a" / "notes").write_text("x")
    (tmp_path / "a.removed").mkdir()
    kept.forget()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes"]
    (tmp_path / "a" / "notes").unlink()
    kept.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["a.removed"]


def test_a_training_that_was_restored_at_its_end_is_not_saved_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Progress, "mean_loss", lambda self, network: float("nan"))
    trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    trainer.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
