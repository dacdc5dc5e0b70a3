"""What can be run, and what says so."""

import subprocess
import sys

import pytest

from experiments import COMMANDS, MINUTES
from tests.command_line import ROOT, run

DEFAULTS = "", " --task=sunspots"  # the second of grid_search
RUNNABLE = {
    path.stem: path.read_text()
    for path in (ROOT / "experiments").rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
}


def test_the_modules_that_can_be_run_are_the_commands():
    assert RUNNABLE.keys() == COMMANDS.keys()


def test_the_package_lists_its_commands():
    done = run("experiments")
    assert done.returncode == 0, done.stderr
    listed = [line.removeprefix("python -m experiments.") for line in done.stdout.splitlines()]
    assert [
        line.split(maxsplit=1)
        for line in listed
        if line.split()[:1] and line.split()[0] in COMMANDS
    ] == [list(item) for item in COMMANDS.items()]


@pytest.mark.parametrize("module", ["experiments.files", "experiments.tasks.series"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_helper_cannot_be_run(module, joined):
    line = [sys.executable, *([f"-m{module}"] if joined else ["-m", module]), "--fast"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {module} is not a command; expected experiments.NAME, ")
    assert done.stderr.count("\n") == 1


def test_the_table_of_questions_is_that_of_the_commands():
    lines = (ROOT / "experiments" / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:2] == "| "]
    head, *rows = rows
    assert head == ["question", "command", "minutes", "figure"]
    found = {command.strip("`").split()[2]: question for question, command, *_ in rows}
    assert found == {f"experiments.{name}": question for name, question in COMMANDS.items()}
    for _, command, *_ in rows:
        assert command.startswith("`python -m experiments.")
    minutes = {command.strip("`"): minutes for _, command, minutes, _ in rows}
    for name, count in MINUTES.items():  # of the default flags
        default = [minutes.get(f"python -m experiments.{name}{flag}") for flag in DEFAULTS]
        assert str(count) in default, name


def test_a_command_opens_with_its_question():
    for name, text in RUNNABLE.items():
        assert text.startswith(f'"""{COMMANDS[name]}\n'), name
