"""What a run is: one specification of a field serves its flag, its JSON, its bounds and --fast.

etils.eapp with simple_parsing and tyro replace absl's flags with argparse, and ml_collections names
them --config.k1. None of them has bounds, or checks JSON that may come from a stranger.
"""

import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from absl import flags

from experiments import files
from experiments.files import stop

MOST = 2**31 - 1  # the largest integer


def flag(
    default: Any,
    text: str,
    least: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    fast: Any = None,
    saved: bool = True,
    added: bool = False,
) -> Any:
    """A field of a configuration: an int, float, bool, str or Literal, a tuple of these, or None.

    Args:
      default: its value where the flag is not set.
      text: what --help says.
      least: the smallest number, or the smallest length of a text.
      above, below: bounds that a float may not reach.
      fast: its value with --fast; None: the default.
      saved: whether it belongs to the run, in config.json, and not to this call alone.
      added: whether earlier runs lack it; its default is what they did.
    """
    bounds = {"least": least, "above": above, "below": below}
    return dataclasses.field(
        default=default,
        metadata={"text": text, "fast": fast, "saved": saved, "added": added, **bounds},
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of a command: every field is a `flag`."""

    NAME: ClassVar[str] = ""  # of the experiment, as in `python -m experiments.NAME`


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """How a run is saved, whatever it computes; a resumed run may change them."""

    output_dir: str | None = flag(None, "Folder of the run; default: runs/NAME-TIME, in UTC.", 1)
    resume: bool = flag(
        False, "Resume the run in --output_dir, or the newest in runs/, bit for bit."
    )
    distributed: bool = flag(
        False, "Use all devices of all processes, each of which is started with this flag."
    )
    checkpoint_every: float = flag(60.0, "Seconds between checkpoints; 0: every batch.", 0)
    tensorboard: bool = flag(
        False, "Write losses and scores for TensorBoard to tensorboard/ in the run's folder."
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "What to do at a non-finite loss or gradient; it is never trained on."
    )


class _Parser(flags.ArgumentParser):
    """Text to the value of a field."""

    def __init__(self, field: dataclasses.Field[Any]):
        self._field = field

    def parse(self, argument: Any) -> Any:
        """The value; a default is one already."""
        try:
            kind = _without_none(self._field.type)
            value = _convert(kind, argument) if isinstance(argument, str) else argument
        except ValueError:
            value = None
        if value is None or not accepts(self._field, value):
            raise ValueError(f"expected {expected(self._field)}, got {str(argument)[:80]!r}")
        return value


def _convert(kind: Any, text: str) -> Any:
    """Text as a value of a type."""
    if typing.get_origin(kind) is tuple:
        return tuple(_convert(typing.get_args(kind)[0], part) for part in text.split(","))
    return kind(text) if kind in (int, float) else text


def _without_none(kind: Any) -> Any:
    """The X of `X | None`."""
    if isinstance(kind, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    return kind


def accepts(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field may have a value, which its flag or JSON gave."""
    return files.fits(value, field.type) and all(
        _within(one, field.metadata) for one in (value if isinstance(value, tuple) else (value,))
    )


def _within(value: Any, bounds: Mapping[str, Any]) -> bool:
    """Whether a value is within the bounds of its field, and a number finite."""
    if isinstance(value, str):
        value = len(value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, above, below = (bounds[name] for name in ("least", "above", "below"))
    return (
        (value <= MOST if isinstance(value, int) else math.isfinite(value))
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def expected(field: dataclasses.Field[Any]) -> str:
    """What a field may be, in words."""
    kind, least = _without_none(field.type), field.metadata["least"]
    several = typing.get_origin(kind) is tuple
    if several:
        kind = typing.get_args(kind)[0]
    if kind is str:
        words = f"a text of at least {least} character" if least else "a text"
    elif kind is int:
        words = f"an integer from {least} to {MOST}"
    elif kind is float:
        bounds = {"at least": least, **{n: field.metadata[n] for n in ("above", "below")}}
        limits = [f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None]
        words = f"a finite number {' and '.join(limits)}"
    else:
        words = files.in_words(kind)
    return f"numbers separated by commas, each {words}" if several else words


C = TypeVar("C", bound=Options)


def define_flags(kind: type[Options]) -> None:
    """Define an absl flag for every field of a configuration.

    Call it under `__main__` only: two modules that define `k1` would clash.
    """
    for field in dataclasses.fields(kind):
        text = field.metadata["text"]
        if field.type is bool:
            flags.DEFINE_boolean(field.name, bool(field.default), text)
        else:
            flags.DEFINE(_Parser(field), field.name, field.default, text)


def help_text(kind: type[Options]) -> str:
    """The flags of a configuration, for --help."""
    lines = []
    own = sorted(dataclasses.fields(kind), key=lambda field: hasattr(RunOptions, field.name))
    for field in own:
        default, text, choices = field.default, field.metadata["text"], _without_none(field.type)
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        value = "" if field.type is bool else f"={'' if default is None else default}"
        if typing.get_origin(choices) is Literal:
            text += f" ({files.in_words(choices)})"
        head = f"  --{field.name}{value}"[:40].ljust(30) + " "
        lines.append(textwrap.fill(text, 100, initial_indent=head, subsequent_indent=" " * 31))
    return "\n".join(lines)


def set_flags(kind: type[Options]) -> dict[str, Any]:
    """The fields that the command line sets."""
    names = (field.name for field in dataclasses.fields(kind))
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}


def fast_values(kind: type[Options]) -> dict[str, Any]:
    """The values of --fast."""
    fast = {field.name: field.metadata["fast"] for field in dataclasses.fields(kind)}
    return {name: value for name, value in fast.items() if value is not None}


def computed(kind: type[Options]) -> set[str]:
    """The fields that say what a run computes; a resumed run may not change them."""
    saved = {field.name for field in dataclasses.fields(kind) if field.metadata["saved"]}
    return saved - {field.name for field in dataclasses.fields(RunOptions)}


def to_json(config: Options) -> dict[str, Any]:
    """What config.json holds."""
    fields = (f.name for f in dataclasses.fields(config) if f.metadata["saved"])
    return {name: getattr(config, name) for name in fields}


def from_json(kind: type[C], content: dict[str, Any], path: str) -> C:
    """The configuration of a run, checked; another one ends the program."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.metadata["saved"]}
    needed = {name for name in computed(kind) if not fields[name].metadata["added"]}
    if not needed <= content.keys() <= fields.keys():
        stop(
            f"--output_dir: {path} must hold the flags of this experiment, got others; give the "
            "folder of one of its runs"
        )
    # JSON has lists for tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    for name, value in values.items():
        if not accepts(fields[name], value):
            stop(
                f"--output_dir: {path} has {name} = {value!r}, expected {expected(fields[name])}; "
                "give the folder of another run"
            )
    return kind(**values)
