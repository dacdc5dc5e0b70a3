"""One training at a time in a folder, whatever process or thread it runs in."""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import weakref

from absl import logging

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".tbptt_jax.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The lock of a folder; held from `acquire` to `release`, or until the process ends.

    The kernel holds it for an open file, and drops it when the process ends or is killed. The file
    only says who holds it: one that is left over locks nothing.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._path = folder, folder / NAME
        self._file: int | None = None
        _locks.add(self)

    @property
    def held(self) -> bool:
        """Whether the folder is locked, and still has its name."""
        return self._file is not None and _is_at(self._file, self._path)

    def acquire(self) -> None:
        """Lock the folder; does nothing where this object holds the lock.

        Raises:
          BlockingIOError: someone else holds it; the message says who.
          OSError: the lock file cannot be made.
        """
        while not self.held:
            self.release()
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            file = os.open(self._path, flags, 0o666)
            # Assigned before it is locked: an interrupt leaves nothing open.
            self._file, self._release = file, weakref.finalize(self, os.close, file)
            if not self._lock(file):
                return

    def _lock(self, file: int) -> bool:
        """Lock the file and write the holder into it; False where nothing can be locked."""
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            self._forget()
            raise BlockingIOError(
                errno.EAGAIN,
                f"Checkpoints: the folder is in use by {holder}; one training at a time writes to "
                "a folder: close the other, or give another folder",
                str(self._folder),
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self._forget()
                raise
            logging.warning(
                "%s cannot be locked (%s): make sure that no other process saves to it",
                self._folder, error.strerror,
            )  # fmt: skip
            return False
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            os.ftruncate(file, 0)
            os.pwrite(file, _myself(), 0)
        return True

    def release(self) -> None:
        """Unlock the folder; does nothing where it is not locked."""
        if self.held:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._forget()

    def _forget(self) -> None:
        """Close the file, which unlocks it unless a parent process has it open too."""
        if self._file is not None:
            self._file = None
            self._release()


_locks: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _forget_all() -> None:
    # Closed, not unlocked: the lock belongs to the open file, which is the parent's too. Left
    # open in a child, it would outlive the parent.
    for lock in _locks:
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _is_at(file: int, path: pathlib.Path) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _myself() -> bytes:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _holder(file: int) -> str:
    """Who holds the lock, in words."""
    try:
        about = json.loads(os.pread(file, 1000, 0))
        named = f"process {about['pid']} on {about['host']} since {about['since']}"
        mine = (about["pid"], about["host"]) == (os.getpid(), socket.gethostname())
    except (OSError, ValueError, KeyError, TypeError):  # a holder that has not written it yet
        return "another process"
    return f"this process ({named})" if mine else named
