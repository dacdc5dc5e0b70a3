"""Files that are not what they should be: each is refused by name, or what it gives is sound.

Small valid files are damaged in many ways, the same ones each time. Nothing that is read is run.
"""

import ast
import dataclasses
import hashlib
import importlib.machinery
import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from experiments import char_lm, run
from experiments.config import to_json
from experiments.files import DataError
from experiments.run import RunFolder
from experiments.tasks import packaged
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.reviews import Config, load_texts
from tests.command_line import ROOT

DAMAGES = 22  # of each kind of file; 5 kinds


def damage(content: bytes, seed: int) -> bytes:
    """The content, damaged in one of many ways."""
    rng = random.Random(seed)
    at = rng.randrange(len(content) + 1)
    other = rng.randrange(at, len(content) + 1)
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 5, 50])):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: bytes(flipped),
        lambda: content[:at] + b"\xff\xfe\x80" + content[at:],
        lambda: content[:at] + bytes(rng.randrange(256) for _ in range(30)) + content[at:],
        lambda: content[:at] + b"x" * 200_000 + content[at:],
        lambda: content[:at] + content[other:],
        lambda: content[:at] + content[at:other] * 3 + content[other:],
        lambda: content[:at] + b"\0" + content[at:],
        lambda: content[:at] + rng.choice([b"NaN", b"-Infinity", b"-1", b"1e999"]) + content[at:],
        lambda: content.replace(b",", rng.choice([b";", b",,", b"\n", b"[" * 100_000])),
        lambda: b"",
    ]
    return ways[seed % len(ways)]()


def loaded(load: Callable[[], Any], name: str) -> Any:
    """What is loaded; None if it is refused with a message that names the file."""
    try:
        return load()
    except (DataError, SystemExit) as error:
        message = str(error)
    assert name in message
    assert len(message) < 2_000
    return None


damages = pytest.mark.parametrize("seed", range(DAMAGES))


# ------------------------------------------------------------------------------- the packaged files


@pytest.mark.parametrize("kind", ["missing", "changed", "folder", "no package"])
def test_a_packaged_file_that_is_not_there(kind, tmp_path, monkeypatch):
    spec = importlib.machinery.ModuleSpec("made_up", None, is_package=True)
    spec.submodule_search_locations = [] if kind == "no package" else [str(tmp_path)]
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: spec)
    known = hashlib.sha256(b"1").hexdigest()
    file = PackagedFile("made_up", "a.txt", known, "the numbers", "made-up==1")
    if kind == "changed":
        (tmp_path / "a.txt").write_bytes(b"2")
    if kind == "folder":
        (tmp_path / "a.txt").mkdir()
    with pytest.raises(DataError, match=r"the numbers are not|a\.txt"):
        file.read()


# --------------------------------------------------------------------------- the folder of reviews


@damages
def test_a_damaged_folder_of_reviews(seed, tmp_path):
    for part in ("train", "test"):
        for label in ("pos", "neg"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}_7.txt").write_text(f"a {label} caf\u00e9 {i}", encoding="utf-8")
    rng = random.Random(seed)
    path = tmp_path / rng.choice(["train", "test"]) / rng.choice(["pos", "neg"]) / "2_7.txt"
    content = path.read_bytes()
    path.unlink()
    ways = [
        path.mkdir,
        lambda: path.with_name("x_7.txt").write_bytes(content),
        lambda: path.with_name("\u00b2_7.txt").write_bytes(content),
        lambda: path.symlink_to(tmp_path / "nowhere"),
        lambda: [p.unlink() for p in sorted(path.parent.iterdir())[1:]],
        lambda: [p.unlink() for p in path.parent.iterdir()],
        *[lambda: path.write_bytes(damage(content, seed))] * 5,
    ]
    ways[seed % len(ways)]()
    config = dataclasses.replace(Config(), data_dir=str(tmp_path), vocabulary=5, max_length=3)
    found = loaded(lambda: load_texts(config), str(path.parent))
    if found is not None:
        parts, vocabulary = found
        assert set(parts) == {"train", "valid", "test"}
        for texts in parts.values():
            assert len(texts.texts) == len(texts.labels) > 0
            for ids in texts.texts:
                assert 1 <= len(ids) <= 3
                assert 0 < ids.min() <= ids.max() < len(vocabulary)


# --------------------------------------------------------------------------------- a run's folder


@damages
def test_a_damaged_list_of_words(seed, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(damage(json.dumps(["the", "a", "caf\u00e9"]).encode(), seed))
    found = loaded(lambda: RunFolder(tmp_path).read_json("vocabulary.json", list[str]), str(path))
    if found is not None:
        assert all(isinstance(word, str) for word in found)


@damages
@pytest.mark.parametrize("kind", [Config, char_lm.Config])
def test_a_damaged_configuration(kind, seed, tmp_path):
    folder, path = RunFolder(tmp_path), tmp_path / run.CONFIG
    folder.write_json(run.CONFIG, to_json(kind()))
    assert folder.read_config(kind) == kind()
    path.write_bytes(damage(path.read_bytes(), seed))
    found = loaded(lambda: folder.read_config(kind), str(path))
    if found is not None:
        for field in dataclasses.fields(kind):
            least, value = field.metadata["least"], getattr(found, field.name)
            if field.type in (int, float):
                assert np.isfinite(value)
                assert least is None or value >= least
            if field.type in (int, bool, str):
                assert type(value) is field.type


@pytest.mark.parametrize(
    "change",
    [
        {"k1": "3"},
        {"k1": 0},
        {"k1": True},
        {"k1": [1, 2]},
        {"k1": 2**31},
        {"unknown": 1},
        {"dropout": math.nan},
        {"dropout": 1},
        {"anchor": "both"},
        {"fast": 1},
        {"data_dir": ""},
    ],
    ids=str,
)
def test_a_configuration_that_no_flags_give_is_refused(change, tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json(run.CONFIG, {**to_json(Config()), **change})
    with pytest.raises(SystemExit, match=str(tmp_path / run.CONFIG)):
        folder.read_config(Config)


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_a_configuration_without_flags_is_refused(content, tmp_path):
    (tmp_path / run.CONFIG).write_text(content)
    with pytest.raises(SystemExit, match=str(tmp_path / run.CONFIG)):
        RunFolder(tmp_path).read_config(Config)


PARAMS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float32)}


def sound_params(found):
    for name, array in PARAMS.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert np.isfinite(np.asarray(found[name])).all()


@damages
def test_damaged_parameters(seed, tmp_path):
    folder, path = RunFolder(tmp_path), tmp_path / run.PARAMS
    folder.save_params(PARAMS)
    content = path.read_bytes()
    for more in range(3):
        path.write_bytes(damage(content, seed + DAMAGES * more))
        found = loaded(lambda: folder.load_params(PARAMS), str(path))
        if found is not None:
            sound_params(found)


class Trap:
    """Whoever unpickles it is caught."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    "arrays",
    [
        {"['a']": np.array([Trap()]), "['b']": PARAMS["b"]},
        {"['a']": np.array([["x"] * 3] * 2), "['b']": PARAMS["b"]},
        {"['a']": PARAMS["a"] * np.nan, "['b']": PARAMS["b"]},
        {"['a']": PARAMS["a"].T, "['b']": PARAMS["b"]},
        {"['a']": PARAMS["a"]},
    ],
    ids=["objects", "words", "not finite", "another shape", "missing"],
)
def test_what_are_no_parameters_is_refused_and_never_unpickled(arrays, tmp_path):
    np.savez(tmp_path / run.PARAMS, **arrays)
    with pytest.raises(SystemExit, match=str(tmp_path / run.PARAMS)):
        RunFolder(tmp_path).load_params(PARAMS)


@pytest.mark.parametrize("kind", ["folder", "array", "missing"])
def test_parameters_that_are_something_else(kind, tmp_path):
    path = tmp_path / run.PARAMS
    if kind == "folder":
        path.mkdir()
    elif kind == "array":
        with io.BytesIO() as file:
            np.save(file, PARAMS["a"], allow_pickle=False)
            path.write_bytes(file.getvalue())
    with pytest.raises(SystemExit, match=str(path)):
        RunFolder(tmp_path).load_params(PARAMS)


@damages
def test_damaged_rows(seed, tmp_path):
    folder, path = RunFolder(tmp_path), tmp_path / "rows.jsonl"
    assert folder.read_rows("rows.jsonl", dict) == []
    rows = [{"k1": i, "score": i / 7} for i in range(20)]
    folder.write_rows("rows.jsonl", rows)
    assert folder.read_rows("rows.jsonl", dict) == rows
    path.write_bytes(damage(path.read_bytes(), seed))
    found = loaded(lambda: folder.read_rows("rows.jsonl", dict), str(path))
    if found is not None:
        assert all(isinstance(row, dict) for row in found)


@pytest.mark.parametrize("line", ["3", "[1]", "null", '"row"', "[" * 100_000])
def test_a_line_that_is_no_row_is_refused(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(SystemExit, match=rf"{path}.* line 2"):
        RunFolder(tmp_path).read_rows("rows.jsonl", dict)


@pytest.mark.parametrize("name", ["config.json", "rows.jsonl", "vocabulary.json"])
def test_a_folder_in_the_place_of_a_file(name, tmp_path):
    path = tmp_path / name
    path.mkdir()
    for read in (
        lambda: RunFolder(tmp_path).read_json(name),
        lambda: RunFolder(tmp_path).read_rows(name, dict),
        lambda: RunFolder(tmp_path).read_json(name, list[str]),
    ):
        with pytest.raises(SystemExit, match=str(path)):
            read()


# ------------------------------------------------------------------------------ what runs nothing

RUNS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# They run the notebooks and the README of this repository, as a reader would.
EXECUTE = {"tests/markdown.py", "tests/test_notebooks.py"}


def dangerous(source: str) -> list[str]:
    """What of a module could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in RUNS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in RUNS else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load") or called.startswith("builtins."):
                found.append(called)
            found += [
                "allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return found


def modules():
    for folder in ("tbptt_jax", "experiments", "tests", "benchmarks", "notebooks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_nothing_that_is_read_is_run():
    names = [str(path.relative_to(ROOT)) for path in modules()]
    found = {name: dangerous((ROOT / name).read_text(encoding="utf-8")) for name in names}
    assert len(found) > 50
    assert {name: what for name, what in found.items() if what and name not in EXECUTE} == {}
    assert {name for name, what in found.items() if what} >= EXECUTE


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "eval('1')",
        "exec(text, {})",
        "torch.load('x')",
        "with shelve_() as s:\n    import shelve",
    ],
)
def test_what_could_run_is_seen(source):
    assert len(dangerous(source)) == 1


def test_every_damage_is_a_damage():
    content = json.dumps({"a": [1, 2, 3], "b": "text"}).encode()
    damaged = [damage(content, seed) for seed in range(DAMAGES)]
    assert sum(d != content for d in damaged) >= DAMAGES - 2
