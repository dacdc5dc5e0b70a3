"""Checkpoints of other versions of the library: restored, or refused with what to do."""

import subprocess

import jax.numpy as jnp
import pytest

import tbptt_jax as tbptt
from tbptt_jax import Checkpoints
from tbptt_jax.checkpoints import manager, metadata
from tests.checkpoints.test_manager import bits
from tests.command_line import ROOT

PARAMS = {"w": jnp.arange(3.0)}
BEFORE = {"params": PARAMS, "carry": jnp.zeros(2)}
NOW = {"params": PARAMS, "stream": {"carry": jnp.zeros(2)}}


def saved_by(version, tree, folder, monkeypatch):
    """A folder with a checkpoint of this version; the first did not save its own."""
    others = {name: found for name, found in metadata.versions().items() if name != "tbptt_jax"}
    found = others if version == "0.1.0" else {"tbptt_jax": version, **others}
    with monkeypatch.context() as patched, Checkpoints(folder, {"k1": 2}) as checkpoints:
        patched.setattr(manager, "versions", lambda: found)
        checkpoints.save(tree, {"epoch": 3})
    return folder


@pytest.mark.parametrize(
    ("version", "how"),
    [("0.1.0", " (in a clone: git checkout cc1657e)"), ("0.9.3", "")],
)
def test_a_training_that_an_older_version_named_otherwise(version, how, tmp_path, monkeypatch):
    folder = saved_by(version, BEFORE, tmp_path, monkeypatch)
    with Checkpoints(folder, {"k1": 2}) as checkpoints, pytest.raises(ValueError) as refused:  # noqa: PT011
        checkpoints.restore(NOW)
    assert str(refused.value) == (
        f"checkpoint 0 in {folder} was saved by tbptt_jax {version}, and this is "
        f"{tbptt.__version__}, which names the arrays of a training differently:\n"
        "  ['carry']: float64[2] in the checkpoint, nothing now\n"
        "  ['stream']['carry']: nothing in the checkpoint, float64[2] now\n"
        f"Resume with tbptt_jax {version}{how}, or give another folder to start over"
    )
    assert (folder / "0").is_dir()  # not taken for damage


@pytest.mark.parametrize("version", ["0.1.0", "0.9.3"])
def test_what_has_the_same_names_is_restored_with_a_warning(version, tmp_path, monkeypatch, caplog):
    folder = saved_by(version, PARAMS, tmp_path, monkeypatch)
    with Checkpoints(folder, {"k1": 2}) as checkpoints:
        found = checkpoints.restore(PARAMS)
    assert found is not None
    assert found.progress == {"epoch": 3}
    assert bits(found.tree) == bits(PARAMS)
    assert caplog.messages == [
        f"checkpoint 0 in {folder}: tbptt_jax: {version} in the checkpoint, {tbptt.__version__} "
        "now; the same bits are not promised"
    ]


def test_another_config_is_another_training_whatever_the_version(tmp_path, monkeypatch):
    folder = saved_by("0.1.0", PARAMS, tmp_path, monkeypatch)
    with (
        Checkpoints(folder, {"k1": 3}) as checkpoints,
        pytest.raises(ValueError, match="belongs to another training:\n  k1: 2 in the checkpoint"),
    ):
        checkpoints.restore(PARAMS)


@pytest.mark.parametrize(("version", "commit"), metadata.COMMITS.items())
def test_the_commit_of_a_version_has_that_version(version, commit):
    show = ["git", "show", f"{commit}:pyproject.toml"]
    done = subprocess.run(show, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a clone with its history")
    assert f'\nversion = "{version}"\n' in done.stdout
