"""Experiments: one command for each question; `python -m experiments` lists them.

Importing the package checks, before anything slow is loaded, that the program can run.
"""

import importlib.util
import os
import sys

INSTALL = 'pip install -e ".[experiments]"'
# The modules that can be run and their questions, which README.md and each docstring repeat.
COMMANDS = {
    "sentiment": "What does an LSTM learn of long reviews when its gradient reaches back 30 words?",
    "credit": "What does truncation lose of the gradient on real reviews?",
    "first_words": "How can a network learn from first words that its gradient never reaches?",
    "presence_of_one": "Is there a 1 among 20 steps, when the gradient reaches back 10?",
    "naive": "What is lost when sequences are cut into pieces of equal length?",
    "full_bptt": "What do all of the credit and few updates give?",
    "tbptt_1_1": "What do many updates with one step of credit give?",
    "domain_split": "Can the data suggest how long a window should be?",
    "grid_search": "Which k1 and k2 are best, and by how much?",
    "char_lm": "How well does an LSTM predict the next character of a book?",
    "credit_matrices": "Which loss sends gradient to which step?",
    "report": "How do these runs compare?",
}
# Minutes of a command with its default flags, on two CPU cores; README.md repeats them.
MINUTES = {
    "sentiment": 1.5,
    "credit": 2,
    "first_words": 8,
    "presence_of_one": 1,
    "grid_search": 10,
    "char_lm": 3,
}


def _fill_standard_streams() -> None:
    """Give a standard stream that was closed a descriptor which refuses what is written to it.

    Otherwise the next file that is opened has its number, and is written to as standard output.
    """
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(number)


def _refuse_helpers() -> None:
    """End the program if `python -m` names a module that is no command; it would do nothing."""
    if sys.argv[:1] != ["-m"]:  # what it is while `python -m` looks for the module
        return
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    name = module.removeprefix("experiments.")
    if name not in (*COMMANDS, "experiments"):
        known = ", ".join(COMMANDS)
        sys.exit(
            f"error: {module} is not a command; expected experiments.NAME, NAME one of {known}"
        )


def _require_packages() -> None:
    """End the program if a package is missing: now, and not when an hour of training is done."""
    needed = ("absl", "flax", "jax", "matplotlib", "optax", "orbax", "tqdm")
    missing = [name for name in needed if not _installed(name)]
    if missing:
        sys.exit(f"error: not installed: {', '.join(missing)}; in the clone, run {INSTALL}")


def _installed(name: str) -> bool:
    """Whether a package is there; it is not imported, which for Matplotlib takes its time."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


_fill_standard_streams()
_refuse_helpers()
_require_packages()
