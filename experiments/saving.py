"""How a training is saved while it runs, stopped, and resumed."""

import contextlib
import gc
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from experiments.config import RunOptions
from experiments.files import stop
from tbptt_jax import Checkpoints, Saved, processes

# What a training is at this moment: a pytree of arrays, and JSON.
Snapshot = Callable[[], tuple[Any, Any]]

GRACE = 20.0  # seconds that a save may take after a signal; schedulers kill after 30


class Signals:
    """Ctrl-C and SIGTERM: noted while a batch is trained, so that none is torn; else obeyed.

    The second ends the process, whatever it and its threads wait for.
    """

    def __init__(self, leave: Callable[[int], Any]):
        self._leave, self._waiting = leave, False
        self._saving_since: float | None = None
        self.noted: int | None = None  # the first signal
        self._came: float | None = None  # when the first signal came
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        # Python runs no handler while compiled code runs, but it does write to this pipe.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def _handle(self, number: int, frame: Any) -> None:
        """The first signal, in the main thread; `_watch` ends the process at the second."""
        if self._came is not None:
            return
        self._came, self.noted = time.monotonic(), number
        if not self._waiting:
            # In a callback of the garbage collector Python drops what is raised: `training` obeys.
            if not _collects(frame):
                self._leave(number)
            return
        with contextlib.suppress(Exception):  # stderr is closed, or was just being written to
            # One write, for another thread may write too.
            what = "stopping after this batch (once more: at once)\n"
            tqdm.write(what, file=sys.stderr, end="")

    def _watch(self, reading: int) -> None:
        """End the process at the second signal, or where a save takes too long after the first."""
        numbers: list[int] = []
        while len(numbers) < 2:
            since, came = self._saving_since, self._came
            if select.select([reading], [], [], 0.1 if numbers else None)[0]:
                number = os.read(reading, 1)[0]
                ours = signal.getsignal(number) == self._handle
                numbers += [number] * ours
            elif since and came and time.monotonic() - max(since, came) > GRACE:
                with contextlib.suppress(Exception):
                    what = f"no checkpoint after {GRACE:g} seconds; the one before it stays"
                    sys.stderr.write(f"warning: {what}\n")
                break
        number = numbers[-1]
        # Should nobody read what we print:
        threading.Timer(2.0, os._exit, [128 + number]).start()
        with contextlib.suppress(BaseException):
            self._leave(number)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(128 + number)

    def obey(self, number: int | None) -> None:
        """Leave if a signal of this number was noted, here or in another process."""
        if number is not None:
            self._leave(number)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within it the first signal waits for `obey`; one that came before is obeyed now."""
        self._waiting = True
        try:
            self.obey(self.noted)
            yield
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save: after a signal it has `GRACE` seconds, and then the process ends."""
        before, self._saving_since = self._saving_since, self._saving_since or time.monotonic()
        try:
            yield
        finally:
            self._saving_since = before


def _collects(frame: types.FrameType | None) -> bool:
    """Whether code runs in a callback of the garbage collector."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    return frame is not None


class Saving:
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
        self._saved_at = time.monotonic()
        self._live: Any = None  # what writes for TensorBoard
        self._saved = ""  # the last progress, as text: in it NaN equals NaN

    @contextlib.contextmanager
    def running(self, about: dict[str, Any], like: Callable[[], Any]) -> Iterator[Saved | None]:
        """Around a training; yields what there is to resume. What cannot be ends the program.

        Args:
          about: what the training is, as JSON; a checkpoint of another one is refused.
          like: makes the structure of a snapshot's arrays.
        """
        waits = self._signals.training() if self._signals else contextlib.nullcontext()
        try:
            self._checkpoints = Checkpoints(self._folder, about)
        except BlockingIOError as error:
            stop(f"--output_dir: {error.strerror} ({self._folder})")
        except OSError as error:
            stop(f"{self._folder} cannot be made ({error.strerror})")
        live = self._options.tensorboard and processes.is_first()
        self._live = self._open_live() if live else None
        try:
            with waits:
                yield self._restore(like)
        finally:
            self._try(self._checkpoints.close)
            if self._live is not None:
                self._live.close()

    def _open_live(self) -> Any:
        """What writes for TensorBoard."""
        try:
            import tensorboardX
        except ModuleNotFoundError:
            stop('--tensorboard: not installed: tensorboardX; run pip install -e ".[tensorboard]"')
        folder = self._folder.parent.parent / "tensorboard" / self._folder.name
        return tensorboardX.SummaryWriter(str(folder), flush_secs=5)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show numbers in TensorBoard, if that was requested, at a step, which counts updates."""
        if self._live is not None:
            for name, number in numbers.items():
                self._live.add_scalar(name, number, step)

    def after_batch(self, snapshot: Snapshot) -> None:
        """Save if it is time; stop, saved, if a signal came."""
        due = time.monotonic() - self._saved_at >= self._options.checkpoint_every
        noted = None if self._signals is None else self._signals.noted
        # All save together: when the first one does, or when one of them was stopped.
        asked = processes.gather([due, noted])
        if asked[0][0]:
            self._save(snapshot)
        stopped = next((number for _, number in asked if number is not None), None)
        if self._signals is not None and stopped is not None:
            self.finish(snapshot)
            self._signals.obey(stopped)

    def stop_nonfinite(self, message: str, snapshot: Snapshot) -> None:
        """End the program, saved."""
        self.finish(snapshot)
        stop(
            f"{message}\nLook into the data or lower the learning rate. The training before it is "
            f"saved; to resume it, and to skip non-finite updates:\n"
            f"  {self._resume_command} --on_nonfinite=skip"
        )

    def finish(self, snapshot: Snapshot) -> None:
        """Save the end, unless that was saved or restored, and wait until it is written."""
        with self._limited():
            if json.dumps(snapshot()[1]) != self._saved:
                self._save(snapshot)
            self._try(self._checkpoints.wait)

    def forget(self) -> None:
        """Remove the checkpoints, when their result is saved elsewhere."""
        if not processes.on_first(self._folder.exists):
            return

        def clear() -> None:
            with Checkpoints(self._folder) as checkpoints:
                checkpoints.clear()

        self._try(clear)
        with contextlib.suppress(OSError):  # something else is in it
            self._folder.rmdir()

    def _restore(self, like: Callable[[], Any]) -> Saved | None:
        try:
            if not processes.on_first(self._has_checkpoints):
                return None
            found = self._checkpoints.restore(like())
        except (ValueError, OSError) as error:
            stop(f"--resume: {error}")
        self._saved = json.dumps(found.progress) if found else ""
        return found

    def _has_checkpoints(self) -> bool:
        return bool(self._checkpoints.numbers() or self._checkpoints.damaged())

    def _save(self, snapshot: Snapshot) -> None:
        """Save, or say why not: the training continues, the older checkpoint stays."""
        arrays, progress = snapshot()
        with self._limited():
            self._try(self._checkpoints.wait)
            self._saved = json.dumps(progress)
            self._try(lambda: self._checkpoints.save(arrays, progress))
        self._saved_at = time.monotonic()

    def _limited(self) -> contextlib.AbstractContextManager[None]:
        return self._signals.saving() if self._signals else contextlib.nullcontext()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._saved = ""
            tqdm.write(f"warning: {error}", file=sys.stderr)
