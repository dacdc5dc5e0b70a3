"""How a training is saved while it runs, stopped, and gone on with."""

import contextlib
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from experiments import common
from experiments.common import RunOptions
from tbptt_jax.checkpoint import Checkpoints, Saved

# What a training is at this moment: a pytree of arrays, and JSON.
Snapshot = Callable[[], tuple[Any, Any]]


class Signals:
    """Ctrl-C and SIGTERM: noted while a batch is trained, so that none is torn; else obeyed."""

    def __init__(self, leave: Callable[[int], Any]):
        self._leave, self._waiting = leave, False
        self.noted: int | None = None  # the first that came while it had to wait
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if not self._waiting or self.noted is not None:
            self._leave(number)
        self.noted = number
        tqdm.write("stopping after this batch (once more: at once)", file=sys.stderr)

    def obey(self) -> None:
        """Leave if a signal was noted."""
        if self.noted is not None:
            self._leave(self.noted)

    @contextlib.contextmanager
    def noted_only(self) -> Iterator[None]:
        """Within it the first signal waits for someone to look at `noted`."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False


class Unsaved:
    """A training without a folder: nothing is kept, and what stops it is raised."""

    on_nonfinite = "stop"

    @contextlib.contextmanager
    def running(self, about: dict[str, Any], like: Callable[[], Any]) -> Iterator[Saved | None]:
        """Around a training; gives what there is to go on from.

        Args:
          about: what the training is, as JSON; one that differs is not gone on with.
          like: makes the structure of a snapshot's arrays.
        """
        del about, like
        yield None

    def after_batch(self, snapshot: Snapshot) -> None:
        """Save if it is time; stop if that was asked for."""

    def stop_nonfinite(self, message: str, snapshot: Snapshot) -> None:
        """End the training for a loss or gradient that is not finite.

        Raises:
          FloatingPointError: with the message.
        """
        del snapshot
        raise FloatingPointError(message)

    def finish(self, snapshot: Snapshot) -> None:
        """Save the end."""


class Saving(Unsaved):
    """A training of a run: saved now and then, at its end and when a signal stops it."""

    def __init__(
        self,
        folder: pathlib.Path,
        options: RunOptions,
        signals: Signals | None,
        resume_command: str,
    ):
        self.on_nonfinite = options.on_nonfinite
        self._folder, self._options, self._signals = folder, options, signals
        self._resume_command = resume_command
        self._saved_at, self._saved = time.monotonic(), None

    @contextlib.contextmanager
    def running(self, about: dict[str, Any], like: Callable[[], Any]) -> Iterator[Saved | None]:
        """As `Unsaved.running`; what cannot be gone on with ends the program."""
        waits = self._signals.noted_only() if self._signals else contextlib.nullcontext()
        self._checkpoints = self._open(about)
        try:
            with waits:
                yield self._restore(like)
        finally:
            self._try(self._checkpoints.close)

    def after_batch(self, snapshot: Snapshot) -> None:
        """Save if it is time; stop, saved, if a signal came."""
        if self._signals is not None and self._signals.noted is not None:
            self._save(snapshot, wait=True)
            self._signals.obey()
        if time.monotonic() - self._saved_at >= self._options.checkpoint_every:
            self._save(snapshot)

    def stop_nonfinite(self, message: str, snapshot: Snapshot) -> None:
        """End the program, saved."""
        self._save(snapshot, wait=True)
        common.stop(
            f"{message}\nLook into the data or lower the learning rate. What was learnt before is "
            f"saved; to go on after it, and to leave out what else is not finite:\n"
            f"  {self._resume_command} --on_nonfinite=skip"
        )

    def finish(self, snapshot: Snapshot) -> None:
        """Save the end, unless that is what was gone on from."""
        if snapshot()[1] != self._saved:
            self._save(snapshot, wait=True)

    def forget(self) -> None:
        """Remove the checkpoints, when what they led to is kept elsewhere."""
        # In one go: half of what is removed would be taken for a damaged checkpoint.
        removed = self._folder.with_name(f"{self._folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        self._folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _open(self, about: dict[str, Any]) -> Checkpoints:
        try:
            return Checkpoints(self._folder, about)
        except OSError as error:
            common.stop(f"{self._folder} cannot be made ({error.strerror})")

    def _restore(self, like: Callable[[], Any]) -> Saved | None:
        if not self._checkpoints.numbers():
            return None
        try:
            found = self._checkpoints.restore(like())
        except (ValueError, OSError) as error:
            common.stop(f"--resume: {error}")
        self._saved = found and found.progress
        return found

    def _save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Save, or say why not: training goes on, the older checkpoint stays."""
        arrays, self._saved = snapshot()
        self._try(self._checkpoints.wait)
        self._try(lambda: self._checkpoints.save(arrays, self._saved))
        if wait:
            self._try(self._checkpoints.wait)
        self._saved_at = time.monotonic()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            tqdm.write(f"warning: {error}", file=sys.stderr)
