"""An experiment as a command: how it starts, and how it ends when something is in its way."""

import contextlib
import errno
import io
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import app, flags, logging

import experiments
from experiments import cluster
from experiments import config as configs
from experiments import run as runs
from experiments.config import Options
from experiments.files import DataError, in_a_line, stop

C = TypeVar("C", bound=Options)


class _Stream(io.FileIO):
    """Standard output or error. What cannot be written is dropped, and the first error saved.

    Nothing is buffered: a signal's handler may write while something else is being written.
    """

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while len(rest):
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.failed = self.failed or error
        return len(data)


def standard_stream(number: int, before: Any) -> tuple[_Stream, Any]:
    """A text stream to a descriptor, written as the one before it."""
    raw = _Stream(number, "w", closefd=False)
    encoding = getattr(before, "encoding", "utf-8")
    # A folder's name may hold bytes that are no text.
    return raw, io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)  # pyright: ignore


def run(kind: type[C], main: Callable[..., None], positional: bool = False) -> None:
    """Run an experiment with the configuration that the command line requests; end the process.

    `main` gets the configuration and, with `positional`, the list of the arguments without flags.

    -h and --help print the docstring of the script and its flags. An error that lies outside the
    code (a file, the disk, memory, data) ends the process with one line and status 1, Ctrl-C with
    status 130.

    Whoever reads standard output may leave (`| head -1`), and a disk may be full: what is printed
    is then lost, but a training runs to its end, since all it leads to is in its folder. The status
    says so: 141 where nobody reads any more, as of a process that SIGPIPE ended, and 1, with a
    line, for any other reason. Nothing depends on standard error.
    """
    output = None
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        output, sys.stdout = standard_stream(1, sys.stdout)
        _, sys.stderr = standard_stream(2, sys.stderr)
    configs.define_flags(kind)
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(f"{sys.modules['__main__'].__doc__}\nFlags:\n{configs.help_text(kind)}")
            sys.exit()

        def job(argv: list[str]) -> None:
            rest = [argv[1:]] if positional else []
            together = getattr(flags.FLAGS, "distributed", False)
            with cluster.joined() if together else contextlib.nullcontext():
                checked(lambda: main(runs.configure(kind), *rest), argv[:1] if positional else argv)

        app.run(job)
    except SystemExit as ended:
        # A status above 1 says more than that something was not printed.
        if output is None or output.failed is None or ended.code not in (None, 0, 1):
            raise
        if output.failed.errno == errno.EPIPE:
            sys.exit(128 + signal.SIGPIPE)
        stop(f"standard output cannot be written ({output.failed.strerror}); redirect it")


def checked(main: Callable[[], None], argv: list[str]) -> None:
    """Start and run; errors from outside the code become messages."""
    try:
        start(argv)
        main()
    except DataError as error:
        stop(str(error))
    except ModuleNotFoundError as error:  # of a single task; the other packages were looked for
        remedy = "" if "pip install" in str(error) else f"; in the clone, run {experiments.INSTALL}"
        stop(f"{error}{remedy}")
    except OSError as error:
        stop(in_a_line(error))
    except (MemoryError, OverflowError) as error:
        stop(f"too large for this machine: {_line(error)}; give smaller numbers")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stop(f"not enough memory: {_line(error)}; give smaller numbers")
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def start(argv: list[str]) -> None:
    """Refuse arguments that are no flags, and keep compiled programs for the next run."""
    if len(argv) > 1:
        stop(f"unexpected arguments {argv[1:]}; write --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX reports every device that is missing
    if jax.config.values["jax_enable_compilation_cache"]:
        keep_compiled()


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache, or do without.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=false does
    without.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is not None and "://" in folder:
        return
    try:
        folder = folder or str(pathlib.Path.home() / ".cache" / "tbptt_jax")
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        jax.config.update("jax_compilation_cache_dir", folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        why = error.strerror if isinstance(error, OSError) else "there is no home folder"
        jax.config.update("jax_enable_compilation_cache", False)
        print(
            f"warning: compiled programs are not kept for the next run ({folder or '~/.cache'}: "
            f"{why}); name a folder for them with JAX_COMPILATION_CACHE_DIR",
            file=sys.stderr,
        )
