"""What can be learnt of words beyond the gradient's reach."""

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
    reviews = result["reviews"]
    assert reviews["words"] == [10, 30, 60]
    assert reviews["texts"] > 30
    for name, (scores,) in reviews["first"].items():
        assert len(scores) == 4
        # All words are the same texts from either end.
        assert scores[-1] == reviews["last"][name][0][-1]
    written = {path.name for path in tmp_path.glob("*.png")}
    assert written == {"by_length.png", "training.png", "reviews.png"}


@pytest.mark.slow
def test_reviews_that_are_too_short_are_refused_before_anything_is_trained(data_dir, tmp_path):
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


CONFIG = first_words.Config(k2=6, length=8, seeds=2)


def net(accuracy, scores):
    history = [{"updates": 10 * (i + 1), "valid_score": s} for i, s in enumerate(scores)]
    return {"accuracy": accuracy, "gradient": scores[0], "moved": scores[1], "history": history}


# Two networks of one kind: after each of eight words, and after two passes.
FOUND = {"a": [net([0.5] * 8, [0.5, 0.6]), net([0.5] * 5 + [0.7, 0.8, 0.9], [0.25, 1.0])]}


def test_invented_texts_are_summed_up_over_the_networks():
    *_, row = first_words.summary(CONFIG, FOUND).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    # After 6 and 8 words; one of the two networks reached 95%.
    assert cells == [
        "a",
        *("60.0% (50.0% to 70.0%)", "70.0% (50.0% to 90.0%)"),
        *("20 (1 of 2)", "5.0e-01", "1.0e+00"),
    ]


def test_accuracy_is_shown_from_the_end_of_an_opening_and_over_training():
    (by_words,), (by_updates,) = first_words.invented_panels(CONFIG, FOUND)
    assert by_words.title == by_updates.title == "a"
    (words,), (updates,) = by_words.curves, by_updates.curves
    assert opinions.OPENING == 5
    assert list(words.x) == [5, 6, 7, 8]
    np.testing.assert_array_equal(words.y, [[0.5] * 4, [0.5, 0.7, 0.8, 0.9]])
    assert by_words.lines == {"k2 = 6": 6}
    assert updates.x == [10, 20]
    assert updates.y == [[0.5, 0.6], [0.25, 1.0]]


def test_accuracy_on_reviews_is_shown_by_the_words_shown_from_either_end():
    shown = {"words": [10, 30], "first": {"a": [0.5, 0.6, 0.9]}, "last": {"a": [0.7, 0.8, 0.9]}}
    panels = first_words.review_panels(shown)
    assert [panel.curves[0].y for panel in panels] == [[0.5, 0.6, 0.9], [0.7, 0.8, 0.9]]
    assert panels[0].ticks == {0: "10", 1: "30", 2: "all"}
    assert panels[0].limits == panels[1].limits == pytest.approx((0.48, 0.92))
