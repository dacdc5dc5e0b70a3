"""The comparisons from the command line, small, on packaged data."""

import json

import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import domain_split
from experiments.tasks import reviews
from experiments.technique import Technique
from tests.command_line import run


def compared(name, task, folder):
    done = run(f"experiments.{name}", f"--task={task}", "--fast", f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "result.json").read_text())["results"]
    for result in results:
        assert f"| {result['technique']} " in done.stdout
    return {result["technique"]: result for result in results}, done.stdout


def is_figure(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pieces_learn_through_the_carry(tmp_path):
    found, _ = compared("naive", "digits", tmp_path)
    accuracy = {name: result["test"][0] for name, result in found.items()}
    assert accuracy["pieces of 7, carry kept"] > 0.55
    assert accuracy["pieces of 7, carry kept"] > accuracy["pieces of 7, each on its own"] + 0.2
    updates = {name: result["histories"][0][-1]["updates"] for name, result in found.items()}
    assert updates["pieces of 7, carry kept"] == 7 * updates["whole, full BPTT"]
    assert found["whole, full BPTT"]["bias"]["relative"] == 0
    assert found["pieces of 7, carry kept"]["bias"]["relative"] > 0.1
    memory = {name: result["temporary_mebibytes"] for name, result in found.items()}
    assert memory["pieces of 7, carry kept"] < memory["whole, full BPTT"] / 2
    assert is_figure(tmp_path / "comparison.png")


@pytest.mark.slow
def test_one_step_of_credit_learns_a_series_by_its_many_updates(tmp_path):
    found, printed = compared("tbptt_1_1", "demand", tmp_path)
    error = {name: result["test"][0] for name, result in found.items()}
    # "The next value is the last one" has 0.0268.
    assert error["TBPTT(1, 1)"] < 0.02
    assert error["TBPTT(48, 48)"] < 0.02
    assert error["full BPTT"] > 2 * error["TBPTT(48, 48)"]
    assert found["TBPTT(1, 1)"]["histories"][0][-1]["updates"] == 20 * 672
    biases = [result["bias"]["relative"] for result in found.values()]
    # Each at what its own technique learnt, so that no order of the first is to be expected.
    assert min(biases[:3]) > 0.01
    assert biases[3] == 0
    assert "updates/s" in printed


@pytest.mark.slow
def test_full_bptt_against_the_same_updates_with_less_credit(tmp_path):
    found, _ = compared("full_bptt", "sunspots", tmp_path)
    error = {name: result["test"][0] for name, result in found.items()}
    assert error["TBPTT(132, 132)"] < 0.2 < error["full BPTT"] < 1
    from_end = found["one update, 132 steps from the end"]
    assert from_end["scored"] == pytest.approx(0.2, abs=0.01)
    each = found["one update, 132 steps from each loss"]
    assert found["full BPTT"]["bias"]["relative"] == 0
    assert each["bias"]["relative"] < 0.2 < from_end["bias"]["relative"]
    updates = [result["histories"][0][-1]["updates"] for result in found.values()]
    assert updates == [20, 20, 20, 100]


@pytest.mark.slow
def test_a_series_suggests_its_lengths(tmp_path):
    found, printed = compared("domain_split", "sunspots", tmp_path)
    assert "PACF suggests 5 steps" in printed
    assert "ACF suggests 128 steps" in printed
    assert {"5, by the PACF", "128, by the ACF", "660"} < set(found)
    # "The next value is the last one" has 0.1395; the mean of all has 1.
    assert found["5, by the PACF"]["test"][0] < 0.2
    assert is_figure(tmp_path / "suggestion.png")
    assert is_figure(tmp_path / "domain_split.png")


def test_sentences_have_windows_of_their_own():
    config = reviews.Config(batch_size=2, max_length=9)
    ids = [np.array(text, np.int32) for text in ([5, 6, 2, 7, 8, 9, 4, 2], [5, 2])]
    texts = reviews.Texts(ids, np.array([1, 0]))
    task = reviews.make_task(config, {"train": texts, "test": texts}, 10)
    ends = [domain_split.sentence_ends(i, np.array([2])) for i in ids]
    cut = domain_split.at_sentences(task, texts, ends, steps=4, batch_size=2)
    (batch,) = Technique("", tbptt.Truncation(4, 4), every=4).batches(cut, "train", None)
    assert batch.inputs.shape == (2, 60)
    # Three words and a full stop's sentence; five, which take two windows, both ending theirs.
    last = [0, 5, 6, 2, 0, 0, 0, 7, 8, 9, 4, 2]
    assert batch.inputs[1, -12:].tolist() == last
    np.testing.assert_array_equal(batch.mask[1, -12:], np.array(last) > 0)
    assert np.flatnonzero(batch.weights[1]).tolist() == [51, 55, 59]
    assert np.flatnonzero(batch.weights[0]).tolist() == [59]
    assert batch.targets[:, -1].tolist() == [0, 1]
    (judged,) = cut.batches("test", 1, None)
    assert judged.inputs[1, -8:].tolist() == ids[0].tolist()


def test_what_stands_together_ends_one_sentence():
    stops = np.array([2, 3])
    ids = np.array([7, 2, 2, 3, 8, 9, 2, 5])
    ends = domain_split.sentence_ends(ids, stops)
    assert np.flatnonzero(ends).tolist() == [3, 6]
