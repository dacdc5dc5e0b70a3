"""The main job, from the command line, on reviews that are invented here."""

import json
import math
import signal
import time

import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import review_training as training
from experiments import sentiment, trainer
from experiments.run import RunFolder
from experiments.tasks import reviews
from experiments.tasks.reviews import Config
from experiments.technique import count_updates
from tests.command_line import SMALL, command, run, start

NAME = "experiments.sentiment"


@pytest.mark.slow
def test_a_run_learns_and_leaves_its_folder(finished):
    folder, printed = finished
    result = json.loads((folder / "result.json").read_text())
    assert result["test_accuracy"] > 0.95
    assert result["test_texts"] == 80
    assert f"test accuracy {result['test_accuracy']:.2%}" in printed
    assert "| words in the text" in printed
    config = RunFolder(folder).read_config(sentiment.Config)
    assert (config.k1, config.embedding, config.epochs) == (5, 8, 9)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 10))
    assert rows[-1]["train_loss"] < 0.2 < rows[0]["train_loss"]
    assert max(row["valid_score"] for row in rows) == result["valid_accuracy"]


@pytest.mark.slow
def test_predict_shows_what_the_carry_remembers(finished):
    folder, _ = finished
    for word, low, high in (("wonderful", 90, 100), ("dreadful", 0, 10)):
        text = f"{word} a b c d e f a zebra b c d e f"
        done = run(NAME, f"--output_dir={folder}", f"--predict={text}")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()[:14]
        assert [line.split()[-1] for line in lines[:8]] == text.split()[:8]
        assert lines[8].endswith("zebra (unknown)")
        percent = [float(line.split("%")[0]) for line in lines]
        assert low <= percent[-1] <= high
    assert (folder / "prediction.png").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_parameters(data_dir, tmp_path):
    arguments = [*SMALL, "--epochs=1", f"--data_dir={data_dir}"]
    for name in ("a", "b"):
        assert run(NAME, *arguments, f"--output_dir={tmp_path / name}").returncode == 0
    a, b = (np.load(tmp_path / name / "params.npz") for name in ("a", "b"))
    assert set(a) == set(b)
    assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.slow
def test_what_one_run_compiles_serves_the_next(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    kept = []
    for name in ("first", "second"):
        folders = f"--data_dir={data_dir}", f"--output_dir={tmp_path / name}"
        done = run(NAME, *SMALL, "--epochs=1", *folders)
        assert done.returncode == 0, done.stderr
        kept.append(sorted((tmp_path / ".cache" / "tbptt_jax").iterdir()))
    assert any("train_step" in path.name for path in kept[0])
    assert kept[1] == kept[0]
    first, second = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "second")
    )
    assert first["test_accuracy"] == second["test_accuracy"]


@pytest.mark.slow
def test_what_was_learnt_until_ctrl_c_predicts(data_dir, tmp_path):
    folder = tmp_path / "run"
    folders = f"--data_dir={data_dir}", f"--output_dir={folder}"
    process = start(command(NAME, *SMALL, "--epochs=100000", *folders))
    while not (folder / "params.npz").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "stopped by Ctrl-C; resume with\n" in errors
    assert "Traceback" not in errors
    assert run(NAME, f"--output_dir={folder}", "--predict=wonderful a b").returncode == 0


def test_padding_keeps_windows_whole_and_shapes_few():
    for k1 in (1, 7, 30, 45, 100, 419):
        assert reviews.padding(k1) % k1 == 0
        assert math.ceil(420 / reviews.padding(k1)) <= 7
    # A window that holds any text whole needs no multiple of its own.
    assert sentiment.padded_length(Config(k1=420, max_length=420), 61) == 120


def test_reach_of_the_gradient_by_hand():
    chunk, end = Config(loss_at="chunk"), Config(loss_at="end")
    assert sentiment.reach(chunk, 100) == (1.0, 0.3)
    assert sentiment.reach(end, 100) == (0.3, 0.3)
    assert sentiment.reach(end, 20) == (1.0, 1.0)
    # A loss at the end of 30 words, gradient of the last 10: one word in three.
    assert sentiment.reach(Config(k2=10), 60) == pytest.approx((1 / 3, 1 / 6))
    assert sentiment.reach(Config(k1=420, k2=420, loss_at="end"), 417) == (1.0, 1.0)


@pytest.mark.parametrize("loss_at", ["chunk", "end"])
@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (5, 2), (5, 9), (60, 60)])
def test_count_updates_is_what_training_does(loss_at, k1, k2):
    config = Config(k1=k1, k2=k2, loss_at=loss_at, batch_size=4, embedding=2, hidden=2)
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 9, n).astype(np.int32) for n in (3, 50, 61, 64, 119)]
    task = reviews.make_task(config, {"train": reviews.Texts(ids, np.arange(5) % 2)}, 9)
    technique = training.technique(config)
    batches = technique.batches(task, "train", None)
    state = trainer.make_state(task, training.recipe(config))
    for batch in batches:
        state, _ = tbptt.train_step(state, batch, technique.plan)
    assert int(state.step) == count_updates(technique.plan, batches)
