"""The one training loop: what a technique makes of a task, what is counted, what is saved."""

import dataclasses
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import tbptt_jax as tbptt
from experiments import compare, trainer
from experiments.config import RunOptions
from experiments.run import RunFolder
from experiments.tasks import series
from experiments.technique import Recipe, Technique, count_updates, warn_beyond
from tbptt_jax import data


def waves():
    values = np.sin(np.arange(120, dtype=np.float32) / 3)
    return series.Series("waves", "step", 10, values, train=61, valid=90, lanes=2)


def saving(folder):
    return RunFolder(folder).saving("training")


TASK = series.load(waves, fast=True)
RECIPE = Recipe(epochs=3, learning_rate=1e-2, averaging=0.5)


def test_a_technique_sets_losses_where_a_sequence_has_one_target():
    (batch,) = TASK.batches("train", 1, None)
    batch = batch._replace(mask=None)
    one_target = TASK._replace(many_to_one=True)
    (marked,) = Technique("", tbptt.Truncation(10, 10), every=10).mark(one_target, [batch])
    assert np.flatnonzero(marked.weights[0]).tolist() == [9, 19, 29]
    (marked,) = Technique("", tbptt.Truncation(10, 10)).mark(one_target, [batch])
    assert np.flatnonzero(marked.weights[0]).tolist() == [29]
    (unmarked,) = Technique("", tbptt.Truncation(10, 10), every=10).mark(TASK, [batch])
    assert unmarked.weights is None


def test_pieces_on_their_own_restart_and_keep_their_resets():
    (batch,) = TASK.batches("train", 1, None)
    alone = Technique("", tbptt.Truncation(12, 12), pieces=12)
    (cut,) = alone.mark(TASK, [batch])
    assert np.flatnonzero(cut.reset[1]).tolist() == [0, 12, 24]
    given = np.zeros_like(cut.reset)
    given[:, 5] = True
    (cut,) = alone.mark(TASK, [batch._replace(reset=given)])
    assert np.flatnonzero(cut.reset[1]).tolist() == [0, 5, 12, 24]


def test_a_network_on_pieces_of_its_own_is_trained_as_on_the_pieces_as_rows():
    (batch,) = TASK.batches("train", 1, None)
    batch = batch._replace(mask=None)
    state = trainer.make_state(TASK, RECIPE)
    (alone,) = Technique("", tbptt.Truncation(30, 30), pieces=10).mark(TASK, [batch])
    rows = data.naive_split(batch, steps=10)._replace(reset=None)
    one = tbptt.gradient(state, alone, tbptt.Truncation(30, 30))
    other = tbptt.gradient(state, rows, tbptt.Truncation(10, 10))
    assert tbptt.compare_gradients([one], other)["all"].relative < 1e-5


@pytest.mark.parametrize(
    ("k1", "k2", "share"), [(10, 4, 0.4), (10, 10, 1), (7, 3, (4 * 3 + 2) / 30)]
)
def test_the_share_of_scored_losses_is_that_of_the_plan(k1, k2, share, tmp_path):
    plan = tbptt.Truncation(k1, k2)
    whole = TASK._replace(
        batches=lambda part, multiple, rng: [
            b._replace(mask=None) if part == "train" else b
            for b in TASK.batches(part, multiple, rng)
        ]
    )
    trained = trainer.fit(whole, RECIPE, Technique("", plan), saving(tmp_path))
    assert trained.scored == pytest.approx(share)
    assert trained.history[-1]["updates"] == 3 * math.ceil(30 / k1)
    assert count_updates(plan, whole.batches("train", 1, None)) == math.ceil(30 / k1)


def test_an_update_without_a_scored_loss_is_not_counted():
    (batch,) = TASK.batches("train", 1, None)
    weights = np.zeros(batch.inputs.shape[:2], np.float32)
    weights[:, 10] = 1  # the first step of the second interval, which k2 = 3 leaves out
    batch = batch._replace(weights=weights, mask=None)
    assert count_updates(tbptt.Truncation(10, 3), [batch]) == 0
    assert count_updates(tbptt.Truncation(10, 10), [batch]) == 1
    assert count_updates(tbptt.Truncation(10, 3, "loss"), [batch]) == 1


def test_the_averaged_parameters_of_the_best_epoch_are_saved(tmp_path):
    saved = []
    technique = Technique("", tbptt.Truncation(10, 10))
    recipe = dataclasses.replace(RECIPE, epochs=8, learning_rate=1.0)

    def save_epoch(history, params):
        saved.append(params is not None)

    trained = trainer.fit(TASK, recipe, technique, saving(tmp_path), save_epoch)
    scores = [row["valid_score"] for row in trained.history]
    assert trained.best["valid_score"] == min(scores)  # of errors the least is best
    improved = [min(scores[:i], default=math.inf) > score for i, score in enumerate(scores)]
    assert saved == improved
    assert not all(improved), "an epoch must get worse for the choice to show"
    found = tbptt.evaluate(trained.state, TASK.batches("valid", 1, None))
    assert found["loss"] == pytest.approx(trained.best["valid_loss"])
    assert trained.updates_per_second > 0


def test_networks_of_one_kind_share_what_is_compiled():
    one, other = (
        trainer.make_state(TASK, dataclasses.replace(RECIPE, seed=seed), 10) for seed in (0, 1)
    )
    assert one.optimizer is other.optimizer
    assert one.functions is other.functions


def test_the_bias_of_a_technique_counts_its_resets():
    full = tbptt.Truncation(TASK.length, TASK.length)
    params = trainer.make_state(TASK, RECIPE).params
    assert compare.bias(TASK, Technique("", full), params).relative == 0
    assert compare.bias(TASK, Technique("", full, pieces=5), params).relative > 0.01


def test_tensorboard_gets_the_losses_and_scores_of_the_history(tmp_path):
    options = RunOptions(output_dir=str(tmp_path), tensorboard=True)
    run = RunFolder(tmp_path, options)
    technique = Technique("", tbptt.Truncation(10, 10))
    trained = trainer.fit(TASK, RECIPE, technique, run.saving("training"))
    (path,) = (tmp_path / "tensorboard" / "training").iterdir()
    found = {
        (value.tag, event.step): value.simple_value
        for event in events(path.read_bytes())
        for value in event.summary.value
    }
    for row in trained.history:
        for name in ("train_loss", "valid_loss", "valid_score"):
            assert found[name, row["updates"]] == pytest.approx(row[name])
    assert len(trained.history) == 3


def events(content):
    """The events of a file: length and checksum, an event, and its checksum."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(  # pyright: ignore[reportAttributeAccessIssue]
            content[12 : 12 + length]
        )
        content = content[16 + length :]


@pytest.mark.parametrize(
    ("k1", "k2", "expected"),
    [
        (30, 30, ""),
        (31, 30, "k1 = 31 exceeds the longest sequence, 30 steps"),
        (5, 1_000, "k2 = 1,000 exceeds"),
        (40, 40, "k1 = 40 and k2 = 40 exceed the"),
    ],
)
def test_a_window_longer_than_every_sequence_warns(k1, k2, expected, capsys):
    warn_beyond(tbptt.Truncation(k1, k2), 30, "step")
    said = capsys.readouterr().err
    assert bool(said) == bool(expected)
    assert said.removeprefix("warning: ").startswith(expected)
