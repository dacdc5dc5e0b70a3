"""The toy of the founding question."""

import json

import numpy as np
import pytest

from experiments import presence_of_one
from tests.command_line import run, start
from tests.kills import begin, bits, finish, kill_and_resume


@pytest.mark.slow
def test_what_the_gradient_does_not_reach_teaches_the_input_weights_nothing(tmp_path):
    done = run("experiments.presence_of_one", "--fast", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    found = {(row["trained_on"], row["plan"]): row for row in rows}
    assert len(found) == 6
    # Exactly zero where every 1 lies beyond the reach, and nowhere else.
    zero = {key for key, row in found.items() if row["largest_input_gradient"] == 0.0}
    assert zero == {("steps 1 to 10", "k2 = 10")}
    # 1s anywhere: it learns, and what it learnt of near ones holds for far ones.
    anywhere = found["anywhere", "k2 = 10"]
    assert np.mean(anywhere["second_half"]) > 0.95
    assert np.mean(anywhere["first_half"]) > 0.8
    assert np.mean(anywhere["none"]) > 0.6
    assert (tmp_path / "presence_of_one.png").exists()


@pytest.mark.slow
def test_killed_after_a_network_it_resumes_with_the_next(tmp_path):
    small = ("experiments.presence_of_one", "--length=6", "--k2=3", "--passes=2", "--seeds=1")
    finish(start(begin(small, tmp_path / "alone")))
    kills = kill_and_resume(small, tmp_path / "run", kills=3, seed=5)
    assert kills.all == 3
    found = bits(tmp_path / "run")
    assert len(found) == 6 + 1  # checkpoints of each network, and the result
    assert found == bits(tmp_path / "alone")


def test_a_sequence_holds_a_1_at_its_place_and_ends_with_its_loss():
    batch = presence_of_one.make_batch(3, np.array([[2, 3], [3, 0]]))
    assert batch.inputs[..., 0].tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert batch.targets.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert batch.weights.tolist() == [[0, 0, 1, 0, 0, 1]] * 2
    assert batch.reset.tolist() == [[True, False, False, True, False, False]] * 2


@pytest.mark.parametrize(
    ("where", "places"),
    [("steps 1 to 5", range(5)), ("anywhere", range(11)), ("steps 6 to 11", range(5, 11))],
)
def test_every_second_sequence_holds_a_1_where_training_has_them(where, places):
    task = presence_of_one.make_task(presence_of_one.Config(length=11), where)
    for batch in (*task.batches("train", 1, None), *task.batches("valid", 1, None)):
        sequences = batch.inputs.reshape(-1, 11)
        assert set(np.flatnonzero(sequences.sum(0))) == set(places)
        assert sequences.sum(1).mean() == 0.5


CONFIG = presence_of_one.Config(length=4, k2=2)
# Of two networks: the probability of a 1 by its step, and without one; the gradient.
NETS = [
    {"probability": [0.9, 0.2, 0.8, 0.7, 0.1], "largest_input_gradient": 0.5},
    {"probability": [0.7, 0.6, 0.4, 0.9, 0.9], "largest_input_gradient": 2.0},
]


def test_shares_of_correct_answers_are_over_networks_and_steps():
    (row,) = presence_of_one.summary(CONFIG, {("anywhere", "k2 = 2"): NETS})
    shares = row["first_half"], row["second_half"], row["none"]
    assert shares == ([0.5, 1.0], [1.0, 0.5], [1.0, 0.0])
    assert row["largest_input_gradient"] == 2
    np.testing.assert_allclose(row["probability"], [0.8, 0.4, 0.6, 0.8, 0.5])


def test_the_probability_is_shown_by_the_step_of_the_1():
    kinds = [(where, plan) for where in ("anywhere", "late") for plan in ("k2 = 2", "full BPTT")]
    first, second = presence_of_one.panels(CONFIG, dict.fromkeys(kinds, NETS))
    assert [panel.title for panel in (first, second)] == [
        "trained on 1s anywhere",
        "trained on 1s late",
    ]
    assert [curve.name for curve in first.curves] == ["k2 = 2", "full BPTT"]
    assert list(first.curves[0].x) == [1, 2, 3, 4]
    assert first.curves[0].y == [[0.9, 0.2, 0.8, 0.7], [0.7, 0.6, 0.4, 0.9]]
    assert first.beyond == (0.5, 2.5, "beyond k2 = 2 from the loss")
