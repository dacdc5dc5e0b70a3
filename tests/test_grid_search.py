"""The grid search: its plane, its many networks, its intervals, and that it can be interrupted."""

import dataclasses
import json
import math
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from flax import nnx

import tbptt_jax as tbptt
from experiments import driver, grid_report, grid_search, plane
from experiments.grid_report import Cell
from experiments.many_seeds import ManySeeds, Network
from experiments.run_folder import Journal, RunFolder
from experiments.tasks import TASKS, series
from experiments.technique import Recipe, Technique
from tests.command_line import ROOT, command, run
from tests.networks import F64

NAME = "experiments.grid_search"
SMALL = ["--fast", "--k1=30,132,660", "--k2=30", "--anchor=update", "--seeds=2", "--epochs=2"]


def waves():
    values = np.sin(np.arange(120, dtype=np.float64) / 3)
    return series.Series("waves", "step", 10, values, train=61, valid=90, lanes=2)


def network(seed):
    """In float64, with dropout, whose keys are each network's own."""
    rngs = nnx.Rngs(seed)
    readout = nnx.Sequential(nnx.Dropout(0.2, rngs=rngs), nnx.Linear(4, 1, rngs=rngs, **F64))
    return tbptt.SequenceModel(core=tbptt.LSTM(1, 4, rngs=rngs, **F64), readout=readout)


TASK = series.load(waves, fast=True)._replace(network=network)


# ------------------------------------------------------------------------------------ the plane


@pytest.mark.parametrize(
    ("length", "count", "steps"),
    [(660, 4, [5, 30, 132, 660]), (660, 2, [30, 660]), (7, 4, [1, 7]), (1, 3, [1])],
)
def test_default_steps_are_factors_of_the_length_at_even_ratios(length, count, steps):
    assert plane.default_steps(length, count) == steps


def test_work_is_counted_in_passes_of_full_bptt():
    assert plane.work(tbptt.Truncation(660, 660), 660) == 1
    assert plane.work(tbptt.Truncation(660, 30), 660) == 1
    assert plane.work(tbptt.Truncation(30, 660), 660) == 22
    assert plane.work(tbptt.Truncation(132, 30, "loss"), 660) == 5 * 161 / 660 * 2


def plans(anchor, *pairs):
    return [tbptt.Truncation(k1, k2, anchor) for k1, k2 in pairs]


def test_plans_of_the_same_credit_are_run_once():
    found = plane.make_plane(TASK, [1, 10], [1, 4, 30], ["update", "loss"], 4)
    doubles = {p: run for p, run in found.same.items() if p != run}
    # A window of one step ends with its loss, and one over all steps holds them all.
    pairs = (1, 1), (1, 4), (1, 30), (10, 30)
    assert doubles == dict(zip(plans("loss", *pairs), plans("update", *pairs), strict=True))
    assert len(found.runs) == 8
    assert not found.left_out
    # A stream goes on after 30 steps, and then such a window no longer holds them all.
    stream = TASK._replace(batches=lambda part, multiple, rng: [as_stream(part)])
    found = plane.make_plane(stream, [1, 10], [1, 4, 30], ["update", "loss"], 4)
    assert {p for p, run in found.same.items() if p != run} == set(plans("loss", *pairs[:3]))


def as_stream(part):
    (batch,) = TASK.batches(part, 1, None)
    reset = np.zeros(batch.inputs.shape[:2], bool)
    reset[:, 0] = True
    return batch._replace(reset=reset)


def test_with_one_target_both_anchors_are_one():
    task = TASK._replace(many_to_one=True)
    found = plane.make_plane(task, [7, 30], [3, 7, 20], ["update", "loss"], 4)
    pairs = (7, 3), (7, 7), (7, 20), (30, 3), (30, 7), (30, 20)
    assert sorted(found.runs, key=lambda p: (p.k1, p.k2)) == plans("update", *pairs)


def test_what_takes_long_is_left_out_unless_asked_for():
    long = TASK._replace(length=660)
    found = plane.make_plane(long, None, None, ["update", "loss"], 4)
    assert found.left_out == [
        *plans("update", (5, 660)),
        *plans("loss", (5, 132), (5, 660), (30, 132)),
    ]
    assert not set(found.left_out) & set(found.same)
    assert len(found.same) == 2 * 16 - 4
    every = [5, 30, 132, 660]
    found = plane.make_plane(long, every, every, ["update", "loss"], 4)
    assert not found.left_out
    assert len(found.same) == 32


# ------------------------------------------------------------------------------- many networks


def two_pieces(part, multiple, rng):
    """The part for training as a stream in two batches of two lengths."""
    if part != "train":
        return TASK.batches(part, multiple, rng)
    batch = as_stream(part)
    first, second = (
        tbptt.Batch(*(None if x is None else x[:, steps] for x in batch))
        for steps in (slice(0, 12), slice(12, 30))
    )
    return [first, second]


@pytest.mark.parametrize(
    ("plan", "task"),
    [
        pytest.param(tbptt.Truncation(7, 3), TASK, id="whole"),
        pytest.param(
            tbptt.Truncation(6, 9, "loss"),
            TASK._replace(batches=two_pieces),
            id="stream",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_trained_together_in_turn_and_alone_are_the_same(plan, task):
    recipe, technique = Recipe(epochs=4, learning_rate=math.nan, averaging=0.5), Technique("", plan)
    networks = [Network(rate, seed) for rate in (0.01, 0.3) for seed in (0, 5)]
    many = ManySeeds(task, recipe, [0, 5])
    together = many.fit(technique, networks, "together")
    in_turn = many.fit(technique, networks, "in turn")
    (test,) = task.batches("test", 1, None)
    for i, (rate, seed) in enumerate(networks):
        alone = driver.fit(
            task, dataclasses.replace(recipe, learning_rate=rate, seed=seed), technique
        )
        expected = alone.best["valid_score"], tbptt.evaluate(alone.state, test)["loss"]
        for outcome in (together, in_turn):
            found = outcome.valid[i], outcome.test[i]
            assert found == pytest.approx(expected, rel=1e-9)
            assert outcome.epochs[i] == alone.best["epoch"]
            assert outcome.updates[i] == alone.history[-1]["updates"]
            assert outcome.scored == pytest.approx(alone.scored)
    # Not one network four times; and one of them was better before its last epoch.
    assert len(set(together.test.tolist())) == 4
    assert together.epochs.min() < recipe.epochs


def test_what_is_done_is_told_after_every_batch():
    shares = []
    many = ManySeeds(TASK, Recipe(4, 0.1, 0.5), [0])
    technique = Technique("", tbptt.Truncation(6, 6))
    many.fit(technique, [Network(0.1, 0)], "together", show=shares.append)
    assert shares == [1 / 4, 2 / 4, 3 / 4, 1]


# ----------------------------------------------------------------------------------- intervals


def test_intervals_are_students():
    # From a printed table of the t distribution.
    for degrees, quantile in ((1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045)):
        assert grid_report.t_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-4)
    # Mean 2.5, standard deviation sqrt(5 / 3), so 3.182 sqrt(5 / 3) / 2.
    assert grid_report.interval(np.array([1.0, 2, 3, 4])) == pytest.approx((2.5, 2.054), abs=5e-4)
    mean, half = grid_report.interval(np.array([3.0]))
    assert mean == 3
    assert math.isnan(half)


def cell(valid, test):
    valid, test = np.array(valid, float), np.array(test, float)
    return Cell(tbptt.Truncation(1, 1), 0.1, valid, test, 1, 1.0, 1.0)


def test_plans_are_compared_seed_by_seed():
    best = cell([1, 1, 1], [1, 2, 3])
    always_a_bit_worse = cell([2, 2, 2], [1.1, 2.1, 3.12])
    now_and_then = cell([2, 2, 2], [0.9, 2.5, 2.9])
    better_on_test = cell([2, 2, 2], [0.9, 1.9, 2.88])
    assert grid_report.best_of(TASK, [always_a_bit_worse, best]) is best
    cells = best, always_a_bit_worse, now_and_then, better_on_test
    found = [grid_report.verdict(TASK, c, best) for c in cells]
    assert found == ["best", "worse", "no worse", "better"]
    single = cell([2], [2])
    assert grid_report.verdict(TASK, cell([3], [2]), single) == ""
    higher = TASK._replace(score=TASK.score._replace(higher=True))
    assert grid_report.best_of(higher, [best, always_a_bit_worse]) is always_a_bit_worse
    assert grid_report.verdict(higher, always_a_bit_worse, best) == "better"
    assert grid_report.verdict(higher, better_on_test, best) == "worse"
    diverged = cell([math.nan, 1, 1], [1, 1, 1])
    assert grid_report.best_of(TASK, [diverged, best]) is best


# -------------------------------------------------------------------------- the rows of a folder


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    assert journal.read() == []
    path.write_text('{"k1": 1}\n{"k1": 2}\n{"k1": 3}')
    assert journal.read() == [{"k1": 1}, {"k1": 2}]
    assert path.read_text() == '{"k1": 1}\n{"k1": 2}\n'
    path.write_text('{"k1": 1}\n{"k1\n{"k1": 2}\n')
    with pytest.raises(SystemExit, match="--output_dir: expected JSON in every line .* line 2"):
        journal.read()


# ----------------------------------------------------------------------------- the command line


def rows_of(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    names = ("task", "k1", "k2", "anchor", "learning_rate", "seed")
    rows = [json.loads(line) for line in lines]
    found = {tuple(row[n] for n in names): (row["valid_score"], row["test_score"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
def test_a_search_finds_what_is_worth_taking(tmp_path):
    done = run(NAME, "--fast", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows = rows_of(tmp_path)
    assert len(rows) == 6 * 3
    # Full BPTT for each of a few updates against updating often, and seeing as far or not.
    tests = {(c["k1"], c["k2"], c["anchor"]): c["test_mean"] for c in result["cells"]}
    assert set(tests) == {
        *((k1, k2, "update") for k1 in (30, 660) for k2 in (30, 660)),
        *((k1, 30, "loss") for k1 in (30, 660)),
    }
    best, persistence = result["best"], series.persistence(TASKS["sunspots"](True))
    assert best["k1"] == 30
    assert best["test_mean"] < persistence < 0.15
    assert tests[660, 660, "update"] > 2 * best["test_mean"]
    assert tests[660, 30, "update"] > tests[660, 660, "update"]
    mean = np.mean([test for key, (_, test) in rows.items() if key[1:4] == (660, 30, "update")])
    assert mean == pytest.approx(tests[660, 30, "update"])
    # Of 660 losses 30 are scored.
    scored = {(c["k1"], c["k2"], c["anchor"]): c["scored"] for c in result["cells"]}
    assert scored[660, 30, "update"] == pytest.approx(30 / 660, rel=0.02)
    assert scored[660, 30, "loss"] == 1
    for anchor, measured in result["spread"].items():
        how, seconds = measured["how"], measured["seconds"]
        assert seconds.keys() == {"together", "in turn"}
        assert seconds[how] == min(seconds.values())
        assert f'anchor="{anchor}" is trained {how}' in done.stderr
    assert "best on validation: k1=30" in done.stdout
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(NAME, *SMALL, f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_search_goes_on_where_it_stopped(how, finished, tmp_path):
    arguments, path = [*SMALL, f"--output_dir={tmp_path}"], tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        command(NAME, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    if how == signal.SIGINT:
        assert process.returncode == 128 + signal.SIGINT, errors
        assert "stopped by Ctrl-C; go on with" in errors
        assert f"python -m {NAME} --output_dir={tmp_path} --resume" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    before = path.read_text()
    assert before.count("\n") == 2
    # The first plan loses a network, and the second line is torn.
    first, second = before.splitlines()
    path.write_text(f"{first}\n{second[:40]}")

    done = run(NAME, f"--output_dir={tmp_path}", "--resume")
    assert done.returncode == 0, done.stderr
    assert path.read_text().startswith(f"{first}\n")
    found, expected = rows_of(tmp_path), rows_of(finished)
    assert found.keys() == expected.keys()
    for key, scores in found.items():
        assert scores == pytest.approx(expected[key], rel=1e-4)


@pytest.mark.slow
def test_a_finished_search_is_only_drawn_again(finished):
    before = (finished / "rows.jsonl").read_bytes()
    (finished / "plane.png").unlink()
    done = run(NAME, *SMALL, f"--output_dir={finished}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "trained" not in done.stderr
    assert (finished / "rows.jsonl").read_bytes() == before
    assert (finished / "plane.png").exists()


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(finished):
    done = run(NAME, *SMALL[:-1], "--epochs=3", f"--output_dir={finished}", "--resume")
    assert done.returncode == 1
    assert f"error: --resume: --epochs=3, and {finished} was begun with 2; leave" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_changed_between_the_versions_is_told(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    grid_search.tell_versions(folder)
    assert capsys.readouterr().out == ""
    path = tmp_path / "versions.json"
    path.write_text(path.read_text().replace(jax.__version__, "0.0.1"))
    grid_search.tell_versions(folder)
    told = capsys.readouterr().out
    assert f"was begun with other versions: jax 0.0.1, now {jax.__version__}" in told
