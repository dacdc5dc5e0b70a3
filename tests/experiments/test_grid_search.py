"""The grid search: its plane, its many networks, its intervals, and that it can be interrupted."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import time

import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from experiments import grid_report, plane, trainer
from experiments.run import RunFolder
from experiments.tasks import TASKS, series
from experiments.technique import Recipe, Technique
from experiments.trainer import Network, Trainer
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
def test_networks_trained_together_in_turn_and_alone_are_the_same(plan, task, tmp_path):
    recipe, technique = Recipe(epochs=4, learning_rate=math.nan, averaging=0.5), Technique("", plan)
    networks = [Network(rate, seed) for rate in (0.01, 0.3) for seed in (0, 5)]
    many, found = Trainer(task, recipe, networks), {}
    ways: tuple[trainer.Spread, ...] = ("together", "in turn")
    for how in ways:
        trained = many.fit(technique, RunFolder(tmp_path / how).saving("a"), how)
        found[how] = trained, many.scores(trained, "test", how)
    (test,) = task.batches("test", 1, None)
    for i, (rate, seed) in enumerate(networks):
        own = dataclasses.replace(recipe, learning_rate=rate, seed=seed)
        alone = trainer.fit(task, own, technique, RunFolder(tmp_path).saving(str(i)))
        expected = alone.best["valid_score"], tbptt.evaluate(alone.state, test)["loss"]
        for trained, scores in found.values():
            one = trained[i]
            assert (one.best["valid_score"], scores[i]) == pytest.approx(expected, rel=1e-9)
            assert one.best["epoch"] == alone.best["epoch"]
            for row, other in zip(one.history, alone.history, strict=True):
                for name in ("updates", "train_loss", "valid_loss", "skipped"):
                    assert row[name] == pytest.approx(other[name], rel=1e-9)
            assert one.scored == pytest.approx(alone.scored)
    # Not one network four times; and one of them was better before its last epoch.
    trained, scores = found["together"]
    assert len(set(scores)) == 4
    assert min(one.best["epoch"] for one in trained) < recipe.epochs


def test_the_share_that_is_done_is_shown_after_every_batch(tmp_path):
    shares = []
    many = Trainer(TASK, Recipe(4, 0.1, 0.5), [Network(0.1, 0)])
    technique = Technique("", tbptt.Truncation(6, 6))
    many.fit(technique, RunFolder(tmp_path).saving("a"), "together", show=shares.append)
    assert shares == [1 / 4, 2 / 4, 3 / 4, 1]


# ----------------------------------------------------------------------------------- intervals


def test_intervals_are_students():
    # From a printed table of the t distribution.
    for degrees, quantile in ((1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045)):
        values = np.zeros(degrees + 1)
        values[0] = degrees + 1  # the error of the mean is 1
        assert grid_report.half_width(values) == pytest.approx(quantile, abs=5e-4)
    # Standard deviation sqrt(5 / 3), so 3.182 sqrt(5 / 3) / 2.
    assert grid_report.half_width(np.array([1.0, 2, 3, 4])) == pytest.approx(2.054, abs=5e-4)
    assert math.isnan(grid_report.half_width(np.array([3.0])))


def test_plans_are_compared_seed_by_seed():
    best, *others = (
        np.array(test)
        for test in ([1.0, 2, 3], [1.1, 2.1, 3.12], [0.9, 2.5, 2.9], [0.9, 1.9, 2.88])
    )
    found = [grid_report.verdict(TASK, test, best) for test in others]
    assert found == ["worse", "no worse", "better"]
    higher = TASK._replace(score=TASK.score._replace(higher=True))
    found = [grid_report.verdict(higher, test, best) for test in others]
    assert found == ["better", "no worse", "worse"]
    assert grid_report.verdict(TASK, best[:1], best[:1]) == ""


def test_the_best_has_the_best_mean_and_is_a_number():
    scores = {"low": np.array([1.0, 2]), "high": np.array([2.0, 2]), "nan": np.array([math.nan, 0])}
    assert grid_report.best_of(TASK, scores) == "low"
    higher = TASK._replace(score=TASK.score._replace(higher=True))
    assert grid_report.best_of(higher, scores) == "high"


def invented_search():
    """A plane of k1 in 1, 10 and k2 = 10, with rows of two rates and three seeds."""
    found = plane.make_plane(TASK, [1, 10], [10], ["update", "loss"], 2)
    rows = [
        {
            **{"k1": p.k1, "k2": p.k2, "anchor": p.anchor, "learning_rate": rate, "seed": seed},
            "valid_score": p.k1 + (p.anchor == "loss") + rate,
            "test_score": p.k1 + rate + 0.1 * seed,
            **{"updates": 30 // p.k1, "scored": 1.0, "seconds_per_update": 0.001 * (1 + seed)},
        }
        for seed in (2, 0, 1)
        for p in found.runs
        for rate in (0.5, 0.25)
    ]
    return found, rows


def test_a_cell_has_a_plan_at_its_best_learning_rate():
    found, rows = invented_search()
    cells = grid_report.make_cells(TASK, found, rows)
    assert list(cells) == found.runs
    (best,) = (plan for plan, cell in cells.items() if cell["against_best"] == "best")
    assert (best.k1, best.anchor) == (1, "update")
    assert cells[best] == {
        **{"k1": 1, "k2": 10, "anchor": "update", "learning_rate": 0.25},
        **{"valid_mean": 1.25, "test_mean": pytest.approx(1.35), "updates": 30, "scored": 1.0},
        # Standard deviation 0.1, so 4.303 * 0.1 / sqrt(3).
        "test_half_width": pytest.approx(0.2484, abs=1e-4),
        "against_best": "best",
        "milliseconds_per_update": pytest.approx(2),
    }
    assert {cell["against_best"] for plan, cell in cells.items() if plan != best} == {"worse"}


def test_the_plane_is_drawn_from_its_cells():
    found, rows = invented_search()
    cells = grid_report.make_cells(TASK, found, rows)
    above, below = grid_report.heat_maps(TASK, found, cells)
    assert [one.title for one in above] == [
        f'anchor="{anchor}": test mean squared error' for anchor in ("update", "loss")
    ]
    for one in above:  # with k1 = 1 both anchors are the same plan
        np.testing.assert_allclose(one.values, [[1.35, 10.35]])
        assert one.texts.tolist() == [["1.3500", "10.3500"]]
        assert one.marks == [(0, 0, "best on validation")]
        assert (one.columns, one.rows) == ({0: "1", 1: "10"}, {0: "10"})
    for one in below:
        np.testing.assert_allclose(one.values, [[2, 2]])
        assert not one.marks
    *_, last = grid_report.table(TASK, found, cells).splitlines()
    assert [cell.strip() for cell in last.split("|")[1:9]] == [
        *("loss", "10", "10", "0.25", "11.2500", "10.3500", "10.1016 to 10.5984", "worse")
    ]


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
    assert result["spread"].keys() == {"update", "loss"}
    for anchor, how in result["spread"].items():
        told = re.findall(rf"(\S+) s together, (\S+) s in turn; anchor=.{anchor}. is", done.stderr)
        seconds = dict(zip(("together", "in turn"), map(float, told[0]), strict=True))
        assert seconds[how] == min(seconds.values())
        assert f'anchor="{anchor}" is trained {how}' in done.stderr
    assert "best on validation: k1=30" in done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(NAME, *SMALL, f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_search_continues_where_it_stopped(how, finished, tmp_path):
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
        assert "stopped by Ctrl-C; resume with" in errors
        assert f"python -m {NAME} --output_dir={tmp_path} --resume" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    before = path.read_text()
    assert before.count("\n") == 2
    # The first plan loses a network.
    first, _ = before.splitlines()
    path.write_text(f"{first}\n")

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
    # As a kill between the rows of a plan and the end of its checkpoints leaves them.
    left = finished / "checkpoints" / "k1-30-k2-30-update"
    state = tbptt.TrainState.create(network(0), optax.sgd(0.1), optax.losses.squared_error)
    with tbptt.Checkpoints(left) as checkpoints:
        checkpoints.save(state)
    assert left.exists()
    done = run(NAME, *SMALL, f"--output_dir={finished}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "trained" not in done.stderr
    assert not left.exists()
    assert (finished / "rows.jsonl").read_bytes() == before
    assert (finished / "plane.png").exists()


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(finished):
    done = run(NAME, *SMALL[:-1], "--epochs=3", f"--output_dir={finished}", "--resume")
    assert done.returncode == 1
    assert f"error: --resume: --epochs=3, and {finished} was started with 2; leave" in done.stderr
    assert "Traceback" not in done.stderr
