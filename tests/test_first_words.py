"""What can be learnt of words beyond the gradient's reach, from the command line."""

import json

import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import first_words
from experiments.tasks import opinions
from tests.command_line import run


@pytest.mark.slow
def test_words_beyond_the_reach_are_learnt_from_near_ones_or_not_at_all(tmp_path):
    done = run("experiments.first_words", "--fast", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    found = {name: nets[0] for name, nets in result["invented"].items()}
    assert len(found) == 4
    # Where all texts are long the gradient is exactly zero, always, and nowhere else.
    lost = "loss at the end, k2 = 12"
    for key in ("gradient", "moved"):
        assert {name for name, net in found.items() if net[key] == 0.0} == {lost}
    assert found[lost]["accuracy"][-1] < 0.65
    # Short texts teach the opinion words, a loss in every chunk does too, and both are remembered.
    for name in (f"{lost}, 30% short", "loss every 12, k2 = 12"):
        accuracy = found[name]["accuracy"]
        assert len(accuracy) == 24
        assert accuracy[11] > 0.9
        assert accuracy[-1] > 0.9
    assert found["loss at the end, full BPTT"]["accuracy"][-1] > 0.9
    assert f"| {lost} " in done.stdout
    reviews = result["reviews"]
    assert reviews["words"] == [10, 30, 60]
    assert reviews["texts"] > 30
    for name, scores in reviews["first"].items():
        assert len(scores) == 4
        # All words are the same texts from either end.
        assert scores[-1] == reviews["last"][name][-1]
    for name in ("by_length", "training", "reviews"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_reviews_that_are_too_short_are_told_before_anything_is_trained(data_dir, tmp_path):
    done = run("experiments.first_words", f"--data_dir={data_dir}", f"--output_dir={tmp_path}")
    assert done.returncode == 1
    message = "error: --data_dir: expected reviews of more than 200 and fewer than 420 words in"
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_first_and_last_words_are_what_is_left_of_texts_of_some_lengths():
    ids = [np.arange(1, n + 1) for n in (2, 4, 5, 6)]
    batch = tbptt.data.whole_sequences(ids, [0, 1, 0, 1])
    for end, kept in (("first", [[1, 2, 3], [1, 2, 3]]), ("last", [[2, 3, 4], [3, 4, 5]])):
        # Only those longer than 2 and shorter than 6.
        left = first_words.only(batch, 3, end, longer=2, shorter=6)
        assert left.mask.sum(1).tolist() == [0, 3, 3, 0]
        assert [batch.inputs[i][left.mask[i]].tolist() for i in (1, 2)] == kept
        asked = left.weights > 0
        assert asked.sum(1).tolist() == [0, 1, 1, 0]
        assert batch.inputs[asked].tolist() == [words[-1] for words in kept]


def test_invented_texts_open_with_an_opinion_and_say_nothing_more():
    task = opinions.make_task(length=20, reach=8, share=0.25, seed=0, epochs=1)
    negative, positive = (set(opinions.encode(words)) for words in opinions.OPINIONS)
    seen = {}
    for part, size in opinions.PARTS.items():
        batches = task.batches(part, 1, None)
        texts = [row[m] for b in batches for row, m in zip(b.inputs, b.mask, strict=True)]
        labels = np.concatenate([b.targets[:, -1] for b in batches])
        lengths = np.array([len(text) for text in texts])
        assert len(texts) == size
        assert (lengths < 20).sum() == (size // 4 if part == "train" else 0)
        assert lengths[lengths < 20].max(initial=0) <= 8
        assert 0.4 < labels.mean() < 0.6
        for text, label in zip(texts, labels, strict=True):
            (where,) = np.flatnonzero(np.isin(text, [*negative, *positive]))
            assert where < opinions.OPENING
            assert (text[where] in positive) == label
        seen[part] = {tuple(text[-15:]) for text in texts if len(text) == 20}
    # Of other parts and of a pass of training no text is the same.
    seen["pass"] = {
        tuple(row[-15:])
        for b in task.batches("train", 1, np.random.default_rng((0, 0)))
        for row in b.inputs
        if row[-15:].all()
    }
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_updates_until():
    history = [{"updates": 10, "valid_score": 0.5}, {"updates": 20, "valid_score": 0.95}]
    assert first_words.updates_until(history, 0.95) == 20
    assert first_words.updates_until(history, 0.96) is None
