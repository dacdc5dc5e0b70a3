"""What is installed is the library; what is distributed as source is the repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import tbptt_jax
from tests.command_line import ROOT

BUILD = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"

HEAVY = ("chex", "matplotlib", "orbax", "scipy", "tensorstore")


def test_importing_the_library_loads_what_jax_flax_and_optax_load():
    loaded = {
        names: subprocess.run(
            [sys.executable, "-c", f"import {names}, sys; print(*sorted(sys.modules))"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for names in ("jax, flax.nnx, optax", "tbptt_jax")
    }
    ours = set(loaded["tbptt_jax"]) - set(loaded["jax, flax.nnx, optax"])
    assert "tbptt_jax.checkpoints.store" in ours
    assert ours.isdisjoint(HEAVY)


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a clone")
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture
def built(tmp_path_factory):
    """The wheel and the source distribution of what git tracks, with some litter beside it.

    In the folder DIST if that is set, where .ci/run checks them further.
    """
    copy = tmp_path_factory.mktemp("copy")
    out = pathlib.Path(os.environ.get("DIST") or tmp_path_factory.mktemp("out"))
    out.mkdir(exist_ok=True)
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for litter in ("runs/a/config.json", "data/a.csv", "tests/a.pyc", "docs/__pycache__/b.pyc"):
        (copy / litter).parent.mkdir(parents=True, exist_ok=True)
        (copy / litter).write_text("litter")
    # With a setuptools that pyproject.toml asks for, where there is none to build with.
    tools = tmp_path_factory.mktemp("tools")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), "setuptools>=77"]
    subprocess.run(pip, check=True, capture_output=True)
    for kind in ("build_sdist", "build_wheel"):
        subprocess.run(
            [sys.executable, "-c", BUILD, kind, str(out)],
            cwd=copy,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(tools)},
        )
    return out


def in_sdist(folder):
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {str(pathlib.Path(*pathlib.Path(m.name).parts[1:])) for m in file if m.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    return {name for name in names if not name.startswith("tbptt_jax.egg-info/")} - made


def in_wheel(folder):
    (path,) = folder.glob("*.whl")
    assert path.name.startswith(f"tbptt_jax-{tbptt_jax.__version__}-")
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
        (metadata,) = (file.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    return {name for name in names if ".dist-info/" not in name}, metadata


# One test, so that they are built once.
@pytest.mark.slow
def test_the_source_distribution_is_the_repository_and_the_wheel_the_library(built):
    assert in_sdist(built) == tracked()
    names, metadata = in_wheel(built)
    assert names == {name for name in tracked() if name.startswith("tbptt_jax/")}
    assert {"tbptt_jax/py.typed", "tbptt_jax/data/__init__.py"} <= names
    for line in ("Project-URL: Source, https://", "Classifier: Typing :: Typed", "# tbptt_jax"):
        assert f"\n{line}" in metadata


@pytest.mark.slow
def test_an_editable_install_lends_no_other_name_to_the_user(tmp_path):
    tools, site = tmp_path / "tools", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*pip, str(tools), "setuptools>=77"], check=True, capture_output=True)
    subprocess.run(
        [*pip, str(site), "--no-build-isolation", "-e", str(ROOT)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tools)},
    )
    look = (
        "import importlib.util, site, sys; site.addsitedir(sys.argv[1]); "
        "print([bool(importlib.util.find_spec(n)) for n in ('tbptt_jax', 'experiments', 'tests', "
        "'benchmarks', 'conftest')])"
    )
    # -S: without what else is installed here.
    done = subprocess.run(
        [sys.executable, "-S", "-c", look, str(site)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[True, False, False, False, False]\n", done.stderr


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {tbptt_jax.__version__}" in lines


@pytest.fixture
def release(tmp_path):
    """A repository with the files that .ci/release looks at, ready to be released."""
    files = {
        "CHANGELOG.md": "# Changelog\n\n## [1.2.3] - 2026-01-31\n\n## [1.2.2] - 2026-01-01\n",
        "CITATION.cff": "title: x\nversion: 1.2.3\n",
        "tbptt_jax/version.py": '__version__ = "1.2.3"\n',
        ".ci/release": (ROOT / ".ci/release").read_text(encoding="utf-8"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    return tmp_path


def commit(folder):
    for line in (["add", "-A"], ["commit", "-qm", "x"]):
        git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *line]
        subprocess.run(git, cwd=folder, check=True, capture_output=True)


def refusal(folder, *arguments):
    """What .ci/release says when it refuses."""
    line = ["bash", ".ci/release", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert not (folder / "dist").exists()
    return done.stderr


def test_a_release_needs_a_clean_tree(release):
    (release / "new").write_text("")
    assert "uncommitted changes" in refusal(release)


@pytest.mark.parametrize(
    "heading", ["## [Unreleased]: 1.2.3", "## [1.2.2] - 2026-01-31", "## 1.2.3"]
)
def test_a_release_begins_the_changelog(release, heading):
    (release / "CHANGELOG.md").write_text(f"{heading}\n\n## [1.2.3] - 2026-01-31\n")
    commit(release)
    assert heading in refusal(release)


def test_a_release_is_what_the_citation_names(release):
    (release / "CITATION.cff").write_text("version: 1.2.2\n")
    commit(release)
    assert "CITATION.cff must say version: 1.2.3" in refusal(release)


def test_a_release_is_tagged_once(release):
    subprocess.run(["git", "tag", "v1.2.3"], cwd=release, check=True)
    assert "v1.2.3 exists" in refusal(release)


@pytest.mark.parametrize("arguments", [["--Upload"], ["--tag", "--upload"]])
def test_a_release_takes_one_flag_that_it_knows(release, arguments):
    assert "--tag or --upload" in refusal(release, *arguments)
