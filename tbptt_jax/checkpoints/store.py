"""Checkpoints on a disk: which folders are ours, and how one is written, read and removed.

A folder holds whatever its owner put there. Ours is only what holds our metadata or `MARK`, which
is written before anything else and removed after everything else; nothing else is ever touched.

    NUMBER/                        a whole checkpoint
      tbptt_jax.json                 MARK: the digest of every other file
      record/metadata                JSON, see `metadata.Metadata`
      arrays/                        Orbax's: the bytes of each array that has any; and the arrays
                                     themselves that were spread over processes, each of which wrote
                                     its parts
    NUMBER.orbax-checkpoint-tmp/   one being written or removed, or that was when its writer died
    damaged-NUMBER/                one that was set aside

A link is never ours: it leads to another folder.
"""

import errno
import functools
import hashlib
import json
import logging as python_logging
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from typing import NoReturn, cast

import jax
import numpy as np
from jax.sharding import NamedSharding

from tbptt_jax import processes
from tbptt_jax.arguments import first_line
from tbptt_jax.checkpoints.arrays import ArrayMetadata, Damaged, as_bytes, from_bytes
from tbptt_jax.checkpoints.metadata import Metadata, digest
from tbptt_jax.types import Array

MARK = "tbptt_jax.json"
METADATA = pathlib.Path("record", "metadata")
ARRAYS = "arrays"
KEYS = {*Metadata.__required_keys__, "sha256"}
WHOLE, HALF, DAMAGED = "{}", "{}.orbax-checkpoint-tmp", "damaged-{}"
FORMS = (WHOLE, HALF, DAMAGED)
_OF_PROCESS = re.compile(r"process_(\d+)")

# Orbax numbers what it does for the whole process: two threads wait for each other's signals.
_orbax = threading.Lock()


def find(folder: pathlib.Path, form: str) -> list[tuple[int, pathlib.Path]]:
    """Our folders whose names have a form, and their numbers, oldest first."""
    # "-2" was appended to a name that was taken.
    number = r"(0|[1-9]\d*)" + ("" if form == WHOLE else r"(?:-\d+)?")
    pattern = re.compile(re.escape(form).replace(r"\{\}", number), re.ASCII)
    named = [(pattern.fullmatch(name), folder / name) for name in os.listdir(folder)]
    return sorted((int(match[1]), path) for match, path in named if match and is_ours(path))


def next_number(folder: pathlib.Path, least: int) -> int:
    """A number of at least `least` that no checkpoint had and no file's name uses."""
    number = max([least - 1, *(number for form in FORMS for number, _ in find(folder, form))]) + 1
    names = set(os.listdir(folder))
    while any(form.format(number) in names for form in FORMS):
        number += 1
    return number


def is_ours(path: pathlib.Path) -> bool:
    """Whether a folder is one that we wrote.

    Raises:
      OSError: it cannot be read.
    """
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MARK).is_file() or _has_metadata(path)


def _has_metadata(path: pathlib.Path) -> bool:
    """Whether a folder without a mark is the first version's, which wrote none."""
    try:
        found = json.loads((path / METADATA).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        # Damaged metadata stand beside what Orbax wrote then.
        return all((path / name).exists() for name in ("_CHECKPOINT_METADATA", "record", ARRAYS))
    return isinstance(found, dict) and found.keys() >= KEYS


def write(
    folder: pathlib.Path, number: int, metadata: Metadata, arrays: Mapping[str, Array]
) -> None:
    """Write a checkpoint; it has its name when all of it, from all processes, is on the disk."""
    half, whole = (folder / form.format(number) for form in (HALF, WHOLE))
    processes.on_first(lambda: _begin(half, metadata))
    # Bytes: Orbax has neither every dtype nor arrays of size zero.
    content = {
        name: as_bytes(array) if isinstance(array, np.ndarray) else array
        for name, array in arrays.items()
        if array.size
    }
    if content:
        processes.together(lambda: _save(half / ARRAYS, content))
    written = processes.gather(processes.together(lambda: _digests(half, _own_files(half))))
    processes.on_first(lambda: _end(half, whole, written))


def _begin(half: pathlib.Path, metadata: Metadata) -> None:
    half.mkdir()
    (half / MARK).touch()
    (half / METADATA).parent.mkdir()
    signed = json.dumps({**metadata, "sha256": digest(metadata)})
    (half / METADATA).write_text(signed, encoding="utf-8")


def _end(half: pathlib.Path, whole: pathlib.Path, written: list[dict[str, str]]) -> None:
    """Give a checkpoint its mark, from the digests of each process's files, and its name."""
    found = {name: sha256 for one in written for name, sha256 in one.items()}
    (half / MARK).write_text(json.dumps({"files": found}), encoding="utf-8")
    if os.path.lexists(whole):
        raise FileExistsError(errno.EEXIST, "something else has this name now", str(whole))
    half.rename(whole)


def _own_files(path: pathlib.Path) -> list[str]:
    """The files that this process wrote: Orbax names the folder of each after it."""

    def writer(name: str) -> int:
        found = _OF_PROCESS.search(name)
        return int(found[1]) if found else 0

    return [name for name in _files(path) if writer(name) == jax.process_index()]


def _save(path: pathlib.Path, content: Mapping[str, Array]) -> None:
    import orbax.checkpoint as ocp

    with _orbax, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeSave(content)  # pyright: ignore[reportCallIssue]
        checkpointer.save(path, args=args)


def read_arrays(
    path: pathlib.Path,
    described: Mapping[str, ArrayMetadata],
    shardings: Mapping[str, NamedSharding | None],
) -> dict[str, Array]:
    """The arrays of a checkpoint whose files were checked, by their names.

    Args:
      path: of the checkpoint.
      described: what `read_metadata` found.
      shardings: where each array is to be, by the same names. One that was spread is read there,
        each process its parts; every other one is read whole.

    Raises:
      Damaged: what was read is not what was written.
      OSError: it cannot be read, which says nothing of what it holds.
    """
    marked = (path / MARK).exists()
    spread = {
        name: sharding
        for name, sharding in shardings.items()
        if sharding is not None and described[name].get("spread")
    }
    names = [name for name, about in described.items() if not marked or 0 not in about["shape"]]
    content = _restore(path / ARRAYS, names, spread, marked) if names else {}
    if marked:
        nothing = np.zeros(0, np.uint8)
        for name, about in described.items():
            if not about.get("spread"):
                content[name] = from_bytes(np.asarray(content.get(name, nothing)), about)
    return content


def read_metadata(path: pathlib.Path) -> Metadata:
    """The metadata of a checkpoint.

    Raises:
      Damaged: they are not what was written.
      OSError: they cannot be read.
    """
    try:
        found = json.loads((path / METADATA).read_bytes())
        written = found.pop("sha256")
    except (FileNotFoundError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise Damaged(f"its metadata cannot be read ({first_line(error)})") from None
    if written != digest(found) or not found.keys() >= Metadata.__required_keys__:
        raise Damaged("its metadata are not what was written")
    return cast(Metadata, found)


def check_files(path: pathlib.Path) -> None:
    """Compare the files of a checkpoint with its mark; each process takes its share of them.

    Raises:
      Damaged: one is missing, or not what was written.
      OSError: one cannot be read.
    """
    names = _files(path)[jax.process_index() :: jax.process_count()]
    found = _digests(path, names)
    try:
        content = (path / MARK).read_bytes()
    except FileNotFoundError:  # the first version wrote none
        return
    try:
        written = dict(json.loads(content)["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f"{MARK} is not what was written") from None
    for name, expected in written.items():
        if found.get(name, expected) != expected:
            raise Damaged(f"{name} is not what was written")
        if name not in found and not (path / name).is_file():
            raise Damaged(f"{name} is missing")


def _files(path: pathlib.Path) -> list[str]:
    """The names of every file but the mark, in order."""
    found = []
    for root, _, names in os.walk(path, onerror=_raise):
        files = (pathlib.Path(root, name) for name in names)
        found += [f.relative_to(path).as_posix() for f in files if f.is_file() and f != path / MARK]
    return sorted(found)


def _digests(path: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """The digests of files."""
    found = {}
    for name in names:
        with (path / name).open("rb") as content:
            found[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def _raise(error: OSError) -> NoReturn:
    raise error


def _restore(
    path: pathlib.Path, names: list[str], spread: Mapping[str, NamedSharding], checked: bool
) -> dict[str, Array]:
    """The arrays as Orbax reads them; `checked` says that its files are those it wrote."""
    import orbax.checkpoint as ocp

    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    kinds |= {name: ocp.ArrayRestoreArgs(sharding=where) for name, where in spread.items()}
    args = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
        item=dict.fromkeys(names, 0), restore_args=kinds
    )
    try:
        with _orbax, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=args)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        # TensorStore raises one error for everything; the system's own words are in its text.
        said = [code for code in errno.errorcode if os.strerror(code) in str(error)]
        if said and said != [errno.ENOENT]:
            raise OSError(said[0], f"cannot be read: {first_line(error)}", str(path)) from error
        if checked:
            raise
        raise Damaged(first_line(error)) from error


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Rename a damaged checkpoint: it is neither restored nor removed nor written to again."""
    return path.rename(_free(path.parent, DAMAGED, path.name))


def remove(path: pathlib.Path) -> None:
    """Remove a folder of ours; what an interrupt leaves of it is still known as ours."""
    (path / MARK).touch()
    half = path.rename(_free(path.parent, HALF, path.name)) if path.name.isdecimal() else path
    for child in half.iterdir():
        if child.name != MARK:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    (half / MARK).unlink()
    half.rmdir()


def _free(folder: pathlib.Path, form: str, number: str) -> pathlib.Path:
    """A path that nothing has yet."""
    path, again = folder / form.format(number), 2
    while os.path.lexists(path):
        path, again = folder / form.format(f"{number}-{again}"), again + 1
    return path


@functools.cache
def load_orbax() -> None:
    """Import Orbax, and keep from the log what it says of a failed write: we raise that, once.

    Imported when a folder of checkpoints is opened: `import tbptt_jax` does not wait for it, and
    the thread that writes, which may run while the program ends, finds it there.
    """
    import orbax.checkpoint  # noqa: F401

    def of_others(record: python_logging.LogRecord) -> bool:
        return "orbax" not in pathlib.Path(record.pathname).parts

    python_logging.getLogger("absl").addFilter(of_others)
