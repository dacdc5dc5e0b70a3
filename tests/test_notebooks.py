"""The notebooks: executed from top to bottom, and committed as a run of them."""

import base64
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import nbformat
import numpy as np
import pytest

import tbptt_jax
from tests import notebooks
from tests.command_line import ROOT
from tests.notebooks import NAMES, cell, figures, kinds, printed, read

INSTALLED = {
    "quickstart": ".[experiments]",
    "six_techniques": ".[series]",
    "what_truncation_loses": ".",
}
with (ROOT / "pyproject.toml").open("rb") as file:
    PROJECT = tomllib.load(file)["project"]


def execute(name, asked):
    """The notebook after a run in a fresh kernel, and what it then holds: names to expressions.

    It shows what is stored in it, other numbers apart.
    """
    notebook = read(name)
    values = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
    question = f"import json\nprint(json.dumps({{{values}}}))"
    notebook.cells.append(nbformat.v4.new_code_cell(question, id="question"))
    notebooks.execute(notebook)
    for c in notebook.cells:
        # Nothing that a reader sees may warn.
        assert not [out.text for out in c.get("outputs", []) if out.get("name") == "stderr"], c.id
    for stored in read(name).cells:
        if stored.cell_type == "code":
            message = f"{stored.id}: stored outputs are old; run python -m tests.notebooks {name}"
            assert kinds(cell(notebook, stored.id)) == kinds(stored), message
    return notebook, json.loads(printed(cell(notebook, "question")))


@pytest.mark.slow
def test_the_quickstart_learns_and_predicts():
    asked = {
        "accuracy": "accuracy",
        "loss": "loss.tolist()",
        "good": 'word_by_word("I love this film, it is wonderful.")[1].tolist()',
        "bad": 'word_by_word("This is a waste of time, boring and badly acted.")[1].tolist()',
        "words": 'word_by_word("Don\'t miss it!")[0]',
        "updates": "int(state.step)",
    }
    notebook, found = execute("quickstart", asked)
    assert found["accuracy"] > 0.72
    assert f"{found['accuracy']:.1%} of 1,246 held-out texts" in printed(cell(notebook, "evaluate"))
    assert np.mean(found["loss"][-100:]) < 0.5 < 0.65 < np.mean(found["loss"][:50])
    assert len(found["loss"]) == found["updates"] == 1128
    assert found["good"][-1] > 0.7
    assert found["bad"][-1] < 0.3
    assert found["words"] == ["don't", "miss", "it", "!"]
    assert f"love {found['good'][1]:.2f} this" in printed(cell(notebook, "predict"))
    drawn = {c.id: len(figures(c)) for c in notebook.cells if figures(c)}
    assert drawn == {"plan": 1, "losses": 1, "predict": 2, "own": 1}


@pytest.mark.slow
def test_the_six_techniques_give_what_they_say():
    asked = {
        "period": "period.steps",
        "words": "sum(map(len, ids))",
        "border": "float(squared_error(anew - through, 0)[:, 20:].mean())",
        "errors": "dict(zip(steps_tried, np.mean(errors, 1).tolist()))",
        "differences": "max(float(d) for d in jax.tree.leaves(differences))",
    }
    notebook, found = execute("six_techniques", asked)

    assert "inputs (100, 25, 1)" in printed(cell(notebook, "as-is"))
    assert "naive_split (10000, 500, 1)" in printed(cell(notebook, "naive"))
    assert "100 batches of (100, 500, 1)" in printed(cell(notebook, "naive"))
    assert "naive_split (5000, 1, 1)" in printed(cell(notebook, "one"))
    assert "50 batches of (100, 1, 1)" in printed(cell(notebook, "one"))
    assert "updates     50 and 50" in printed(cell(notebook, "one"))
    assert found["differences"] < 1e-5

    assert found["period"] == 20
    assert "20 steps: 8 batches of (132, 20, 1)" in printed(cell(notebook, "series-split"))
    assert f"words {found['words']}" in printed(cell(notebook, "sentences"))

    # What the figures show: the carry matters, and neither the shortest nor the longest is best.
    assert found["border"] > 0.1
    errors = found["errors"]
    assert list(errors) == ["2", "8", "20", "80"]
    assert min(errors, key=errors.get) == "8"
    assert "best: 8 steps" in printed(cell(notebook, "systematic-search"))
    assert 0.25 < errors["8"] < 0.33 < min(errors["2"], errors["80"])

    lines = printed(cell(notebook, "decoupled")).splitlines()
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
        drawn[section] = drawn.get(section, 0) + len(figures(c))
    numbered = [title for title in drawn if re.match(r"## \d", title)]
    assert [title[:5] for title in numbered] == [f"## {i}." for i in range(1, 7)]
    assert all(drawn[title] for title in numbered), drawn


@pytest.mark.slow
def test_what_truncation_loses_says_what_it_measures():
    asked = {
        "near": "float(entry[100])",
        "far": "float(entry[1])",
        "beyond_reach": "float(np.array(by_step[reach_30])[:, steps <= 70].max())",
        "answers": "answers",
        "beyond": "{when: shares.tolist() for when, shares in beyond.items()}",
        "bias": "bias",
        "lag": "lag",
        "of_all": "of_all.tolist()",
        "of_two": "of_two.tolist()",
        "share": "{name: float(share(plan)) for name, plan in plans.items()}",
        "right": "{name: np.array(c).tolist() for name, c in curves.items()}",
        "memory": "memory",
        "chosen": "[chosen.k1, chosen.k2, float(share(chosen))]",
    }
    _, found = execute("what_truncation_loses", asked)

    # Beyond the reach nothing, and far within it next to nothing.
    assert found["beyond_reach"] == 0
    assert 0 < found["far"] < 1e-15 < 1e-3 < found["near"]

    anywhere, anywhere_full, first, first_full, chunks = found["answers"].values()
    assert np.min([anywhere, anywhere_full, chunks]) > 0.95
    assert np.max([first, first_full]) < 0.6

    before, after = (np.array(shares) for shares in found["beyond"].values())
    assert (after > 10 * before).all()
    before, after = (np.array(biases) for biases in found["bias"].values())
    assert before.max() < 1e-5
    assert (after > 10 * before).all()

    # The lag stands out. One step short of it the two embeddings lose all, the gradient little.
    assert found["lag"] == 10
    for two in found["of_two"]:
        np.testing.assert_allclose(two, [1, 1, 0, 0], atol=2e-3)
    assert np.max(found["of_all"]) < 0.1

    nothing, half, five, loss, full = found["share"].values()
    assert (nothing, five, loss, full) == (0, 1, 1, 1)
    assert 0.5 < half < 0.6
    curves = {name: np.mean(of_seeds, axis=0) for name, of_seeds in found["right"].items()}
    nothing, half, five, loss, full = curves.values()
    assert nothing[-1] < 0.7
    assert min(half[-1], five[-1], loss[-1], full[-1]) > 0.9
    learnt = np.argmax(full > 0.95) + 1
    assert max(np.argmax(half > 0.95), np.argmax(five > 0.95)) + 1 < learnt / 2
    assert np.argmax(loss > 0.95) + 1 > learnt / 2
    _, half, five, loss, full = found["memory"].values()
    assert max(half, five) < full / 3
    assert loss > full
    assert found["chosen"] == [5, 15, 1]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_as_a_run_of_them(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for c in notebook.cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", c.id), "a readable id, not a random one"
        assert set(c.metadata) <= ({"cellView", "jupyter"} if c.id == "install" else set())
    run = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in run] == list(range(1, len(run) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_small_and_of_no_machine(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    drawn = 0
    for c in read(name).cells:
        for out in c.get("outputs", []):
            assert out.output_type in ("stream", "display_data"), (
                c.id,
                "an error, or a bare value",
            )
        text = printed(c) if c.cell_type == "code" else ""
        assert not re.search(r"/(tmp|root|home|work|usr|content)/|Warning|WARNING", text), c.id
        assert max(map(len, text.splitlines()), default=0) < 200, c.id
        for figure in figures(c):
            assert len(base64.b64decode(figure)) < 40_000, c.id
            drawn += 1
    assert drawn >= 5


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_open_in_colab(name):
    first, second, *_ = read(name).cells
    badge, link = re.findall(r"\]\(([^)]+)\)", first.source.splitlines()[0])
    assert badge.endswith("/colab-badge.svg")
    assert link.endswith(f"/{name}.ipynb")
    assert second.id == "install"


def test_links_to_colab_lead_to_the_repository_that_the_package_names():
    start = "https://colab.research.google.com/github/"
    texts = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    found = {
        link
        for path in texts
        for link in re.findall(re.escape(start) + r"[^\s)\"\\]+", path.read_text())
    }
    repository = PROJECT["urls"]["Source"].removeprefix("https://github.com/")
    assert found == {f"{start}{repository}/blob/main/notebooks/{name}.ipynb" for name in NAMES}


def test_notebooks_install_alike():
    sources = [cell(read(name), "install").source for name in NAMES]
    for name, source in zip(NAMES, sources, strict=True):
        assert f'wanted = "{INSTALLED[name]}"' in source
    alike = {re.sub(r'wanted = ".*"', "", source) for source in sources}
    assert len(alike) == 1
    extras = {e for wanted in INSTALLED.values() for e in re.findall(r"\w+", wanted)}
    assert extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", NAMES)
def test_the_install_cell_is_folded_and_prints_one_line(name, tmp_path, monkeypatch, capfd):
    install = cell(read(name), "install")
    assert install.source.splitlines()[0] == '# @title Install {display-mode: "form"}'
    assert install.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
    monkeypatch.chdir(tmp_path)
    exec(install.source, {})
    backend = importlib.import_module("jax").default_backend()
    assert capfd.readouterr() == (f"tbptt_jax {tbptt_jax.__version__} on {backend}\n", "")
    assert printed(install).startswith("tbptt_jax ")
    assert len(printed(install).splitlines()) == 1


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
        if command[0] == "git":
            (tmp_path / "tbptt_jax").mkdir()
            return subprocess.CompletedProcess(command, 0, "")
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

    # `experiments` is not installed: it is imported from the clone.
    clone, install = commands
    assert clone[:2] == ("git", "clone")
    assert clone[-1] == PROJECT["urls"]["Source"]
    assert pathlib.Path.cwd() == tmp_path / "tbptt_jax"
    assert install[:4] == (sys.executable, "-m", "pip", "install")
    assert install[install.index("-c") + 1] == "constraints.txt"
    assert install[-2:] == ("-e", INSTALLED[name])
    lines = pathlib.Path("constraints.txt").read_text().splitlines()
    kept = ("jax", "jaxlib", "matplotlib", "numpy")
    assert lines == [f"{package}=={importlib.metadata.version(package)}" for package in kept]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["above", "within"])
def test_in_colab_a_clone_that_is_there_serves_again(name, place, tmp_path, monkeypatch):
    (tmp_path / "tbptt_jax" / "tbptt_jax").mkdir(parents=True)
    (tmp_path / "tbptt_jax" / "pyproject.toml").write_text("")
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.chdir(tmp_path if place == "above" else tmp_path / "tbptt_jax")
    exec(cell(read(name), "install").source, {})
    assert [command[1:4] for command in commands] == [("-m", "pip", "install")]
    assert pathlib.Path.cwd() == tmp_path / "tbptt_jax"


@pytest.mark.parametrize("name", NAMES)
def test_beside_the_experiments_they_are_found(name, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    exec(cell(read(name), "install").source, {})
    assert pathlib.Path.cwd() == ROOT
