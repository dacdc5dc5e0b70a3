"""Commands in several processes: one result, one voice, and a run that survives a kill."""

import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from tests import cluster, command_line
from tests.kills import bits

TOY = ("experiments.char_lm", "--k1=25", "--k2=50", "--hidden=8", "--characters=20000",
       "--epochs=2", "--piece=50")  # fmt: skip


def start(folder: pathlib.Path, count: int, *more: str) -> list:
    words = ["-m", *TOY, f"--output_dir={folder}", *["--distributed"] * (count > 1), *more]
    return cluster.start(words, count)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of two processes that nothing interrupts, and what they print."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, cluster.finish(start(folder, 2, "--checkpoint_every=0"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_processes_trains_the_same_network(alone, tmp_path, count):
    folder, _ = alone
    cluster.finish(start(tmp_path / "run", count))
    ours, theirs = (
        json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", folder)
    )
    np.testing.assert_allclose(ours["test_bits"], theirs["test_bits"], rtol=1e-4)
    with np.load(tmp_path / "run" / "params.npz") as a, np.load(folder / "params.npz") as b:
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_one_process_speaks_and_writes_for_all(alone):
    folder, (first, second) = alone
    assert f"saved in {folder}" in first
    assert second == ""
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "result.json", "params.npz", "metrics.jsonl"} <= names
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]


@pytest.mark.slow
def test_a_process_killed_in_mid_save_costs_nothing(alone, tmp_path):
    folder, _ = alone
    run, mid_save = tmp_path / "run", 0
    for attempt in range(5):
        more = ["--resume"] * (attempt > 0)
        running = start(run, 2, "--checkpoint_every=0", *more)
        seen = set()
        while all(process.poll() is None for process in running):
            half = set(run.glob("checkpoints/*/*-tmp"))
            seen |= half
            if half and len(seen) > 2 + attempt:  # further on each time
                mid_save += 1
                break
            time.sleep(0.002)
        if all(process.poll() is None for process in running):
            running[attempt % 2].kill()
            time.sleep(0.1)
        else:
            cluster.finish(running)
            break
        for process in running:  # as a scheduler does
            process.kill()
            process.communicate()
    else:
        cluster.finish(start(run, 2, "--checkpoint_every=0", "--resume"))
    assert mid_save >= 2
    assert not list(run.glob("checkpoints/*/*-tmp"))
    assert bits(run) == bits(folder)


GRID = ("experiments.grid_search", "--fast", "--task=demand", "--seeds=3", "--anchor=update",
        "--epochs=2", "--k1=28,96", "--k2=28")  # fmt: skip


def rows_of(folder: pathlib.Path) -> dict[tuple, dict]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {tuple(row[k] for k in ("k1", "k2", "learning_rate", "seed")): row for row in rows}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The rows of a search by one process on one device."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    cluster.finish(cluster.start(["-m", *GRID, f"--output_dir={folder}"], 1))
    return rows_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (2, 1)])
def test_a_search_is_spread_over_devices_and_ends_in_one_file(searched, count, devices, tmp_path):
    words = ["-m", *GRID, f"--output_dir={tmp_path}/run", "--distributed"]
    running = cluster.start(words, count, devices, alone=count == 1)
    cluster.finish(running)
    found = rows_of(tmp_path / "run")
    assert len(searched) == 2 * 3  # plans and seeds
    assert found.keys() == searched.keys()
    for name, row in found.items():
        for score in ("valid_score", "test_score"):
            np.testing.assert_allclose(row[score], searched[name][score], rtol=1e-3)
        assert row["updates"] == searched[name]["updates"]


@pytest.mark.slow
def test_a_search_killed_in_several_processes_ends_in_the_rows_of_one_left_alone(tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    words = ["-m", *GRID, "--checkpoint_every=0", "--distributed"]

    def begin(folder: pathlib.Path) -> list:
        more = ["--resume"] * folder.exists()
        return cluster.start([*words, f"--output_dir={folder}", *more], 2)

    def rows() -> int:
        path = run / "rows.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    # In the midst of the first plan, and of the second when the first has its rows.
    for attempt, done in enumerate([0, 3]):
        running = begin(run)
        while all(process.poll() is None for process in running):
            if rows() == done and len(list(run.glob("checkpoints/*/*/record"))) > 1:
                break
            time.sleep(0.002)
        assert all(process.poll() is None for process in running), cluster.finish(running)
        running[attempt].kill()
        time.sleep(0.1)
        for process in running:  # as a scheduler does
            process.kill()
            process.communicate()
        assert rows() == done
    # What a clock decides, networks together or in turn, is decided once; bits depend on it.
    alone.mkdir()
    for name in ("config.json", "spread.json"):
        shutil.copy(run / name, alone / name)
    for folder in (run, alone):
        cluster.finish(begin(folder))
    assert len(rows_of(alone)) == 2 * 3
    assert bits(run) == bits(alone)


@pytest.mark.slow
def test_fewer_rows_than_processes_are_filled_up_with_rows_of_no_step():
    first, second = cluster.run(
        """
        import numpy as np, tbptt_jax as tbptt
        from experiments import cluster
        with cluster.joined():
            batch = tbptt.Batch(np.full((1, 3, 1), 7.0), np.zeros((1, 3, 1)))
            batch = cluster.fetch(cluster.share(batch))
            print(batch.inputs.shape, batch.mask.tolist(), batch.weights)
        """,
        2,
    )
    assert first == f"(2, 3, 1) {[[True] * 3, [False] * 3]} None\n"
    assert second == ""


def test_without_other_processes_the_remedy_is_said(tmp_path):
    done = command_line.run(*TOY, "--distributed", f"--output_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "error: --distributed: the other processes were not found (" in done.stderr
    assert "start the command with srun or mpirun, or set JAX_COORDINATOR_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
