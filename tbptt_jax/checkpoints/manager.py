"""All that training is, saved in a folder so that it resumes from there, bit for bit.

Orbax writes the arrays; a checkpoint appears whole or not at all. Orbax does not notice a bit that
the disk lost, so every file, every array and the metadata have a digest. Nothing that is read is
ever executed: it is arrays and JSON.
"""

import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import jax
from absl import logging

from tbptt_jax import processes
from tbptt_jax.arguments import first_line
from tbptt_jax.axes import mesh_sharding
from tbptt_jax.checkpoints import store
from tbptt_jax.checkpoints.arrays import Damaged, Leaf, check_tree, pack, unpack
from tbptt_jax.checkpoints.background import BackgroundWrite
from tbptt_jax.checkpoints.lock import FolderLock
from tbptt_jax.checkpoints.metadata import (
    Json,
    Metadata,
    as_json,
    check_same_training,
    differences,
    saved_versions,
    versions,
)
from tbptt_jax.types import Array, Tree

MOST = 2  # checkpoints: the newest, and one to fall back to


class Saved(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
      tree: the pytree that was saved.
      progress: the progress that was saved, after JSON: tuples are lists, keys are strings.
      number: number of the checkpoint; the first is 0.
    """

    tree: Tree
    progress: Json
    number: int


class Checkpoints:
    """The checkpoints of one training, in a folder.

    The last two are kept, and a third while it is written. `restore` takes the newest. If that one
    is damaged, it is reported, renamed to damaged-NUMBER and never written to again, and the one
    before it is restored. Whatever else the folder holds is left alone.

    The folder belongs to one training at a time: it is locked until `close`, or until the process
    ends. A read-only folder is restored from without a lock. Each thread may have a folder of its
    own; their writes wait for each other.

    Of a program that runs in several processes (`jax.distributed`) every process makes this object,
    of the same folder, which all must reach, and calls the same methods in the same order. An array
    that is spread over processes is written in parts, by each process its own. Any number of
    processes and devices restores what any other number saved.

    Args:
      folder: made if it is missing.
      config: JSON that says what the training is: model, truncation plan, data. A checkpoint that
        was saved with another config is refused.

    Raises:
      TypeError: folder is no path, or config no mapping or not JSON.
      BlockingIOError: another training uses the folder; the message says which.
      OSError: the folder cannot be made.

    Examples:
      A stream of five batches, interrupted after the third, with k2 > k1:

      >>> import tempfile, numpy as np, optax, tbptt_jax as tbptt
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

      Later, in another process. A new state has no carry yet; `state_after` says what one has that
      has trained on a batch, and runs nothing:

      >>> state = start()
      >>> with Checkpoints(folder, config) as checkpoints:
      ...     like = tbptt.state_after(state, batches[0], plan)
      ...     state, progress, number = checkpoints.restore(like)
      >>> progress
      {'batches': 3}
      >>> for batch in batches[progress["batches"]:]:
      ...     state, _ = tbptt.train_step(state, batch, plan)
      >>> int(state.step)
      10
    """

    def __init__(self, folder: str | pathlib.Path, config: Mapping[str, Json] | None = None):
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
        store.load_orbax()
        self._closed = False
        self._background = BackgroundWrite(self.folder)
        self._tried = -1  # the newest number that a write started for
        self._lock = FolderLock(self.folder)
        processes.on_first(self._open)
        processes.together(self._check_shared)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except BlockingIOError:
            raise
        except OSError:  # one can still restore; `save` tries again
            pass

    def _check_shared(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(
                errno.ENOENT,
                "Checkpoints: all processes must reach the same folder, and process "
                f"{jax.process_index()} does not see it; give one that the machines share",
                str(self.folder),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints, oldest first; damage that was not noticed yet included."""
        return [number for number, _ in store.find(self.folder, store.WHOLE)]

    def damaged(self) -> list[str]:
        """Names of the damaged checkpoints that were set aside, oldest first."""
        return [path.name for _, path in store.find(self.folder, store.DAMAGED)]

    def save(self, tree: Tree, progress: Json = None) -> None:
        """Start to write a checkpoint, and return while it is written.

        The arrays are copied first, so the state may go to `train_step`, which donates it, at once.
        With several processes it returns when the checkpoint is written.

        Args:
          tree: a pytree of arrays, such as a `TrainState`; of JAX or of NumPy, of any shape, size
            zero too, and any dtype, typed keys too, but Python objects.
          progress: JSON: the position in the data, what was measured so far.

        Raises:
          TypeError: progress is not JSON, or a leaf of the tree is no array.
          ValueError: the tree has no leaf, or this object was closed.
          BlockingIOError: another training uses the folder.
          OSError: the folder is full or read-only, or the checkpoint before this one, which was
            still being written, failed. The older ones are untouched.
        """
        self._check_open()
        check_tree("tree", tree)
        self.wait()
        arrays, described = {}, {}
        for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
            arrays[str(i)], described[str(i)] = pack(jax.tree_util.keystr(path), leaf)
        metadata: Metadata = {
            "progress": as_json("progress", progress),
            "config": self._config,
            "versions": versions(),
            "arrays": described,
        }
        needed = sum(array.nbytes for array in arrays.values()) + len(json.dumps(metadata))
        self._tried = processes.on_first(lambda: self._prepare(needed))
        write = functools.partial(self._write, self._tried, metadata, arrays)
        if processes.several():
            # Orbax's processes wait for each other, which they must not do while they train.
            try:
                write()
            except Exception as error:
                self._fail(error)
            return
        try:
            self._background.start(self._tried, write)
        except RuntimeError as error:  # the system has no thread left, or the program ends
            self._refuse(errno.EAGAIN, f"cannot be written: {first_line(error)}", self._tried)

    def _prepare(self, needed: int) -> int:
        """The next number, once the folder is locked, can be written to and has room."""
        if not self.folder.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "a checkpoint cannot be written, the folder is gone", str(self.folder)
            )
        # Not the number of a write that failed either: its threads may still run.
        number = store.next_number(self.folder, self._tried + 1)
        as_effective_user = os.access in os.supports_effective_ids
        if not os.access(self.folder, os.W_OK | os.X_OK, effective_ids=as_effective_user):
            self._refuse(errno.EACCES, "cannot be written, the folder is read-only", number)
        self._lock.acquire()
        for _, half in store.find(self.folder, store.HALF):  # of a write that failed or was killed
            with contextlib.suppress(OSError):
                store.remove(half)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            why = f"needs {needed:,} bytes and {free:,} are left; make room"
            self._refuse(errno.ENOSPC, why, number)
        return number

    def _refuse(self, code: int, why: str, number: int) -> NoReturn:
        raise OSError(code, f"checkpoint {number} {why}. {self._fallback()}", str(self.folder))

    def _write(self, number: int, metadata: Metadata, arrays: Mapping[str, Array]) -> None:
        """Write a checkpoint, and remove all but the last two."""
        store.write(self.folder, number, metadata, arrays)
        # Only now: the older ones may be damaged, this one is whole.
        processes.on_first(self._remove_old)

    def _remove_old(self) -> None:
        try:
            for _, path in store.find(self.folder, store.WHOLE)[:-MOST]:
                store.remove(path)
        except OSError as error:
            logging.warning("the checkpoints before the last two cannot be removed: %s", error)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Checkpoints: {self.folder} was closed; open it again")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Args:
          timeout: seconds to wait at most; None: as long as it takes.

        Raises:
          TimeoutError: it is still being written.
          OSError: it could not be written; the older checkpoints are untouched.
        """
        self._join(timeout)
        error = self._background.take_error()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        raise OSError(
            errno.EIO,
            f"checkpoint {self._tried} could not be written: {first_line(error)}. "
            f"{self._fallback()}",
            str(self.folder),
        ) from error

    def _join(self, timeout: float | None = None) -> None:
        """Wait for the thread that writes."""
        if not self._background.join(timeout):
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"checkpoint {self._tried} is not written after {timeout:g} seconds. "
                f"{self._fallback()}",
                str(self.folder),
            )

    def close(self) -> None:
        """Wait, and unlock the folder. Closing again does nothing.

        Raises:
          OSError: the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            if not self._background.running:  # else an interrupt: the lock goes with the thread
                self._closed = True
                self._lock.release()

    def clear(self) -> None:
        """Remove every checkpoint, the damaged ones too, and nothing else.

        Raises:
          ValueError: this object was closed.
          BlockingIOError: another training uses the folder.
          OSError: a checkpoint cannot be removed.
        """
        self._check_open()
        self._join()
        processes.on_first(self._remove_all)

    def _remove_all(self) -> None:
        self._lock.acquire()
        for form in (store.DAMAGED, store.HALF, store.WHOLE):
            for _, path in store.find(self.folder, form):
                store.remove(path)

    def restore(self, like: Tree) -> Saved | None:
        """Read the newest whole checkpoint.

        Args:
          like: a pytree with the structure, shapes and dtypes that were saved; its leaves are
            arrays, or `jax.ShapeDtypeStruct`s, as those of `state_after`. Values are ignored. A
            leaf whose sharding is over a mesh is restored there, on any number of devices.

        Returns:
          What was saved, or None where nothing ever was. Arrays of JAX are restored as arrays of
          JAX, those of NumPy as those of NumPy.

        Raises:
          TypeError: a leaf of like is no array.
          ValueError: the checkpoint belongs to another training, or another version of the library
            saved it under other names; the message lists what differs. Or like has no leaf, or
            this object was closed.
          OSError: there are checkpoints and all of them are damaged, now or before; or one cannot
            be read for another reason (permission, a disk that fails, too many open files), which
            says nothing of what it holds: nothing is renamed then.
        """
        self._check_open()
        check_tree("like", like)
        self._join()
        damaged, tried = [], set()
        while left := [n for n in processes.on_first(self.numbers) if n not in tried]:
            number = left[-1]
            path = self.folder / store.WHOLE.format(number)
            tried.add(number)
            try:
                return Saved(*self._read(path, like), number)
            except FileNotFoundError:
                if path.exists():
                    raise
                # The training that writes here removed it meanwhile.
            except Damaged as error:
                if path.exists():
                    damaged.append(f"{path.name} ({first_line(error)})")
                    processes.on_first(functools.partial(self._set_aside, path, error))
        found = ", ".join(damaged or self.damaged())
        if found:
            raise OSError(
                errno.EIO,
                f"no checkpoint can be read: {found}; give another folder to start over",
                str(self.folder),
            )
        return None

    def _read(self, path: pathlib.Path, like: Tree) -> tuple[Tree, Json]:
        """The tree and the progress of a checkpoint; what one process raises, all raise."""
        processes.together(lambda: store.check_files(path))
        metadata = processes.together(lambda: store.read_metadata(path))
        self._check_same(path, metadata, like)
        described, leaves = metadata["arrays"], jax.tree.leaves(like)
        shardings = dict(zip(described, map(mesh_sharding, leaves), strict=True))

        def read() -> list[Leaf]:
            arrays = store.read_arrays(path, described, shardings)
            return [unpack(arrays[n], about, shardings[n]) for n, about in described.items()]

        tree = jax.tree.unflatten(jax.tree.structure(like), processes.together(read))
        return tree, metadata["progress"]

    def _set_aside(self, path: pathlib.Path, why: Damaged) -> None:
        """Rename a damaged checkpoint, and say so."""
        try:
            self._lock.acquire()
            where = f"set aside as {store.set_aside(path).name}"
        except OSError as error:  # a read-only folder
            where = f"left where it is ({error.strerror})"
        logging.warning(
            "checkpoint %s in %s is damaged: %s; it is %s, and the one before it is restored",
            path.name, self.folder, first_line(why), where,
        )  # fmt: skip

    def _check_same(self, path: pathlib.Path, metadata: Metadata, like: Tree) -> None:
        """Raise if a checkpoint belongs to another training; warn if other versions saved it."""
        name = f"checkpoint {path.name} in {self.folder}"
        check_same_training(name, metadata, self._config, like)
        for line in differences(saved_versions(metadata), versions()):
            logging.warning("%s: %s; the same bits are not promised", name, line)

    def _fallback(self) -> str:
        """Which checkpoint is left where the newest could not be written."""
        try:
            numbers = self.numbers()
        except OSError as error:
            return f"Those before it cannot be listed ({error.strerror})"
        return f"Checkpoint {numbers[-1]} stays" if numbers else "There is none before it"
