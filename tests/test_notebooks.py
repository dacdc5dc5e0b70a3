"""The notebooks: executed from top to bottom, and committed as they should be."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import types

import nbclient
import nbformat
import numpy as np
import pytest

from tests.command_line import ROOT

NAMES = ["quickstart", "six_techniques"]
EXTRAS = {"quickstart": "experiments", "six_techniques": "experiments,series"}


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def cell(notebook, name):
    (found,) = [c for c in notebook.cells if c.id == name]
    return found


def execute(name, folder, asked, environment):
    """The notebook after a run in a fresh kernel, and what it then holds: names to expressions."""
    notebook = read(name)
    values = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
    question = f"import json\nprint(json.dumps({{{values}}}))"
    notebook.cells.append(nbformat.v4.new_code_cell(question, id="question"))
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment)
    for c in notebook.cells:
        # Nothing that a reader sees may warn.
        assert not [out.text for out in c.get("outputs", []) if out.get("name") == "stderr"], c.id
    return notebook, json.loads(printed(notebook, "question"))


def printed(notebook, name):
    return "".join(out.text for out in cell(notebook, name).outputs if out.output_type == "stream")


def figures(c):
    return sum("image/png" in out.get("data", {}) for out in c.get("outputs", []))


@pytest.mark.slow
def test_the_quickstart_learns_and_predicts(tmp_path):
    # Few programs that run for long: here full code generation pays, other than in conftest.py.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    asked = {
        "accuracy": "accuracy",
        "loss": "loss.tolist()",
        "good": 'word_by_word("I love this film, it is wonderful.")[1].tolist()',
        "bad": 'word_by_word("This is a waste of time, boring and badly acted.")[1].tolist()',
        "words": 'word_by_word("Don\'t miss it!")[0]',
        "updates": "int(state.step)",
    }
    notebook, found = execute("quickstart", tmp_path, asked, environment)
    assert found["accuracy"] > 0.72
    assert f"{found['accuracy']:.1%} of 1,246 held-out texts" in printed(notebook, "evaluate")
    assert np.mean(found["loss"][-100:]) < 0.5 < 0.65 < np.mean(found["loss"][:50])
    assert len(found["loss"]) == found["updates"] == 1128
    assert found["good"][-1] > 0.7
    assert found["bad"][-1] < 0.3
    assert found["words"] == ["don't", "miss", "it", "!"]
    assert f"love {found['good'][1]:.2f} this" in printed(notebook, "predict")
    drawn = {c.id: figures(c) for c in notebook.cells if figures(c)}
    assert drawn == {"plan": 1, "losses": 1, "predict": 2, "own": 1}


@pytest.mark.slow
def test_the_six_techniques_give_what_they_say(tmp_path):
    asked = {
        "period": "period.steps",
        "words": "sum(map(len, ids))",
        "border": "float(squared_error(anew - through, 0)[:, 20:].mean())",
        "errors": "dict(zip(steps_tried, np.mean(errors, 1).tolist()))",
        "differences": "max(float(d) for d in jax.tree.leaves(differences))",
    }
    notebook, found = execute("six_techniques", tmp_path, asked, dict(os.environ))

    assert "inputs (100, 25, 1)" in printed(notebook, "as-is")
    assert "naive_split (10000, 500, 1)" in printed(notebook, "naive")
    assert "100 batches of (100, 500, 1)" in printed(notebook, "naive")
    assert "naive_split (5000, 1, 1)" in printed(notebook, "one")
    assert "50 batches of (100, 1, 1)" in printed(notebook, "one")
    assert "updates     50 and 50" in printed(notebook, "one")
    assert found["differences"] < 1e-5

    assert found["period"] == 20
    assert "20 steps: 8 batches of (132, 20, 1)" in printed(notebook, "series-split")
    assert f"words {found['words']}" in printed(notebook, "sentences")

    # What the figures show: the carry matters, and neither the shortest nor the longest is best.
    assert found["border"] > 0.1
    errors = found["errors"]
    assert list(errors) == ["2", "8", "20", "80"]
    assert min(errors, key=errors.get) == "8"
    assert "best: 8 steps" in printed(notebook, "systematic-search")
    assert 0.25 < errors["8"] < 0.33 < min(errors["2"], errors["80"])

    lines = printed(notebook, "decoupled").splitlines()
    scored = [re.findall(r"k1 = +(\d+), k2 = +(\d+): .*, (\d+)% of the losses", x) for x in lines]
    assert scored == [
        [("2", "2", "100")],
        [("2", "20", "100")],
        [("20", "20", "100")],
        [("20", "5", "25")],
    ]

    drawn, section = {}, ""
    for c in notebook.cells:
        if c.source.startswith("## "):
            section = c.source.splitlines()[0]
        drawn[section] = drawn.get(section, 0) + figures(c)
    numbered = [title for title in drawn if re.match(r"## \d", title)]
    assert [title[:5] for title in numbered] == [f"## {i}." for i in range(1, 7)]
    assert all(drawn[title] for title in numbered), drawn


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for c in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", c.id), "a readable id, not a random one"
        if c.cell_type == "code":
            assert not c.outputs
            assert c.execution_count is None
            assert not c.metadata


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_open_in_colab(name):
    blob = "colab.research.google.com/github/tbptt-jax/tbptt_jax/blob/main/notebooks"
    first, second, *_ = read(name).cells
    assert first.source.splitlines()[0].endswith(f"(https://{blob}/{name}.ipynb)")
    assert "colab-badge.svg" in first.source
    assert second.id == "install"


def test_notebooks_install_alike():
    one, other = (
        cell(read(name), "install").source.replace(f'"{EXTRAS[name]}"', "EXTRAS") for name in NAMES
    )
    assert "EXTRAS" in one
    assert one == other
    with (ROOT / "pyproject.toml").open("rb") as file:
        offered = tomllib.load(file)["project"]["optional-dependencies"]
    assert {e for extras in EXTRAS.values() for e in extras.split(",")} <= set(offered)


@pytest.mark.parametrize("name", NAMES)
def test_elsewhere_than_in_colab_nothing_is_installed(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(args)

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.chdir(tmp_path)
    exec(cell(read(name), "install").source, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("problem", ["", "ERROR: no"], ids=["fits", "does not fit"])
def test_in_colab_its_own_jax_stays(name, problem, tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, bool(problem), problem)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.chdir(tmp_path)
    source = cell(read(name), "install").source
    if problem:
        with pytest.raises(RuntimeError, match=problem):
            exec(source, {})
    else:
        exec(source, {})

    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[command.index("-c") + 1] == "constraints.txt"
    where = "git+https://github.com/tbptt-jax/tbptt_jax"
    assert command[-1] == f"tbptt_jax[{EXTRAS[name]}] @ {where}"
    lines = (tmp_path / "constraints.txt").read_text().splitlines()
    kept = ("jax", "jaxlib", "numpy")
    assert lines == [f"{package}=={importlib.metadata.version(package)}" for package in kept]
