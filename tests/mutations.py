"""Put known faults into the core, one at a time, and see that the tests notice each.

python -m tests.mutations                      all of them
python -m tests.mutations "lost row" "no mask"  those whose names hold one of these

What is tested is a copy in a temporary folder. A fault that no test notices is a test that is
missing; write it, and name it here.
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

COPIED = "tbptt_jax", "tests", "experiments", "conftest.py", "pyproject.toml"
FAILED = 1  # pytest's exit status when tests ran and failed; others mean that they did not run


class Fault(NamedTuple):
    """A line of the core, made wrong.

    Attributes:
      name: what is wrong.
      file: where, from the root of the repository.
      old: the text, which occurs once in the file.
      new: what stands there instead.
      tests: the fewest and fastest that fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of a fault: the test that failed, or None, and how long that took."""

    caught_by: str | None
    seconds: float


def _trained(case: str) -> str:
    return f"tests/test_against_oracle.py::test_train_step_equals_the_oracle[{case}]"


def _in(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{file}.py::test_{name}" for name in names)


FAULTS = (
    # The credit matrix and where windows lie.
    Fault(
        "credit matrix one step short",
        "tbptt_jax/credit.py",
        "max(anchor - truncation.k2, 0) : t",
        "max(anchor - truncation.k2 + 1, 0) : t",
        _in("credit", "credit_matrix_by_hand[lookback]"),
    ),
    Fault(
        "window one step too long",
        "tbptt_jax/layout.py",
        "np.full_like(sizes, truncation.k2)",
        "np.full_like(sizes, truncation.k2 + 1)",
        (_trained("lstm-5-3-5-w-xent-update"),),
    ),
    Fault(
        "lookback from the carry one step earlier",
        "tbptt_jax/layout.py",
        "prepend=-truncation.k2 if stream else 0) - 1",
        "prepend=-truncation.k2 if stream else 0) - 2",
        (_trained("lstm-2-3-12-mrw-mse-update"),),
    ),
    Fault(
        "each loss reaches one step too far",
        "tbptt_jax/windows.py",
        'reach = truncation.k2 if truncation.anchor == "loss" else None',
        'reach = truncation.k2 + 1 if truncation.anchor == "loss" else None',
        (_trained("rnn-2-3-5-r-mse-loss"),),
    ),
    Fault(
        "per-loss gradient cut one lag late",
        "tbptt_jax/per_loss.py",
        "length=reach - 1)",
        "length=reach)",
        _in("per_loss", "the_public_window_reaches_as_far_as_it_is_told"),
    ),
    Fault(
        "blocks share one step too few",
        "tbptt_jax/per_loss.py",
        "blocks, size = -(-steps // block), block + reach - 1",
        "blocks, size = -(-steps // block), block + reach - 2",
        _in("per_loss", "blocks_change_nothing[gru-4-m]"),
    ),
    Fault(
        "gradient goes into the carry before a window",
        "tbptt_jax/gradients.py",
        "carry = jax.lax.stop_gradient(carry)",
        "carry = carry",
        _in("properties", "the_carry_before_a_window_is_a_constant"),
    ),
    # What passes from window to window.
    Fault(
        "no reset in lookback",
        "tbptt_jax/windows.py",
        "(lookback.inputs, lookback.mask, lookback.reset),",
        "(lookback.inputs, lookback.mask, jnp.zeros_like(lookback.reset)),",
        (_trained("rnn-2-3-5-r-mse-loss"), _trained("lstm-1-3-5-r-xent-update")),
    ),
    Fault(
        "no mask in lookback",
        "tbptt_jax/windows.py",
        "(lookback.inputs, lookback.mask, lookback.reset),",
        "(lookback.inputs, jnp.ones_like(lookback.mask), lookback.reset),",
        (
            _trained("lstm-2-3-12-mrw-mse-update"),
            *_in("properties", "what_is_trained_with_is_the_definition"),
        ),
    ),
    Fault(
        "steps that are not scored are skipped",
        "tbptt_jax/windows.py",
        "carry = forward(model, learner[0], carry, unscored, forward_key)[0]",
        "forward(model, learner[0], carry, unscored, forward_key)",
        (_trained("lstm-5-1-7-mr-xent-update"),),
    ),
    Fault(
        "losses read the outputs one step later",
        "tbptt_jax/windows.py",
        "first=end - scored - start,",
        "first=end - scored - start + 1,",
        (_trained("lstm-1-7-5-m-xent-update"),),
    ),
    Fault(
        "carry not handed on between batches",
        "tbptt_jax/train.py",
        "carry=memory.carry,",
        "carry=state.carry,",
        _in("train", "a_plan_that_changes_keeps_the_newest_carry"),
    ),
    Fault(
        "stream does not begin with its first batch",
        "tbptt_jax/windows.py",
        ".at[:, 0].set(True))",
        ".at[:, 0].set(False))",
        (_trained("learnt_rnn-2-3-7-r-mse-update"),),
    ),
    Fault(
        "padded steps move the carry",
        "tbptt_jax/recurrence.py",
        "new = select(mask, new, carry)",
        "new = select(mask, new, new)",
        _in("model", "scanning_a_step_is_a_plain_loop"),
    ),
    # What is learnt from a window.
    Fault(
        "losses without their weights",
        "tbptt_jax/window.py",
        "jnp.where(weights != 0, losses * weights, 0)",
        "jnp.where(weights != 0, losses, 0)",
        (_trained("lstm-5-3-5-w-xent-update"),),
    ),
    Fault(
        "mean over the steps instead of the weights",
        "tbptt_jax/window.py",
        "return jnp.sum(window.weights)",
        "return jnp.sum(window.weights != 0, dtype=window.weights.dtype)",
        (_trained("lstm-5-3-5-w-xent-update"),),
    ),
    Fault(
        "sum instead of the mean",
        "tbptt_jax/train.py",
        "(g / value.weight).astype(g.dtype)",
        "g.astype(g.dtype)",
        (_trained("lstm-5-3-5-w-xent-update"),),
    ),
    Fault(
        "updates counted where nothing is scored",
        "tbptt_jax/windows.py",
        "return learner, end, keep(carries, leave), *_numbers(0, 0), jnp.bool(True)",
        "return (*learner[:2], learner[2] + 1), end, keep(carries, leave), *_numbers(0, 0), "
        "jnp.bool(True)",
        _in("train", "a_loss_at_the_last_step_makes_one_update"),
    ),
    Fault(
        "window that is not finite is trained on",
        "tbptt_jax/windows.py",
        "finite, learn, mend, learner, value.carry, keep(value.carries, leave)",
        "jnp.bool(True), learn, mend, learner, value.carry, keep(value.carries, leave)",
        _in("numerics", "a_window_whose_loss_is_not_finite_changes_nothing[lstm-2-2-update]"),
    ),
    Fault(
        "lost row does not begin anew",
        "tbptt_jax/windows.py",
        "return learner, *(_begin_anew_where_lost(c, initial) for c in carries)",
        "return learner, *carries",
        _in("numerics", "a_row_whose_carry_is_lost_begins_anew[lstm-2-2-update]"),
    ),
    # Dropout.
    Fault(
        "same dropout in every window",
        "tbptt_jax/windows.py",
        "rng, key, forward_key = jax.random.split(rng, 3)",
        "_, key, forward_key = jax.random.split(rng, 3)",
        _in("train", "every_update_draws_anew"),
    ),
    Fault(
        "no dropout in steps that are not scored",
        "tbptt_jax/windows.py",
        "unscored, forward_key)[0]",
        "unscored, None)[0]",
        _in("properties", "dropout_falls_on_steps_that_are_not_scored"),
    ),
    Fault(
        "per-loss windows draw another dropout",
        "tbptt_jax/per_loss.py",
        "encode_rng, readout_rng = split_rng(rng)",
        "readout_rng, encode_rng = split_rng(rng)",
        _in("per_loss", "dropout_falls_on_the_same_places_as_in_a_reverse_pass"),
    ),
    # The fused cells.
    Fault(
        "LSTM's forget gate without its slope",
        "tbptt_jax/cells.py",
        "0.5 * d_c * c * (1 - t_f * t_f),",
        "0.5 * d_c * c,",
        _in("fused", "values_and_gradients_are_those_of_the_plain_scan[lstm-3-m]"),
    ),
    Fault(
        "GRU's carry without its update gate",
        "tbptt_jax/cells.py",
        "return (d * z,), jnp.concatenate",
        "return (d,), jnp.concatenate",
        _in("fused", "values_and_gradients_are_those_of_the_plain_scan[gru-3-m]"),
    ),
    Fault(
        "held carry sends no gradient back",
        "tbptt_jax/fused.py",
        "d_before = _add(d_before, select(mask, nothing, d_after))",
        "d_before = _add(d_before, nothing)",
        _in("fused", "values_and_gradients_are_those_of_the_plain_scan[lstm-3-m]"),
    ),
    Fault(
        "credit crosses a reset",
        "tbptt_jax/fused.py",
        "d_before = select(reset, nothing, d_before)",
        "d_before = select(reset, d_before, d_before)",
        _in("fused", "values_and_gradients_are_those_of_the_plain_scan[lstm-32-r]"),
    ),
    Fault(
        "gates are read from the first step",
        "tbptt_jax/fused.py",
        "opened = _at(kept, j)",
        "opened = _at(kept, 0 * j)",
        _in("fused", "values_and_gradients_are_those_of_the_plain_scan[gru-3-m]"),
    ),
    # Evaluation, data, checkpoints.
    Fault(
        "evaluation begins with the training carry",
        "tbptt_jax/evaluation.py",
        "functions, state.params, carry, batch)",
        "functions, state.params, state.carry if carry is None else carry, batch)",
        _in("train", "evaluate_and_predict_are_the_oracles_forward_numbers[mw]"),
    ),
    Fault(
        "lanes lose the last step of a piece",
        "tbptt_jax/data/pieces.py",
        "x[:, start : start + steps]",
        "x[:, start : start + steps - 1]",
        _in("data", "naive_split", "pieces_hold_every_step_of_ragged_sequences"),
    ),
    Fault(
        "pieces go on from another sequence",
        "tbptt_jax/data/pieces.py",
        "reset[:, 0] = True\n\n",
        "reset[:, 0] = False\n\n",
        _in("data", "pieces_hold_every_step_of_ragged_sequences"),
    ),
    Fault(
        "last loss one step early",
        "tbptt_jax/data/sequences.py",
        "length - 1 - mask[:, ::-1].argmax(axis=1)",
        "length - 2 - mask[:, ::-1].argmax(axis=1)",
        _in("data", "labels_are_repeated_and_losses_marked"),
    ),
    Fault(
        "arrays of a checkpoint are not checked",
        "tbptt_jax/record.py",
        'if _sha256(array.tobytes()) != about["sha256"]:',
        'if len(about["sha256"]) != 64:',
        _in("properties", "a_changed_byte_of_an_array_is_noticed"),
    ),
)


def copy(folder: pathlib.Path) -> None:
    """What is tested and its tests, into an empty folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)


def run(folder: pathlib.Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """The tests, on the code of the folder."""
    # Without -m the installed package would be tested. A file that is changed and changed back
    # within a second has the time and size that its compiled code is known by.
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def try_fault(folder: pathlib.Path, fault: Fault) -> Outcome:
    """Run a fault's tests with the fault in the folder's code, and take it out again."""
    path = folder / fault.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
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
        done = run(folder, dict.fromkeys(test for fault in faults for test in fault.tests))
        if done.returncode:
            raise RuntimeError(f"the tests fail without a fault\n{done.stdout}{done.stderr}")
        return {fault.name: try_fault(folder, fault) for fault in tqdm(faults, disable=None)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="parts of names of faults; none: all faults")
    names = parser.parse_args().names
    chosen = [f for f in FAULTS if not names or any(name in f.name for name in names)]
    if not chosen:
        parser.error(f"no fault is called so; there are: {', '.join(f.name for f in FAULTS)}")
    outcomes = try_all(chosen)
    width = max(len(fault.name) for fault in chosen)
    for fault in chosen:
        caught_by, seconds = outcomes[fault.name]
        said = caught_by or "NOTHING"
        print(f"{fault.name:{width}} | {fault.file:27} | {said} | {seconds:.1f} s")
    survived = sum(outcome.caught_by is None for outcome in outcomes.values())
    print(f"{len(chosen) - survived} of {len(chosen)} faults are caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
