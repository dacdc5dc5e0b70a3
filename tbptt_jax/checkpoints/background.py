"""Writing in the background: an error is raised where someone waits for the write, or logged."""

import pathlib
import threading
import weakref
from collections.abc import Callable

from absl import logging

from tbptt_jax.arguments import first_line


class BackgroundWrite:
    """The thread that writes the checkpoints of a folder, one at a time.

    The program does not end before the thread does. An error that nobody takes is logged when this
    object is dropped or the program ends, which is after Python has joined every thread.
    """

    def __init__(self, folder: pathlib.Path):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # Of text: an error's traceback leads to this object, which would never be dropped.
        self._unseen: dict[int, str] = {}
        weakref.finalize(self, _report, folder, self._unseen)

    @property
    def running(self) -> bool:
        """Whether a thread was started that `join` has not seen end."""
        return self._thread is not None

    def start(self, number: int, write: Callable[[], None]) -> None:
        """Call `write` in a thread.

        Raises:
          RuntimeError: the system has no thread left, or the program ends.
        """
        thread = threading.Thread(
            target=self._run, args=(number, write), name="tbptt_jax.Checkpoints"
        )
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._thread = None
            raise

    def _run(self, number: int, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._error, self._unseen[number] = error, first_line(error)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread, at most `timeout` seconds; whether none is running now."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def take_error(self) -> BaseException | None:
        """What the last write raised, once; None where it raised nothing."""
        error, self._error = self._error, None
        self._unseen.clear()
        return error


def _report(folder: pathlib.Path, unseen: dict[int, str]) -> None:
    for number, why in unseen.items():
        logging.error(
            "checkpoint %d in %s is lost: %s; use `with Checkpoints(...)`, or call close() before "
            "the program ends",
            number, folder, why,
        )  # fmt: skip
