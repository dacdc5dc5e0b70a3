"""The messages that the cases raise, and the file that holds them."""

import pathlib
import tempfile
import textwrap
import warnings

import pytest

from tests.bad_input.calls import Case
from tests.bad_input.checkpoints import CHECKPOINTS
from tests.bad_input.data import DATA
from tests.bad_input.parts import PARTS
from tests.bad_input.plans import PLANS
from tests.bad_input.training import TRAINING
from tests.bad_input.values import VALUES

CASES: list[Case] = [*VALUES, *PARTS, *TRAINING, *PLANS, *DATA, *CHECKPOINTS]
FILE = pathlib.Path(__file__).with_name("messages.txt")


def raised(case: Case) -> str:
    """The type and message of what a case raises, without what depends on machine or version."""
    _, call, kind = case
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as caught:
            call(*[pathlib.Path(folder)] if case in CHECKPOINTS else [])
    message = str(caught.value).replace(folder, "{folder}")
    # Some messages quote what Python, JAX or Flax says, which changes with their versions.
    cause = str(caught.value.__cause__ or "").strip().rstrip(".")
    if cause:
        message = message.replace(cause.splitlines()[0][:300].rstrip("."), "{cause}")
    return f"{caught.type.__name__}: {message}"


def read() -> dict[str, str]:
    """The messages of the file, by the names of the cases."""
    entries = FILE.read_text(encoding="utf-8").strip().split("\n\n")
    named = (entry.split("\n", 1) for entry in entries)
    return {name: textwrap.dedent(message) for name, message in named}


def write(messages: dict[str, str]) -> None:
    """The file, from the messages by the names of the cases."""
    entries = (f"{name}\n{textwrap.indent(messages[name], '    ')}\n" for name in sorted(messages))
    FILE.write_text("\n".join(entries), encoding="utf-8")
