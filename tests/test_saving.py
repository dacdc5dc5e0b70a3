"""What a training does when it is not finite, or when it cannot be saved."""

import shutil
import signal
from typing import Literal

import jax
import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import driver
from experiments.common import RunOptions
from experiments.many_seeds import ManySeeds, Network
from experiments.saving import Saving, Signals
from experiments.technique import Recipe, Technique
from tests.test_driver import TASK

TECHNIQUE = Technique("", tbptt.Truncation(6, 6))
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


def test_without_a_folder_it_is_raised():
    with pytest.raises(FloatingPointError, match=SAID):
        driver.fit(spoilt(TASK), RECIPE, TECHNIQUE)


def test_it_stops_saved_and_may_go_on_without_what_is_not_finite(tmp_path, capsys):
    task = spoilt(TASK)
    with pytest.raises(SystemExit, match=SAID) as stopped:
        driver.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "a"))
    message = str(stopped.value)
    assert "; it was not trained on\nLook into the data or lower the learning rate." in message
    assert message.endswith("RESUME --on_nonfinite=skip")
    gone_on = driver.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "a", "skip"))
    assert "going on after 4 updates" in capsys.readouterr().out
    skipped = driver.fit(task, RECIPE, TECHNIQUE, saving(tmp_path / "b", "skip"))
    assert bits(gone_on) == bits(skipped)
    assert [row["skipped"] for row in skipped.history] == [1, 1, 1]
    assert [row["updates"] for row in skipped.history] == [4, 8, 12]
    assert all(np.isfinite(row["train_loss"]) for row in skipped.history)
    assert "warning: epoch 3, batch 1 of 1, window 3" in capsys.readouterr().out


def test_many_networks_stop_or_leave_it_out_too(tmp_path):
    learner = ManySeeds(spoilt(TASK), RECIPE, [0, 1])
    networks = [Network(0.01, 0), Network(0.01, 1)]
    said = (
        r", epoch 1, batch 1, window 3: the loss or gradient of Network\(learning_rate=0.01, seed=0"
    )
    with pytest.raises(SystemExit, match=said):
        learner.fit(TECHNIQUE, networks, "together", saving(tmp_path / "a"))
    found = learner.fit(TECHNIQUE, networks, "together", saving(tmp_path / "a", "skip"))
    assert found.skipped.tolist() == [3, 3]
    assert found.updates.tolist() == [12, 12]
    assert np.isfinite(found.test).all()


def test_what_cannot_be_saved_is_told_and_trained_all_the_same(tmp_path, monkeypatch, capsys):
    expected = driver.fit(TASK, RECIPE, TECHNIQUE)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    trained = driver.fit(TASK, RECIPE, TECHNIQUE, saving(tmp_path / "a"))
    assert bits(trained) == bits(expected)
    warned = capsys.readouterr().err
    assert "warning: [Errno 28] checkpoint 0 needs " in warned
    assert "bytes and 1,000 are left; make room. There is none before it" in warned


def test_a_signal_waits_for_the_batch_and_the_next_does_not(capsys):
    numbers, left = (signal.SIGINT, signal.SIGTERM), []
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        signals = Signals(left.append)
        with signals.noted_only():
            signal.raise_signal(signal.SIGTERM)
            assert (signals.noted, left) == (signal.SIGTERM, [])
            signal.raise_signal(signal.SIGINT)
            assert left == [signal.SIGINT]
        left.clear()
        signal.raise_signal(signal.SIGTERM)
        assert left == [signal.SIGTERM]
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    assert "stopping after this batch (once more: at once)" in capsys.readouterr().err
