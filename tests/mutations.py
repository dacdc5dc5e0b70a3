"""Put known faults into the library, one at a time, and see that the tests notice each.

python -m tests.mutations                      all of them
python -m tests.mutations "lost row" "no mask"   those whose names hold one of these

What is tested is a copy in a temporary folder. A fault that no test notices is a test that is
missing; write it, and name it in `tests.faults`.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from tests.command_line import ROOT
from tests.faults import FAULTS
from tests.faults.fault import Fault, find, node_id

COPIED = "tbptt_jax", "tests", "experiments", "conftest.py", "pyproject.toml"
FAILED = 1  # pytest's exit status when tests ran and failed; others mean that they did not run


class Outcome(NamedTuple):
    """What became of a fault: the test that failed, or None, and how long that took."""

    caught_by: str | None
    seconds: float


def copy(folder: pathlib.Path) -> None:
    """What is tested and its tests, into an empty folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)


def run(
    folder: pathlib.Path, tests: Iterable[str], *options: str
) -> subprocess.CompletedProcess[str]:
    """The tests, on the code of the folder."""
    # Without -m the installed package would be tested. A file that is changed and changed back
    # within a second has the time and size that its compiled code is known by.
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *options,
            *dict.fromkeys(map(node_id, tests)),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def try_fault(folder: pathlib.Path, fault: Fault) -> Outcome:
    """Run a fault's tests with the fault in the folder's code, and take it out again."""
    place = find(fault)
    path = folder / place.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(place.faulty, encoding="utf-8")
    start = time.monotonic()
    done = run(folder, fault.tests)
    seconds = time.monotonic() - start
    path.write_text(sound, encoding="utf-8")
    if done.returncode not in (0, FAILED):
        # Nothing was tested, as with a fault that Python refuses to import.
        raise RuntimeError(f"{fault.name}: the tests did not run\n{done.stdout}{done.stderr}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return Outcome(failed[0].split(" - ")[0].split("::", 1)[1] if failed else None, seconds)


def try_all(faults: Sequence[Fault]) -> dict[str, Outcome]:
    """The outcome of each fault, by name.

    Raises:
      RuntimeError: the tests do not pass on sound code, or do not run at all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        copy(folder)
        done = run(folder, (test for fault in faults for test in fault.tests))
        if done.returncode:
            raise RuntimeError(f"the tests fail without a fault\n{done.stdout}{done.stderr}")
        return {fault.name: try_fault(folder, fault) for fault in tqdm(faults, disable=None)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="parts of names of faults; none: all faults")
    names = parser.parse_args().names
    chosen = [f for f in FAULTS if not names or any(name in f.name for name in names)]
    left_out = [f.name for f in chosen if not f.can_be_tried()]
    if left_out:
        print(f"not tried, for want of a package: {', '.join(left_out)}")
    chosen = [f for f in chosen if f.can_be_tried()]
    if not chosen:
        parser.error(f"no fault is called so; there are: {', '.join(f.name for f in FAULTS)}")
    outcomes = try_all(chosen)
    width = max(len(fault.name) for fault in chosen)
    for fault in chosen:
        caught_by, seconds = outcomes[fault.name]
        said = caught_by or "NOTHING"
        print(f"{fault.name:{width}} | {fault.function:27} | {said} | {seconds:.1f} s")
    survived = sum(outcome.caught_by is None for outcome in outcomes.values())
    print(f"{len(chosen) - survived} of {len(chosen)} faults are caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
