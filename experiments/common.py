"""What every experiment shares: flags, errors without a traceback, progress, tables, figures."""

import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import jax
from absl import flags, logging
from tqdm import tqdm

from experiments.packaged import DataError

C = TypeVar("C")
T = TypeVar("T")

# --help lists the flags of the script that is run, as if it had defined them itself.
flags.disclaim_key_flags()


def flag(
    default: Any,
    text: str,
    least: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a configuration, with what `define_flags` needs of it.

    A number is at least `least`; or a float that is greater than `above`, or less than `below`.
    """
    bounds = {"least": least, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": text, **bounds})


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is kept, whatever it computes: a run may go on with other ones."""

    output_dir: str | None = flag(None, "Folder of the run; default runs/NAME-TIME.")
    resume: bool = flag(
        False, "Go on with the run in --output_dir, or with the newest one, bit for bit."
    )
    checkpoint_every: float = flag(60.0, "Seconds between checkpoints; 0: every batch.", 0)
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What follows a loss or gradient that is not finite; it is never trained on."
    )


def within(value: float, least: float | None, above: float | None, below: float | None) -> bool:
    """Whether a number is finite and within the bounds of a `flag`."""
    return (
        abs(value) < math.inf
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )


class FiniteFloatParser(flags.FloatParser):
    """A float within bounds, and no NaN or infinity, which every bound of absl's lets pass."""

    def __init__(
        self,
        least: float | None = None,
        above: float | None = None,
        below: float | None = None,
    ):
        super().__init__()
        self._bounds = least, above, below
        said = [f"at least {least:g}"] if least is not None else []
        said += [f"above {above:g}"] if above is not None else []
        said += [f"below {below:g}"] if below is not None else []
        self.syntactic_help = f"a finite number {' and '.join(said)}".strip()

    def is_outside_bounds(self, val: float) -> bool:
        """Whether a number is refused."""
        return not within(val, *self._bounds)


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
        text, least, above, below = (field.metadata[n] for n in ("help", "least", "above", "below"))
        floats = FiniteFloatParser(least, above, below)
        default: Any = field.default
        kind: Any = field.type
        if isinstance(kind, types.UnionType):
            (kind,) = (t for t in typing.get_args(kind) if t is not types.NoneType)
        options = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal:
            flags.DEFINE_enum(field.name, default, list(options), text)
        elif typing.get_origin(kind) is tuple:
            of_ints = options[0] is int
            parser = _SeveralParser(flags.IntegerParser(lower_bound=least) if of_ints else floats)
            flags.DEFINE(parser, field.name, default, text, serializer=flags.CsvListSerializer(","))
        elif kind is int:
            flags.DEFINE_integer(field.name, default, text, lower_bound=least)
        elif kind is float:
            flags.DEFINE(floats, field.name, default, text, serializer=flags.ArgumentSerializer())
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
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells of every device that is not there
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = pathlib.Path.home() / ".cache" / "tbptt_jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))


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
