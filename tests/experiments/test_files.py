"""Files of a run: written whole and never through a link, read only where they are plain files."""

import dataclasses
import errno
import json
import os
import stat
import threading
import zipfile

import pytest

from experiments import char_lm, credit_matrices, files, grid_search, sentiment
from experiments.config import RunOptions, to_json
from experiments.figures import axes
from experiments.files import DataError
from experiments.run import RunFolder
from experiments.trainer import Progress

PARAMS = {"a": [1.0, 2.0]}


class Toy(RunOptions):
    """Of no experiment."""

    NAME = "toy"


def write_config(run):
    run.write_json("config.json", {"a": 1})


def write_epochs(run):
    run.save_epoch([{"epoch": 1}], None)


def write_rows(run):
    run.write_rows("rows.jsonl", [{"a": 1}])


def write_figure(run):
    run.write_figure("a.png", axes(1, 1, (1, 1))[0])


def write_picture(run):
    credit_matrices.main(credit_matrices.Config(output=str(run.path / "b.png")))


WRITERS = {
    "config.json": write_config,
    "metrics.jsonl": write_epochs,
    "params.npz": lambda run: run.save_params(PARAMS),
    "rows.jsonl": write_rows,
    "a.png": write_figure,
    "b.png": write_picture,
}
writers = pytest.mark.parametrize("name", WRITERS)


@writers
def test_nothing_is_written_through_a_link(name, tmp_path):
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    for path in (folder / name, folder / f"{name}.part", folder / f".{name}.part"):
        target.write_bytes(b"{}\n")
        path.symlink_to(target)
    before = target.read_bytes()
    WRITERS[name](RunFolder(folder))
    assert target.read_bytes() == before
    assert stat.S_ISREG((folder / name).lstat().st_mode)
    assert (folder / f"{name}.part").is_symlink()


@writers
def test_a_link_to_nowhere_makes_no_file_there(name, tmp_path):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    WRITERS[name](RunFolder(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@writers
def test_what_is_a_folder_is_refused_and_a_folder_of_another_name_is_not_in_the_way(name, tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / f"{name}.part").mkdir()
    WRITERS[name](run)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match=rf"{tmp_path / name} cannot be .*Is a directory"):
        WRITERS[name](run)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"{name}.part"])


@writers
def test_a_full_disk_leaves_what_was_there(name, tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    WRITERS[name](run)
    before = (tmp_path / name).read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match=rf"{tmp_path / name} cannot be .*No space left") as ended:
        WRITERS[name](run)
    assert str(ended.value).startswith("error: ")
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_tells_how_to_resume_where_something_is_saved(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with RunFolder.create(Toy(output_dir=str(path))) as run:
        for saved in (False, True):
            if saved:
                run.save_epoch([{"epoch": 1}], None)
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", lambda number: os.read(-1, 1))
                with pytest.raises(SystemExit, match="a.png cannot be written") as ended:
                    write_figure(run)
            said = f"resume with\n  python -m experiments.toy --output_dir={path} --resume"
            assert str(ended.value).endswith(said) == saved
            assert saved or str(ended.value).endswith("and try again")


def test_files_are_made_as_the_user_makes_files(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "a", lambda file: file.write(b"1"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    torn = tmp_path / f".params.npz.{'0a' * 8}.part"
    torn.write_text("torn")
    others = [tmp_path / name for name in ("a.part", ".b.part", ".c.0a0a.part", "d.png")]
    for path in others:
        path.write_text("mine")
    (tmp_path / f".e.{'0b' * 8}.part").mkdir()
    (tmp_path / f".f.{'0c' * 8}.part").symlink_to(tmp_path / "d.png")
    files.remove_parts(tmp_path)
    assert not torn.exists()
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "d.png").read_text() == "mine"


def odd_file(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            os.truncate(file.fileno(), 2**40)
    elif kind == "a link to itself":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("pipe", "it is not a plain file"),
        ("device", "it is not a plain file"),
        ("folder", "Is a directory"),
        ("huge", "it has 1,099,511,627,776 bytes, at most"),
        ("a link to itself", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_plain_file_is_refused_at_once(kind, why, tmp_path):
    run = RunFolder(tmp_path)
    readers = {
        "config.json": lambda: run.read_json("config.json"),
        "params.npz": lambda: run.load_params({"a": [0.0, 0.0]}),
        "rows.jsonl": lambda: run.read_rows("rows.jsonl", dict),
    }
    for name, read in readers.items():
        odd_file(tmp_path / name, kind)
        found = []

        def look(read=read, found=found):
            try:
                read()
            except SystemExit as ended:
                found.append(str(ended))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(10)
        assert len(found) == 1, f"{name} is waited for"
        assert str(tmp_path / name) in found[0]
        assert why in found[0]


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.npy", bytes(2**25))
    assert (tmp_path / "params.npz").stat().st_size < 2**20
    with pytest.raises(SystemExit, match="it unpacks to more than the parameters"):
        RunFolder(tmp_path).load_params({"a": [0.0, 0.0]})


KIND = {"a": int, "b": {"how": str}, "c": list[float]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": 1, "b": {"how": "x"}, "c": [1.0, 2]}, True),
        ({"a": 1, "b": {"how": "x"}, "c": [1.0, 2.0], "more": None}, True),
        ({"a": 1.0, "b": {"how": "x"}, "c": [1.0, 2.0]}, False),
        ({"a": True, "b": {"how": "x"}, "c": [1.0, 2.0]}, False),
        ({"a": 1, "b": {"how": 3}, "c": [1.0, 2.0]}, False),
        ({"a": 1, "b": {"how": "x"}, "c": [1.0, "2"]}, False),
        ({"a": 1, "b": None, "c": [1.0, 2.0]}, False),
        ({"b": {"how": "x"}, "c": [1.0, 2.0]}, False),
        (None, False),
        ([], False),
    ],
    ids=str,
)
def test_json_of_another_kind_is_refused(content, expected, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    if expected:
        assert files.read_json(path, KIND) == content
    else:
        said = r"must hold an object with a \(an integer\), b \(an object with how \(a text\)\), c"
        with pytest.raises(DataError, match=rf"{path} {said} \(a list\), got something else"):
            files.read_json(path, KIND)


def write_sample(run):
    char_lm.write_sample(char_lm.Config(output_dir=str(run.path)), 1)


READERS = {
    "config.json": lambda run: char_lm.write_sample(char_lm.Config(output_dir=str(run.path)), 1),
    "characters.json": lambda run: char_lm.write_sample(
        char_lm.Config(output_dir=str(run.path)), 1
    ),
    "vocabulary.json": lambda run: sentiment.predict(str(run.path), "good"),
    "spread.json": grid_search.read_spreads,
    "rows.jsonl": lambda run: run.read_rows("rows.jsonl", grid_search.ROW),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", ["null", "3", "true", "1e999", '{"update": null}', "[1]"])
def test_an_experiment_refuses_json_of_another_kind(name, content, tmp_path):
    run = RunFolder(tmp_path)
    config = sentiment.Config() if name == "vocabulary.json" else char_lm.Config()
    run.write_json("config.json", to_json(config))
    (tmp_path / "params.npz").write_bytes(b"")
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(SystemExit, match=rf"^error: .*{tmp_path / name}"):
        READERS[name](run)


def test_the_progress_of_a_checkpoint_is_of_its_kind():
    progress = Progress([0.5], [2.0], [0], [[{"epoch": 1}]], epoch=1)
    good = dataclasses.asdict(progress)
    assert files.as_fields(Progress, good) == progress
    for bad in (
        None,
        [],
        {**good, "epoch": None},
        {**good, "histories": {}},
        {**good, "more": 1},
        {},
    ):
        with pytest.raises(
            DataError, match=r"--resume: the progress of a checkpoint must be an ob"
        ):
            files.as_fields(Progress, bad)


def test_checkpoints_are_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match=r"run/checkpoints is a link; put the folder itself"):
        RunFolder(tmp_path / "run").saving("training")
