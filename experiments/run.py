"""One run on disk: its configuration, its results, and how it resumes after an interruption.

Only JSON and plain arrays: reading a folder, a stranger's too, never executes anything.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import platform
import re
import signal
import sys
import typing
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import jax
import numpy as np

import experiments
import tbptt_jax
from experiments import config as configs
from experiments import files
from experiments.config import Options, RunOptions
from experiments.files import DataError, Kind, stop
from experiments.saving import Saving, Signals
from tbptt_jax import processes
from tbptt_jax.checkpoints.lock import FolderLock
from tbptt_jax.types import Params

C = TypeVar("C", bound=Options)
CONFIG, METRICS, PARAMS, RESULT = "config.json", "metrics.jsonl", "params.npz", "result.json"
CHECKPOINTS = "checkpoints"
FORMAT = 2  # of what a run saves in order to resume
# What runs write: a folder that holds such files belongs to someone.
_WRITTEN = {".json", ".jsonl", ".npz", ".png"}
_CHECKPOINT = re.compile(r"(damaged-)?\d+")


@contextlib.contextmanager
def _of_output_dir() -> Iterator[None]:
    """Within it, a folder that cannot be used ends the program with the flag's name."""
    try:
        yield
    except OSError as error:
        stop(f"--output_dir: {files.in_a_line(error)}; give another folder")


@_of_output_dir()
def configure(kind: type[C]) -> C:
    """The configuration that the command line requests.

    With --fast, fields that are not set have their fast values. With --resume, they have those of
    the run, and a field that is set must not differ from it.
    """
    changes = configs.set_flags(kind)
    if not changes.get("resume"):
        fast = configs.fast_values(kind) if changes.get("fast") else {}
        return kind(**{**fast, **changes})
    if "output_dir" not in changes:
        found = newest(kind.NAME, resumable)
        if found is None:
            stop("--resume: there is no run in runs/ to resume; leave --resume out to start one")
        print(f"resuming {found}, the newest run that left something to resume")
        changes["output_dir"] = str(found)
    run = RunFolder(changes["output_dir"])
    if not (run.path / CONFIG).exists():
        stop(f"--resume: {run.path} holds no run; leave --resume out to start one")
    content, now = run.read_json(CONFIG), versions()
    if content.get("format") != FORMAT:
        stop(
            f"--resume: {run.path} was saved by another version of the experiments, and this is "
            f"tbptt_jax {tbptt_jax.__version__}; resume it with that version (of before 0.2.0: git "
            "checkout cc1657e), or start a new run in another --output_dir"
        )
    before = content.get("versions", now)  # the first runs of this format have none
    if not isinstance(before, dict):
        before = {}
    changed = [f"{k} {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        print(f"{run.path} was started with other versions: {'; '.join(changed)}")
    started = run.read_config(kind)
    differing = [
        f"--{name}={value}, and {run.path} was started with {getattr(started, name)}"
        for name, value in changes.items()
        if name in configs.computed(kind) and getattr(started, name) != value
    ]
    if differing:
        stop(
            f"--resume: {'; '.join(differing)}; leave the flag out to resume, or give another "
            "--output_dir to start a new run"
        )
    return dataclasses.replace(started, **changes)


def resumable(path: pathlib.Path) -> bool:
    """Whether a run left something to resume: checkpoints, rows, or parameters."""
    saved = (p for p in path.glob(f"{CHECKPOINTS}/*/*") if _CHECKPOINT.fullmatch(p.name))
    return (path / CONFIG).exists() and any([*path.glob("*.jsonl"), *path.glob(PARAMS), *saved])


def newest(name: str, wanted: Callable[[pathlib.Path], bool]) -> pathlib.Path | None:
    """The newest wanted folder runs/NAME-TIME."""
    form = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    named = ((form.fullmatch(p.name), p) for p in pathlib.Path("runs").glob(f"{name}-*"))
    by_time = sorted(((m[1], int(m[2] or 1)), p) for m, p in named if m)
    for _, path in reversed(by_time):
        # A folder that cannot be looked into is another user's.
        if os.access(path, os.R_OK | os.X_OK) and wanted(path):
            return path
    return None


def make_folder(name: str) -> pathlib.Path:
    """Make runs/NAME-TIME; a process that finds it taken makes NAME-TIME-2, and so on."""
    # In UTC, as local time goes back once a year.
    stem = f"{name}-{datetime.datetime.now(datetime.UTC).strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = pathlib.Path("runs", stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.parent.is_dir():
                stop(f"{path.parent} must be a folder; remove it, or give --output_dir")
        except OSError as error:
            stop(
                f"{path} cannot be made ({error.strerror}); give a folder that can be written to "
                "with --output_dir"
            )
    raise AssertionError("there is always another number")


class RunFolder:
    """One run's results: config.json, metrics.jsonl, params.npz, result.json and figures.

    Checkpoints are in checkpoints/, a folder for each training.
    """

    def __init__(self, path: str | pathlib.Path, options: RunOptions | None = None):
        self.path = pathlib.Path(path)
        self._options = options or RunOptions()
        self._signals: Signals | None = None
        self._lock: FolderLock | None = None
        self._made = False
        self._written: set[str] = set()

    @classmethod
    def create(cls, config: RunOptions) -> "RunFolder":
        """The folder of a run that starts or resumes, for a `with`; another run's is refused.

        Within the `with` no other process gets the folder, and Ctrl-C and SIGTERM end the program
        with the command that resumes the run. An error before anything was saved leaves nothing
        behind.
        """
        if config.output_dir is None:
            run = cls(processes.on_first(lambda: str(make_folder(config.NAME))), config)
            run._made = True
        else:
            run = cls(config.output_dir, config)
            processes.on_first(run._make)
        processes.on_first(run._claim)
        if not config.resume:
            try:
                about = {"format": FORMAT, "versions": versions()}
                run.write_json(CONFIG, {**about, **configs.to_json(config)})
            except BaseException:
                run._release({CONFIG})
                raise
        run._signals = Signals(run.leave)
        print(f"{config.NAME}: {run.path}{_how_long(config)}", flush=True)
        return run

    def _make(self) -> None:
        """Make --output_dir if it is missing."""
        try:
            self._made = not (self._options.resume or self.path.exists())
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            stop(
                f"--output_dir: {self.path} cannot be made ({error.strerror}); give a folder that "
                "can be written to"
            )
        if not os.access(self.path, os.W_OK | os.X_OK):
            stop(
                f"--output_dir: {self.path} cannot be written to; give write permission, or copy "
                "it elsewhere and give the copy"
            )

    @_of_output_dir()
    def _claim(self) -> None:
        """Lock the folder; one in which the run might overwrite something is refused."""
        self._lock = FolderLock(self.path)
        try:
            self._lock.acquire()
        except BlockingIOError as error:
            stop(f"--output_dir: {error.strerror} ({self.path})")
        try:
            if self._options.resume:
                files.remove_parts(self.path)
                return
            names = sorted(p.name for p in self.path.iterdir())
            if CONFIG in names:
                stop(
                    f"--output_dir: {self.path} already holds a run; resume it with --resume, give "
                    "another folder, or remove it"
                )
            taken = [n for n in names if n == CHECKPOINTS or pathlib.Path(n).suffix in _WRITTEN]
            if taken:
                stop(
                    f"--output_dir: {self.path} holds {taken[0]}, which a run might overwrite; "
                    "give another folder"
                )
        except BaseException:
            self._lock.release()
            raise

    def _release(self, forget: set[str]) -> None:
        """Unlock the folder, without the files to forget and the folders that are then empty."""
        if not processes.is_first():
            return
        for name in forget:
            (self.path / name).unlink(missing_ok=True)
        assert self._lock is not None
        self._lock.release()
        if forget:
            checkpoints = self.path / CHECKPOINTS
            for path in (*checkpoints.glob("*"), checkpoints, *[self.path] * self._made):
                with contextlib.suppress(OSError):  # it is missing, or something is in it
                    path.rmdir()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        failed = error is not None and not self._options.resume and not resumable(self.path)
        self._release(self._written if failed else set())

    @classmethod
    @_of_output_dir()
    def open(cls, output_dir: str | None, name: str) -> "RunFolder":
        """The folder of a trained run; None: the newest finished one of runs/NAME-TIME.

        An interrupted run has its best parameters so far.
        """
        if output_dir is None:
            finished = newest(name, lambda path: (path / RESULT).exists())
            if finished is None:
                stop(f"there is no finished run in runs/; run python -m experiments.{name} first")
            output_dir = str(finished)
        run = cls(output_dir)
        print(f"the network of {run.path}:", file=sys.stderr)
        if not (run.path / PARAMS).exists():
            stop(
                f"{output_dir} holds no trained network (no {PARAMS}); give the folder of a run of "
                f"experiments.{name}"
            )
        return run

    @property
    def resume_command(self) -> str:
        """What to type to resume this run."""
        return f"python -m experiments.{self._options.NAME} --output_dir={self.path} --resume"

    def leave(self, number: int) -> typing.NoReturn:
        """End the program after a signal."""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if resumable(self.path):
            what = f"; resume with\n  {self.resume_command}"
        else:
            what = " before anything was saved"
        sys.stderr.write(f"\nstopped by {name}{what}\n")  # one write: other threads write too
        sys.exit(128 + number)

    def saving(self, training: str) -> Saving:
        """How one training of this run is saved; each has another name."""
        folder = self.path / CHECKPOINTS / training
        for part in (folder.parent, folder):
            if part.is_symlink():
                stop(f"--output_dir: {part} is a link; put the folder itself in its place")
        return Saving(folder, self._options, self._signals, self.resume_command)

    def write(self, name: str, write: Callable[[BinaryIO], Any]) -> None:
        """Write a file, all of it or, when the run is killed or the disk is full, nothing.

        Of several processes the first one writes.
        """
        processes.on_first(lambda: self._write(name, write))

    def _write(self, name: str, write: Callable[[BinaryIO], Any]) -> None:
        try:
            files.write(self.path / name, write)
        except OSError as error:
            again = "try again"
            if self._lock is not None and resumable(self.path):
                again = f"resume with\n  {self.resume_command}"
            stop(
                f"{self.path / name} cannot be written ({error.strerror}); make room or give "
                f"write permission, and {again}"
            )
        self._written.add(name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        text = json.dumps(content, indent=2) + "\n"
        self.write(name, lambda file: file.write(text.encode()))

    def write_result(self, content: dict[str, Any]) -> None:
        """Write result.json, with the versions that computed it."""
        self.write_json(RESULT, {**content, "versions": versions()})

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a figure, as PNG."""
        self.write(name, lambda file: figure.savefig(file, format="png"))

    def read_json(self, name: str, kind: Kind = dict) -> Any:
        """Read a JSON file of a kind."""
        try:
            return files.read_json(self.path / name, kind)
        except DataError as error:
            stop(f"--output_dir: {error}; give the folder of another run")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows, JSON in a line each."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.write(name, lambda file: file.write(lines.encode()))

    def read_rows(self, name: str, kind: Kind) -> list[dict[str, Any]]:
        """The rows of a file, each of a kind; none where it is missing."""
        path = self.path / name
        try:
            return files.read_rows(path, kind)
        except FileNotFoundError:
            return []
        except OSError as error:
            stop(f"--output_dir: {path} cannot be read ({error.strerror})")
        except DataError as error:
            stop(f"--output_dir: {error}; remove that line, and what it held is computed again")

    def read_config(self, kind: type[C]) -> C:
        """The configuration that the run was started with."""
        content = self.read_json(CONFIG)
        flags = {k: v for k, v in content.items() if k not in ("format", "versions")}
        return configs.from_json(kind, flags, str(self.path / CONFIG))

    def save_epoch(self, history: list[dict[str, Any]], params: Params | None) -> None:
        """Write a row for each epoch, and the parameters of the last one if it was the best."""
        self.write_rows(METRICS, history)
        if params is not None:
            self.save_params(params)

    def save_params(self, params: Params) -> None:
        """Save parameters as arrays under their paths."""
        leaves = jax.tree.leaves_with_path(params)
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        self.write(PARAMS, lambda file: np.savez(file, allow_pickle=False, **arrays))

    def load_params(self, like: Params) -> Params:
        """Load parameters into the structure of `like`."""
        path = self.path / PARAMS
        try:
            # Their bytes and some for names: a stranger's archive may unpack to more.
            most = 2**20 + 2 * sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(like))
            content = io.BytesIO(files.read(path, most))
            if sum(member.file_size for member in zipfile.ZipFile(content).infolist()) > most:
                raise ValueError("it unpacks to more than the parameters")
            with np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
            why = error.strerror if isinstance(error, OSError) else error
            stop(f"{path} cannot be read as arrays ({why}); train again")

        def load(path_in_tree, leaf):
            key = jax.tree_util.keystr(path_in_tree)
            if key not in arrays or arrays[key].shape != leaf.shape:
                stop(f"{path} does not fit {CONFIG}: {key} should have shape {list(leaf.shape)}")
            if not (arrays[key].dtype.kind == "f" and np.isfinite(arrays[key]).all()):
                stop(f"{path} must hold finite numbers, {key} has something else; train again")
            return jax.numpy.asarray(arrays[key], leaf.dtype)

        return jax.tree.map_with_path(load, like)


def _how_long(config: RunOptions) -> str:
    """About how long a run takes, for its first line."""
    if getattr(config, "fast", False):
        return ", about half a minute on two CPU cores"
    minutes = experiments.MINUTES.get(config.NAME)
    return f", with the default flags about {minutes} min on two CPU cores" if minutes else ""


def slug(name: str) -> str:
    """A name in words as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str]:
    """What ran: Python, the libraries and the device."""
    names = ("jax", "flax", "optax", "numpy")
    installed = {name: importlib.metadata.version(name) for name in names}
    installed["tbptt_jax"] = tbptt_jax.__version__
    return {"python": platform.python_version(), **installed, "device": str(jax.devices()[0])}
