"""Files of a run, which may come from a stranger.

Everything an experiment writes goes through `write`, everything it reads of a run through `read`:
plain files of a bounded size, and never through a link that stands where a file is to be written.
"""

import dataclasses
import json
import os
import pathlib
import re
import secrets
import stat
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias, TypeVar

T = TypeVar("T")
# What JSON must be: a type, a Literal, a union, or what the entries of an object must be.
Kind: TypeAlias = Any

MOST_BYTES = 2**26
_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number"}
_WORDS[bool] = "true or false"


class DataError(RuntimeError):
    """The data are missing or not what they should be; the message says what to do."""


def stop(message: str) -> typing.NoReturn:
    """End the program with a message for the one who typed the command, and no traceback."""
    sys.exit(f"error: {message}")


def in_a_line(error: OSError) -> str:
    """An error of the system as a message names it."""
    why = error.strerror or str(error)
    return why if error.filename is None else f"{error.filename} cannot be used ({why})"


def write(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file: all of it or, when the program is killed or the disk is full, nothing.

    The bytes go to a new file of an unpredictable name, which then takes the place of `path`. So
    a link at `path` is replaced, and what it led to stays as it is.

    Raises:
      OSError: it cannot be written, and names `path`.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def remove_parts(folder: pathlib.Path) -> None:
    """Remove what a killed `write` left in a folder that no other process writes to."""
    for path in folder.iterdir():
        if _PART.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def read(path: pathlib.Path, most: int = MOST_BYTES) -> bytes:
    """Read a file of at most so many bytes.

    Raises:
      OSError: it cannot be read, is longer, or is no plain file: a pipe or a device may have no
        end, or never start.
    """
    # Without O_NONBLOCK opening a pipe waits for someone to write to it.
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(None, "it is not a plain file", str(path))
        if about.st_size > most:
            raise OSError(None, f"it has {about.st_size:,} bytes, at most {most:,} fit", str(path))
        return file.read(most)


def read_json(path: pathlib.Path, kind: Kind) -> Any:
    """Read JSON of a kind.

    Raises:
      DataError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(read(path))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read as JSON ({why})") from error
    if not fits(content, kind):
        raise DataError(f"{path} must hold {in_words(kind)}, got something else")
    return content


def read_rows(path: pathlib.Path, kind: Kind) -> list[dict[str, Any]]:
    """Read rows of a kind, JSON in a line each.

    Raises:
      OSError: the file cannot be read.
      DataError: a line is something else.
    """
    rows = []
    for number, line in enumerate(read(path).splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not fits(row, kind):
            raise DataError(
                f"expected JSON in every line of {path}, {in_words(kind)}, got something else in "
                f"line {number}"
            )
        rows.append(row)
    return rows


def fits(content: Any, kind: Kind) -> bool:
    """Whether JSON is of a kind; an int serves as a float, and further entries are let through."""
    if isinstance(kind, dict):
        return isinstance(content, dict) and all(
            name in content and fits(content[name], one) for name, one in kind.items()
        )
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(fits(content, one) for one in options)
    if origin is typing.Literal:
        return content in options
    if origin in (list, tuple):
        return type(content) is origin and all(fits(one, options[0]) for one in content)
    return type(content) is (origin or kind) or (type(content) is int and kind is float)


def in_words(kind: Kind) -> str:
    """A kind as an error names it."""
    if isinstance(kind, dict):
        return "an object with " + ", ".join(f"{n} ({in_words(k)})" for n, k in kind.items())
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return _WORDS[typing.get_origin(kind) or kind]


def as_fields(kind: type[T], content: Any) -> T:
    """A dataclass from the JSON of its fields.

    Raises:
      DataError: it is something else.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(kind)}  # pyright: ignore
    if not (fits(content, kinds) and content.keys() == kinds.keys()):
        raise DataError(
            f"--resume: the progress of a checkpoint must be {in_words(kinds)}, got something "
            "else; give the folder of another run"
        )
    return kind(**content)
