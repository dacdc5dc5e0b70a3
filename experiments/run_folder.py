"""One run on disk: what it was asked for, what came out, and how it goes on after an interruption.

Only JSON and plain arrays: reading a folder, a stranger's too, never executes anything.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from experiments import common
from experiments.common import RunOptions
from experiments.saving import Saving, Signals

C = TypeVar("C", bound=RunOptions)

CONFIG, METRICS, PARAMS, RESULT = "config.json", "metrics.jsonl", "params.npz", "result.json"


def configure(kind: type[C], name: str, fast: Mapping[str, Any] | None = None) -> C:
    """What the command line asks for.

    With --fast, `fast` stands for the flags that are not given. With --resume, the folder's
    configuration does, and a flag that is given must not differ from it.
    """
    asked = common.from_flags(kind)
    if not asked.resume:
        return common.with_fast(asked, dict(fast)) if fast else asked
    if asked.output_dir is None:
        begun = sorted(pathlib.Path("runs").glob(f"{name}-*/{CONFIG}"))
        if not begun:
            common.stop("--resume: there is no run in runs/ to go on with; leave it out to begin")
        asked = dataclasses.replace(asked, output_dir=str(begun[-1].parent))
    run = RunFolder(str(asked.output_dir))
    if not (run.path / CONFIG).exists():
        common.stop(f"--resume: {run.path} holds no run to go on with; leave it out to begin")
    content = run.read_json(CONFIG)
    fields = {field.name for field in dataclasses.fields(kind)}
    free = {field.name for field in dataclasses.fields(RunOptions)}
    if not (isinstance(content, dict) and content.keys() | free == fields):
        common.stop(f"--output_dir: {run.path} holds a run of something else; give another folder")
    begun = run.checked(kind, content)
    given = {name: getattr(asked, name) for name in common.given_flags(kind)}
    differing = [
        f"--{name}={value}, and {run.path} was begun with {begun[name]}"
        for name, value in given.items()
        if name not in free and begun[name] != value
    ]
    if differing:
        common.stop(
            f"--resume: {'; '.join(differing)}; leave the flag out to go on, or give another "
            "--output_dir to begin anew"
        )
    return kind(**{**begun, **given, "output_dir": asked.output_dir, "resume": True})


class RunFolder:
    """One run's results: config.json, metrics.jsonl, params.npz, result.json and figures.

    Checkpoints are in checkpoints/, a folder for each training.
    """

    def __init__(self, path: str | pathlib.Path, name: str = "", options: RunOptions | None = None):
        self.path = pathlib.Path(path)
        self._name, self._options = name, options or RunOptions()
        self._signals: Signals | None = None

    @classmethod
    def create(cls, config: RunOptions, name: str) -> "RunFolder":
        """The folder of a run that begins or goes on; another run's folder is refused.

        From here on Ctrl-C and SIGTERM end the program with the command that goes on with the run.
        """
        output_dir = config.output_dir
        if output_dir is None:
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            output_dir = f"runs/{name}-{now}"
        run = cls(output_dir, name, config)
        if not config.resume:
            # What could not even load its data left its configuration, and nothing to lose.
            if (run.path / CONFIG).exists() and len(list(run.path.iterdir())) > 1:
                common.stop(
                    f"--output_dir: {output_dir} already holds a run; go on with it by --resume, "
                    "give another folder, or remove it"
                )
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                common.stop(
                    f"--output_dir: {output_dir} cannot be made ({error.strerror}); give a folder "
                    "that can be written to"
                )
            run.write_json(CONFIG, dataclasses.asdict(config))
        run._signals = Signals(run.leave)
        return run

    @classmethod
    def open(cls, output_dir: str | None, name: str) -> "RunFolder":
        """The folder of a run that learnt something; None: the newest finished one of runs/NAME-*.

        An interrupted run has its best parameters so far.
        """
        if output_dir is None:
            finished = sorted(pathlib.Path("runs").glob(f"{name}-*/{RESULT}"))
            if not finished:
                common.stop(
                    f"there is no finished run in runs/; run python -m experiments.{name} first"
                )
            return cls(finished[-1].parent)
        run = cls(output_dir)
        if not (run.path / PARAMS).exists():
            common.stop(
                f"{output_dir} holds no trained network (no {PARAMS}); give the folder of a run of "
                f"experiments.{name}"
            )
        return run

    @property
    def resume_command(self) -> str:
        """What to type to go on with this run."""
        return f"python -m experiments.{self._name} --output_dir={self.path} --resume"

    def leave(self, number: int) -> typing.NoReturn:
        """End the program after a signal."""
        said = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"\nstopped by {said}; go on with\n  {self.resume_command}", file=sys.stderr)
        sys.exit(128 + number)

    def saving(self, training: str) -> Saving:
        """How one training of this run is kept; each has another name."""
        folder = self.path / "checkpoints" / training
        return Saving(folder, self._options, self._signals, self.resume_command)

    def write(self, name: str, write: Callable[[typing.BinaryIO], Any]) -> None:
        """Write a file, all of it or, when the run is killed or the disk is full, nothing."""
        part = self.path / f"{name}.part"
        try:
            with part.open("wb") as file:
                write(file)
            part.replace(self.path / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            common.stop(
                f"{self.path / name} cannot be written ({error.strerror}); make room or give "
                f"write permission, and go on with\n  {self.resume_command}"
            )

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        text = json.dumps(content, indent=2) + "\n"
        self.write(name, lambda file: file.write(text.encode()))

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            common.stop(f"--output_dir: {self.path / name} cannot be read as JSON ({error})")

    def read_config(self, kind: type[C]) -> C:
        """The configuration that the run was begun with."""
        return kind(**self.checked(kind, self.read_json(CONFIG)))

    def checked(self, kind: type[C], content: Any) -> dict[str, Any]:
        """The values of a configuration that was read; one that cannot be ends the program."""
        path, fields = self.path / CONFIG, {f.name: f for f in dataclasses.fields(kind)}
        if not (isinstance(content, dict) and content.keys() <= fields.keys()):
            common.stop(
                f"--output_dir: {path} must hold the flags of the experiment, got something else; "
                "give the folder of one of its runs"
            )
        # A tuple comes back as a list.
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        for name, value in values.items():
            if not _is_of(value, fields[name].type, fields[name].metadata):
                common.stop(
                    f"--output_dir: {path} has {name} = {value!r}, which --{name} does not take; "
                    "give the folder of another run"
                )
        return values

    def keep(self, history: list[dict[str, Any]], params: Any | None) -> None:
        """Write a row for each epoch, and the parameters if they are given."""
        lines = "".join(json.dumps(row) + "\n" for row in history)
        self.write(METRICS, lambda file: file.write(lines.encode()))
        if params is not None:
            self.save_params(params)

    def save_params(self, params: Any) -> None:
        """Save parameters as arrays under their paths."""
        leaves = jax.tree.leaves_with_path(params)
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        self.write(PARAMS, lambda file: np.savez(file, allow_pickle=False, **arrays))

    def load_params(self, like: Any) -> Any:
        """Load parameters into the structure of `like`."""
        path = self.path / PARAMS
        try:
            # Opened here, since NumPy leaves open what turns out to be no archive.
            with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
        except Exception as error:  # whatever NumPy and zipfile make of a damaged file
            common.stop(f"{path} cannot be read as arrays ({error}); train again")

        def load(path_in_tree, leaf):
            key = jax.tree_util.keystr(path_in_tree)
            if key not in arrays or arrays[key].shape != leaf.shape:
                common.stop(
                    f"{path} does not fit {CONFIG}: {key} should have shape {list(leaf.shape)}"
                )
            if not (arrays[key].dtype.kind == "f" and np.isfinite(arrays[key]).all()):
                common.stop(
                    f"{path} must hold finite numbers, {key} has something else; train again"
                )
            return jax.numpy.asarray(arrays[key], leaf.dtype)

        return jax.tree.map_with_path(load, like)


def _is_of(value: Any, kind: Any, bounds: Mapping[str, Any]) -> bool:
    """Whether a value from JSON is one that a flag of this type and these bounds gives."""
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one, bounds) for one in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        of = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_of(v, of, bounds) for v in value)
    if kind not in (int, float):
        return type(value) is kind
    least, above, below = (bounds[name] for name in ("least", "above", "below"))
    return type(value) in (int, kind) and common.within(value, least, above, below)


def slug(name: str) -> str:
    """A name in words as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Journal:
    """Lines of JSON, one for each piece of a run that is finished, so that it is not done again."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """The lines; a last one that an interruption tore is cut off."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                os.truncate(self.path, len(whole))
        except OSError as error:
            common.stop(f"--output_dir: {self.path} cannot be read ({error.strerror})")
        rows = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                common.stop(
                    f"--output_dir: expected JSON in every line of {self.path}, got something else "
                    f"in line {number}; remove that line, and what it held is done again"
                )
            rows.append(row)
        return rows

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append lines, in one go."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            common.stop(
                f"{self.path} cannot be written ({error.strerror}); make room or give write "
                "permission, and go on with --resume"
            )
