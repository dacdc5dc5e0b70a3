"""What every experiment shares: flags, run folder, progress that survives Ctrl-C, parameters."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.packaged import DataError

C = TypeVar("C")
T = TypeVar("T")

# --help lists the flags of the script that is run, as if it had defined them itself.
flags.disclaim_key_flags()


def flag(default: Any, text: str, least: float | None = None) -> Any:
    """A field of a configuration, with what `define_flags` needs of it."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least})


class _SeveralParser(flags.ArgumentParser):
    """Numbers with commas between them, as a tuple."""

    def __init__(self, one: flags.ArgumentParser):
        self._one = one
        self.syntactic_help = f"numbers with commas between them, each {one.syntactic_help}"

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """The tuple; a default comes as one already."""
        items = argument.split(",") if isinstance(argument, str) else argument
        try:
            return tuple(self._one.parse(item) for item in items)
        except ValueError as error:
            raise ValueError(f"expected {self.syntactic_help}; {error}") from error


def define_flags(config: type) -> None:
    """Define an absl flag for every field of a dataclass whose fields are `flag`s.

    A field is an int, float, bool, str or Literal, or a tuple of int or float, which is written
    with commas; or one of these or None. Call it under `__main__` only: two modules that define
    `k1` would clash.
    """
    for field in dataclasses.fields(config):
        text, least = field.metadata["help"], field.metadata.get("least")
        default: Any = field.default
        kind: Any = field.type
        if isinstance(kind, types.UnionType):
            (kind,) = (t for t in typing.get_args(kind) if t is not types.NoneType)
        options = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal:
            flags.DEFINE_enum(field.name, default, list(options), text)
        elif typing.get_origin(kind) is tuple:
            number = flags.IntegerParser if options[0] is int else flags.FloatParser
            parser = _SeveralParser(number(lower_bound=least))
            flags.DEFINE(parser, field.name, default, text, serializer=flags.CsvListSerializer(","))
        elif kind is int:
            flags.DEFINE_integer(field.name, default, text, lower_bound=least)
        elif kind is float:
            flags.DEFINE_float(field.name, default, text, lower_bound=least)
        elif kind is bool:
            flags.DEFINE_boolean(field.name, default, text)
        else:
            flags.DEFINE_string(field.name, default, text)


def from_flags(config: type[C]) -> C:
    """The configuration that the command line asks for."""
    fields = dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
    return config(**{field.name: getattr(flags.FLAGS, field.name) for field in fields})


def given_flags(config: type) -> set[str]:
    """The names of the fields that the command line sets itself."""
    return {f.name for f in dataclasses.fields(config) if flags.FLAGS[f.name].present}


def with_fast(config: C, fast: dict[str, Any]) -> C:
    """The configuration with the values of --fast, where it is asked for, for what is left open."""
    if not config.fast:  # pyright: ignore[reportAttributeAccessIssue]
        return config
    given = given_flags(type(config))
    changed = {name: value for name, value in fast.items() if name not in given}
    return dataclasses.replace(config, **changed)  # pyright: ignore[reportArgumentType]


def load(read: Callable[..., T], *arguments: Any) -> T:
    """What `read` returns; without its data the program ends with what to do."""
    try:
        return read(*arguments)
    except DataError as error:
        stop(str(error))


def stop(message: str) -> typing.NoReturn:
    """End the program with a message for the one who typed the command, and no traceback."""
    sys.exit(f"error: {message}")


def begin(argv: list[str]) -> None:
    """Refuse what is no flag, and keep what will be compiled for the next run.

    JAX_COMPILATION_CACHE_DIR names another folder for it than the user's cache, and
    JAX_ENABLE_COMPILATION_CACHE=false does without.
    """
    if len(argv) > 1:
        stop(f"unexpected arguments {argv[1:]}; write --name=value")
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = pathlib.Path.home() / ".cache" / "tbptt_jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))


class RunFolder:
    """One run's results: config.json, metrics.jsonl, params.npz, result.json and figures.

    Only JSON and plain arrays: reading a folder never executes anything.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    @classmethod
    def create(cls, output_dir: str | None, name: str, config: Any) -> "RunFolder":
        """A new folder, `output_dir` or runs/NAME-TIME; a folder that holds a run is refused."""
        if output_dir is None:
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            output_dir = f"runs/{name}-{now}"
        run = cls(output_dir)
        if (run.path / "config.json").exists():
            stop(
                f"--output_dir: {output_dir} already holds a run; give another folder or remove it"
            )
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_json("config.json", dataclasses.asdict(config))
        return run

    @classmethod
    def open(cls, output_dir: str | None, name: str) -> "RunFolder":
        """A finished run's folder; None: the newest one of runs/NAME-*."""
        if output_dir is None:
            finished = sorted(pathlib.Path("runs").glob(f"{name}-*/result.json"))
            if not finished:
                stop(f"there is no finished run in runs/; run python -m experiments.{name} first")
            return cls(finished[-1].parent)
        run = cls(output_dir)
        if not (run.path / "params.npz").exists():
            stop(f"--output_dir: {output_dir} holds no finished run (no params.npz)")
        return run

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, all of it or, when the run is killed, nothing."""
        part = self.path / f"{name}.part"
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path / name)

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def log(self, **row: Any) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep(self, row: dict[str, Any], params: Any | None) -> None:
        """Log an epoch, and save its parameters if they are given."""
        self.log(**row)
        if params is not None:
            self.save_params(params)

    def save_params(self, params: Any) -> None:
        """Save parameters as arrays under their paths."""
        leaves = jax.tree.leaves_with_path(params)
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        np.savez(self.path / "params.npz", allow_pickle=False, **arrays)

    def load_params(self, like: Any) -> Any:
        """Load parameters into the structure of `like`."""
        with np.load(self.path / "params.npz", allow_pickle=False) as arrays:

            def load(path, leaf):
                key = jax.tree_util.keystr(path)
                if key not in arrays or arrays[key].shape != leaf.shape:
                    stop(
                        f"{self.path}/params.npz does not fit config.json: {key} should have "
                        f"shape {list(leaf.shape)}"
                    )
                return jax.numpy.asarray(arrays[key])

            return jax.tree.map_with_path(load, like)


@contextlib.contextmanager
def ctrl_c() -> Iterator[list[bool]]:
    """Collect Ctrl-C instead of raising it, so that no training step is torn; twice ends at once.

    Yields a list that becomes non-empty when Ctrl-C was pressed.
    """
    pressed: list[bool] = []

    def handle(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        tqdm.write("stopping after this batch (Ctrl-C again to stop at once)", file=sys.stderr)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def progress(items: Iterable[T], text: str) -> Iterable[T]:
    """The items, with a bar that says how far it has come."""
    return tqdm(items, desc=text, leave=False)


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure that needs no screen, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}
    )
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained")


def versions() -> dict[str, str]:
    """What ran: Python, the libraries and the device."""
    names = ("jax", "flax", "optax", "numpy", "tbptt_jax")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **installed, "device": str(jax.devices()[0])}


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table as text, numbers to the right; also valid Markdown."""
    cells = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row):
        first, *others = (c.rjust(w) for c, w in zip(row, widths, strict=True))
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
