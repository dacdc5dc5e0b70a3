"""Techniques side by side: what is measured of each, and what the figures show of it."""

import json
import math

import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import compare, domain_split, trainer
from experiments.compare import Result
from experiments.run import RunFolder
from experiments.tasks import reviews
from experiments.tasks.task import ACCURACY
from experiments.technique import Technique
from tests.command_line import run
from tests.experiments.test_trainer import TASK


def compared(name, task, folder):
    """The results of a small comparison by their techniques, and what was printed."""
    done = run(f"experiments.{name}", f"--task={task}", "--fast", f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "result.json").read_text())["results"]
    return {result["technique"]: result for result in results}, done.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A truncation on a small task: two networks of it, and their result."""
    task = TASK._replace(length=30)
    run, cut = RunFolder(tmp_path_factory.mktemp("run")), Technique("cut", tbptt.Truncation(10, 4))
    recipes = compare.recipes(compare.Budget(epochs=2, seeds=2), task)
    result = compare.measure(run, task, cut, recipes)
    # A finished training is only read.
    trained = [trainer.fit(task, r, cut, run.saving(f"cut-{r.seed}")) for r in recipes]
    return task, cut, [one.state.params for one in trained], result


def cells(task, result):
    *_, row = compare.table(task, [result]).splitlines()
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_every_network_is_measured(measured):
    task, cut, params, result = measured
    assert result.technique == "cut"
    assert tbptt.Truncation(**result.plan) == cut.plan
    assert result.bias == [compare.bias(task, cut, p)._asdict() for p in params]
    assert len(set(result.test)) == len(result.bias) == len(result.histories) == 2
    assert result.scored == pytest.approx(0.4)
    assert result.temporary_mebibytes > 0
    assert json.loads(json.dumps(result._asdict())) == result._asdict()
    # Three intervals in each of two passes.
    assert [row["updates"] for row in result.histories[0]] == [3, 6]
    for kind, values in (("relative", cells(task, result)[7]), ("cosine", cells(task, result)[8])):
        low, high = sorted(bias[kind] for bias in result.bias)
        assert low < high
        assert values == f"{(low + high) / 2:.2f} ({low:.2f} to {high:.2f})"


def test_of_one_network_there_is_no_range(measured):
    task, _, _, result = measured
    alone = result._replace(bias=result.bias[:1], test=[0.5])
    _, test, *_, relative, cosine = cells(task, alone)
    assert test == "0.5000"
    assert relative == f"{alone.bias[0]['relative']:.2f}"
    assert cosine == f"{alone.bias[0]['cosine']:.2f}"


def invented(name, k1, test, rate=50.0):
    """A result of two networks and two passes, the first of which took long to compile."""
    histories = [
        [
            {"epoch": 1, "updates": 100, "seconds": 60.0, "valid_score": score},
            {"epoch": 2, "updates": 200, "seconds": 62.0, "valid_score": score / 2},
        ]
        for score in test
    ]
    return Result(name, {"k1": k1}, None, None, test, histories, rate, 1.0, 1.0, [])


def test_a_comparison_shows_all_networks_and_no_compilation():
    by_passes, by_seconds = compare.panels(TASK, [invented("a", 1, [0.4, 0.8])])
    (passes,), (seconds,) = by_passes.curves, by_seconds.curves
    assert passes.x == [1, 2]
    assert seconds.x == [2, 4]
    assert passes.y == seconds.y == [[0.4, 0.2], [0.8, 0.4]]
    assert passes.name == seconds.name == "a"
    assert by_passes.y == "validation mean squared error\n(variance of the series)"
    assert (by_passes.log, by_passes.percent) == ("y", False)
    accuracy = TASK._replace(score=ACCURACY)
    assert compare.panels(accuracy, [])[0][4:6] == ("", True)


def test_without_a_rate_there_are_no_seconds():
    _, panel = compare.panels(TASK, [invented("a", 1, [0.4], rate=math.nan)])
    assert np.isnan(panel.curves[0].x).all()


def test_suggested_lengths_lie_on_the_curve_of_all_lengths():
    results = [
        invented("2", 2, [4.0, 6.0]),
        invented("5, by the PACF", 5, [3.0, 5.0]),
        invented("10", 10, [2.0, 2.5]),
        invented("10, at sentences", 10, [7.0, 9.0]),
        invented("whole", 60, [1.0, 3.0]),
    ]
    panel = domain_split.panel(TASK, results)
    line, *points = panel.curves
    assert line.x == [2, 5, 10]
    np.testing.assert_array_equal(line.y, [[4, 3, 2], [6, 5, 2.5]])
    assert [point.name for point in points] == ["5, by the PACF", "10, at sentences", "full BPTT"]
    assert not any(point.line for point in points)
    found = {point.x[0]: np.ravel(point.y).tolist() for point in points}
    assert found == {5: [3, 5], 10: [7, 9], 60: [1, 3]}
    assert panel.ticks == {2: "2", 10: "10", 60: "60"}
    assert panel.log == "x"


def test_correlations_are_shown_from_lag_1_with_their_band():
    values = np.sin(np.arange(200) / 3)
    found = tbptt.data.suggest_steps(values, rule="period")
    panel = domain_split.correlations(TASK, "ACF", found)
    lags, bars = panel.bars
    assert lags[0] == 1
    np.testing.assert_array_equal(bars, found.acf[1:])
    low, high = np.asarray(panel.curves[0].y)
    np.testing.assert_array_equal(high, found.acf_band[1:])
    np.testing.assert_array_equal(low, -high)
    assert panel.lines == {f"suggested: {found.steps}": found.steps}


@pytest.mark.slow
def test_pieces_learn_through_the_carry(tmp_path):
    found, _ = compared("naive", "digits", tmp_path)
    accuracy = {name: result["test"][0] for name, result in found.items()}
    assert accuracy["pieces of 7, carry kept"] > 0.55
    assert accuracy["pieces of 7, carry kept"] > accuracy["pieces of 7, each on its own"] + 0.2
    updates = {name: result["histories"][0][-1]["updates"] for name, result in found.items()}
    assert updates["pieces of 7, carry kept"] == 7 * updates["whole, full BPTT"]
    assert found["whole, full BPTT"]["bias"][0]["relative"] == 0
    assert found["pieces of 7, carry kept"]["bias"][0]["relative"] > 0.1
    memory = {name: result["temporary_mebibytes"] for name, result in found.items()}
    assert memory["pieces of 7, carry kept"] < memory["whole, full BPTT"] / 2


@pytest.mark.slow
def test_one_step_of_credit_learns_a_series_by_its_many_updates(tmp_path):
    found, _ = compared("tbptt_1_1", "demand", tmp_path)
    error = {name: result["test"][0] for name, result in found.items()}
    # The persistence baseline has 0.0268.
    assert error["TBPTT(1, 1)"] < 0.02
    assert error["TBPTT(48, 48)"] < 0.02
    assert error["full BPTT"] > 2 * error["TBPTT(48, 48)"]
    assert found["TBPTT(1, 1)"]["histories"][0][-1]["updates"] == 20 * 672
    biases = [result["bias"][0]["relative"] for result in found.values()]
    # Each at what its own technique learnt, so that no order of the first is to be expected.
    assert min(biases[:3]) > 0.01
    assert biases[3] == 0


@pytest.mark.slow
def test_full_bptt_against_the_same_updates_with_less_credit(tmp_path):
    found, _ = compared("full_bptt", "sunspots", tmp_path)
    error = {name: result["test"][0] for name, result in found.items()}
    assert error["TBPTT(132, 132)"] < 0.2 < error["full BPTT"] < 1
    from_end = found["one update, 132 steps from the end"]
    assert from_end["scored"] == pytest.approx(0.2, abs=0.01)
    each = found["one update, 132 steps from each loss"]
    assert found["full BPTT"]["bias"][0]["relative"] == 0
    assert each["bias"][0]["relative"] < 0.2 < from_end["bias"][0]["relative"]
    updates = [result["histories"][0][-1]["updates"] for result in found.values()]
    assert updates == [20, 20, 20, 100]


@pytest.mark.slow
def test_a_series_suggests_its_lengths(tmp_path):
    found, printed = compared("domain_split", "sunspots", tmp_path)
    assert "PACF suggests 5 steps" in printed
    assert "ACF suggests 128 steps" in printed
    assert {"5, by the PACF", "128, by the ACF", "660"} < set(found)
    # The persistence baseline has 0.1395; the mean of all has 1.
    assert found["5, by the PACF"]["test"][0] < 0.2


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
    (test,) = cut.batches("test", 1, None)
    assert test.inputs[1, -8:].tolist() == ids[0].tolist()


def test_what_stands_together_ends_one_sentence():
    stops = np.array([2, 3])
    ids = np.array([7, 2, 2, 3, 8, 9, 2, 5])
    ends = domain_split.sentence_ends(ids, stops)
    assert np.flatnonzero(ends).tolist() == [3, 6]
