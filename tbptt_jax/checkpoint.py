"""All that training is, kept in a folder so that it can go on from there, bit for bit.

Orbax writes the arrays in the background and makes a checkpoint appear whole or not at all. It does
not notice a bit that the disk lost, so that every array and the record beside them have a digest.
Nothing that is read is ever executed: arrays, and JSON.
"""

import contextlib
import errno
import functools
import json
import logging as python_logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from tbptt_jax.checks import first_line
from tbptt_jax.record import as_json, differences, digest, give, kind, take, versions

KEPT = 2  # checkpoints: the newest, and one to fall back to
DAMAGED = "damaged-"  # what a checkpoint that cannot be read is renamed to, before its number


class Saved(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
      tree: as it was given to `save`.
      progress: as it was given to `save`, after JSON: tuples are lists.
      number: of the checkpoint; they count up from 0.
    """

    tree: Any
    progress: Any
    number: int


class Checkpoints:
    """The checkpoints of one training; the newest that is whole is the one that is restored.

    Two are kept, and a third while it is written. One that turns out to be damaged is reported,
    renamed to damaged-NUMBER and never written to again, and the one before it is restored. The
    folder belongs to one training at a time.

    Args:
      folder: made if it is missing.
      config: what the training is, as JSON: model, truncation, data. A checkpoint that was made
        with another one is refused.

    Raises:
      TypeError: folder is no path, or config no mapping or not JSON.
      OSError: the folder cannot be made.

    Example:
      A stream of five batches, interrupted after the third, with k2 > k1:

      >>> import functools, tempfile, jax, optax, tbptt_jax as tbptt
      >>> from flax import nnx
      >>> def start():
      ...     model = tbptt.SequenceModel(core=nnx.SimpleCell(1, 1, rngs=nnx.Rngs(0)))
      ...     return tbptt.TrainState.create(model, optimizer, squared_error)
      >>> squared_error = lambda y, t: optax.losses.squared_error(y, t).mean(-1)
      >>> optimizer, plan = optax.adam(0.1), tbptt.Truncation(k1=2, k2=5)
      >>> series = np.sin(np.arange(40, dtype=np.float32)).reshape(2, 20, 1)
      >>> batches = tbptt.data.lanes(tbptt.Batch(series, series), steps=4)
      >>> folder, config = tempfile.mkdtemp(), {"k1": 2, "k2": 5}
      >>> state = start()
      >>> with Checkpoints(folder, config) as checkpoints:
      ...     for i, batch in enumerate(batches[:3]):
      ...         state, _ = tbptt.train_step(state, batch, plan)
      ...         checkpoints.save(state, {"batches": i + 1})

      Later, in another process. A new state has no carry yet; what one looks like that has seen a
      batch is found without running anything:

      >>> state = start()
      >>> after = functools.partial(tbptt.train_step, truncation=plan)
      >>> with Checkpoints(folder, config) as checkpoints:
      ...     like, _ = jax.eval_shape(after, state, batches[0])
      ...     state, progress, number = checkpoints.restore(like)
      >>> progress
      {'batches': 3}
      >>> for batch in batches[progress["batches"]:]:
      ...     state, _ = tbptt.train_step(state, batch, plan)
      >>> int(state.step)
      10
    """

    def __init__(self, folder: str | pathlib.Path, config: Mapping[str, Any] | None = None):
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"Checkpoints: folder must be a path, got {type(folder).__name__}")
        if not isinstance(config, Mapping | None):
            raise TypeError(
                f"Checkpoints: config must map names to values, got {type(config).__name__}"
            )
        self.folder = pathlib.Path(folder).absolute()
        if self.folder.is_file():
            raise NotADirectoryError(
                errno.ENOTDIR, "Checkpoints: folder must be a folder, got a file", str(folder)
            )
        self._config = as_json("config", dict(config or {}))
        self.folder.mkdir(parents=True, exist_ok=True)
        _quiet_orbax()
        self._manager = self._open()
        self._tried = -1  # the newest number that a write was begun for

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self) -> ocp.CheckpointManager:
        # Orbax keeps all: it would remove an old one before it knows that the new one is whole.
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True)
        return ocp.CheckpointManager(self.folder, options=options)

    def numbers(self) -> list[int]:
        """Of the checkpoints that are there, oldest first; a damaged one may be among them."""
        return sorted(self._manager.all_steps())

    def save(self, tree: Any, progress: Any = None) -> None:
        """Begin to write a checkpoint, and return while it is written.

        The arrays are copied first, so that a state may be given to `train_step`, which donates
        it, at once.

        Args:
          tree: a pytree of arrays, a `TrainState` among them or alone; typed keys are arrays too.
          progress: JSON; where training is in its data, what was measured so far.

        Raises:
          TypeError: progress is not JSON, or the tree holds something else than arrays.
          ValueError: the tree holds nothing.
          OSError: the folder has no room for it or is read-only, or the checkpoint before this
            one, which was still being written, could not be finished. The older ones are untouched.
        """
        _check_tree("tree", tree)
        self.wait()
        for half in self.folder.glob("*.orbax-checkpoint-tmp"):  # of a write that failed
            shutil.rmtree(half, ignore_errors=True)
        arrays, described = {}, {}
        for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
            arrays[str(i)], about = take(leaf)
            described[str(i)] = {"name": jax.tree_util.keystr(path), **about, "kind": kind(leaf)}
        record = {
            "progress": as_json("progress", progress),
            "config": self._config,
            "versions": versions(),
            "arrays": described,
        }
        # Not that of a write that failed either: threads of it may still be at it.
        number = max([*self.numbers(), *self._set_aside(), self._tried]) + 1
        needed = sum(array.nbytes for array in arrays.values()) + len(json.dumps(record))
        self._check_folder(number, needed)
        self._tried = number
        with self._told():
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays),  # pyright: ignore[reportCallIssue]
                    record=ocp.args.JsonSave(  # pyright: ignore[reportCallIssue]
                        {**record, "sha256": digest(record)}
                    ),
                ),
            )

    def _check_folder(self, number: int, needed: int) -> None:
        """Refuse what is known to fail: Orbax would wait minutes for a folder it cannot make."""
        as_effective_user = os.access in os.supports_effective_ids
        may_write = os.access(self.folder, os.W_OK | os.X_OK, effective_ids=as_effective_user)
        free = shutil.disk_usage(self.folder).free
        if not may_write:
            code, why = errno.EACCES, "cannot be written, the folder is read-only"
        elif free < needed:
            code, why = errno.ENOSPC, f"needs {needed:,} bytes and {free:,} are left; make room"
        else:
            return
        raise OSError(code, f"checkpoint {number} {why}. {self._fallback()}", str(self.folder))

    def wait(self) -> None:
        """Wait until what is being written is written.

        Raises:
          OSError: it could not be; the older checkpoints are untouched.
        """
        with self._told():
            self._manager.wait_until_finished()
        if self._tried >= 0:  # those that were found may be damaged; one that we wrote is whole
            for number in self.numbers()[:-KEPT]:
                self._manager.delete(number)

    def close(self) -> None:
        """Wait, and free what Orbax holds.

        Raises:
          OSError: as `wait`.
        """
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # a failure that was told, told again
                self._manager.close()

    def restore(self, like: Any) -> Saved | None:
        """The newest checkpoint that is whole.

        Args:
          like: a pytree of the structure, shapes and dtypes that were saved; arrays, or
            `jax.ShapeDtypeStruct`s as `jax.eval_shape` gives them. Its values are not looked at.

        Returns:
          What was saved, or None where nothing ever was. Arrays come as JAX arrays.

        Raises:
          TypeError: like holds something else than arrays.
          ValueError: it is of another training; what differs is listed. Or like holds nothing.
          OSError: there are checkpoints and none of them can be read.
        """
        _check_tree("like", like)
        damaged = []
        for number in reversed(self.numbers()):
            try:
                record, arrays = self._read(number)
            except Exception as error:  # whatever Orbax and TensorStore make of a damaged file
                reason = first_line(error)
                damaged.append(f"{number} ({reason})")
                logging.warning(
                    "checkpoint %d in %s is damaged: %s; it is set aside as %s%d, and the one "
                    "before it is taken",
                    number, self.folder, reason, DAMAGED, number,
                )  # fmt: skip
                self._set_aside_now(number)
                continue
            return Saved(self._fit(number, record, arrays, like), record["progress"], number)
        if damaged:
            raise OSError(
                errno.EIO,
                f"no checkpoint can be read: {', '.join(damaged)}; give another folder to begin "
                "anew",
                str(self.folder),
            )
        return None

    def _read(self, number: int) -> tuple[dict[str, Any], list[jax.Array]]:
        """The record and the arrays, checked against their digests."""
        found: Any = self._manager.restore(
            number,
            args=ocp.args.Composite(record=ocp.args.JsonRestore()),  # pyright: ignore[reportCallIssue]
        )
        record = dict(found.record)
        if record.pop("sha256", None) != digest(record):
            raise ValueError("its record is not what was written")
        described = record["arrays"]
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in described}
        found = self._manager.restore(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                    item=dict.fromkeys(described, 0), restore_args=as_numpy
                )
            ),
        )
        return record, [give(np.asarray(found.arrays[n]), about) for n, about in described.items()]

    def _fit(self, number: int, record: dict[str, Any], arrays: list[jax.Array], like: Any) -> Any:
        """The arrays in the structure of `like`, if they are of this training."""
        paths, structure = jax.tree.flatten_with_path(like)
        there = {about["name"]: about["kind"] for about in record["arrays"].values()}
        now = {jax.tree_util.keystr(path): kind(leaf) for path, leaf in paths}
        found = [*differences(record["config"], self._config), *differences(there, now)]
        if found:
            listed = "".join(f"\n  {line}" for line in found)
            raise ValueError(
                f"checkpoint {number} in {self.folder} is of another training:{listed}\n"
                "Go on with what it was made with, or give another folder to begin anew"
            )
        for line in differences(record["versions"], versions()):
            logging.warning("checkpoint %d: %s; the same bits are not promised", number, line)
        return jax.tree.unflatten(structure, arrays)

    def _set_aside_now(self, number: int) -> None:
        """Rename a damaged checkpoint, so that it is neither restored, removed nor written to."""
        try:
            (self.folder / str(number)).rename(self.folder / f"{DAMAGED}{number}")
        except OSError as error:  # a folder that is read-only; nothing can be overwritten there
            logging.warning("checkpoint %d stays where it is: %s", number, error.strerror)
        self._manager.reload()

    def _set_aside(self) -> Iterator[int]:
        """The numbers that damaged checkpoints had."""
        for path in self.folder.glob(f"{DAMAGED}*"):
            if (number := path.name.removeprefix(DAMAGED)).isdecimal():
                yield int(number)

    def _fallback(self) -> str:
        """What there is if the newest could not be written."""
        numbers = self.numbers()
        return f"Checkpoint {numbers[-1]} stays" if numbers else "There is none before it"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Orbax raises for a failed write into one OSError."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager = self._open()  # the old one would raise it again, at a restore too
            raise OSError(
                errno.EIO,
                f"checkpoint {self._tried} could not be written: {first_line(error)}. "
                f"{self._fallback()}",
                str(self.folder),
            ) from error


def _check_tree(name: str, tree: Any) -> None:
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"Checkpoints: {name} must hold at least one array, got none")
    for path, leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"Checkpoints: {name} must hold arrays, got {type(leaf).__name__} at "
                f"{name}{jax.tree_util.keystr(path)}; numbers belong into progress"
            )


@functools.cache
def _quiet_orbax() -> None:
    """Orbax logs a failed write with a traceback from each of its threads; we raise it, once."""

    def of_others(record: python_logging.LogRecord) -> bool:
        return "orbax" not in pathlib.Path(record.pathname).parts

    python_logging.getLogger("absl").addFilter(of_others)
