"""Kill a training again and again, and see that it ends with the bits of one that was left alone.

python -m tests.kills --kills=50

Each life of the process is ended by SIGKILL, every second one while a checkpoint is being written;
the next goes on with --resume. What is compared: every array of the last checkpoint (parameters,
optimizer, keys, carry, lookback, averages) by its digest, the parameters that are kept, the rows of
all epochs and the result, without times.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tests.command_line import ROOT, command

# A stream, its carry running on between batches, with a window that begins before its batch.
STREAM = (
    "experiments.char_lm",
    "--k1=10",
    "--k2=25",
    "--hidden=8",
    "--characters=30000",
    "--piece=20",
    "--epochs=3",
)


class Kills(NamedTuple):
    """How often a training was killed, and how often a checkpoint was being written then."""

    all: int
    while_saving: int


def kill_and_resume(
    arguments: tuple[str, ...], folder: pathlib.Path, kills: int, seed: int
) -> Kills:
    """Begin a run, kill it `kills` times, and let it end; fewer times if it ends before."""
    rng = random.Random(seed)
    module, *flags = arguments
    begin = command(module, *flags, f"--output_dir={folder}", "--checkpoint_every=0")
    resume = command(module, f"--output_dir={folder}", "--resume")
    checkpoints, count, saving = folder / "checkpoints" / "training", 0, 0
    for i in tqdm(range(kills), desc="kills"):
        before = newest(checkpoints)
        process = start(resume if i else begin)
        while process.poll() is None and newest(checkpoints) <= before:
            time.sleep(0.002)
        if i % 2:
            while process.poll() is None and not being_written(checkpoints):
                pass
        else:
            time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        count, saving = count + 1, saving + being_written(checkpoints)
    process = start(resume)
    printed, errors = process.communicate()
    assert process.returncode == 0, printed + errors
    return Kills(count, saving)


def start(line: list[str]) -> subprocess.Popen[str]:
    """A process that says nothing here."""
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def newest(checkpoints: pathlib.Path) -> int:
    """The number of the newest checkpoint that is whole; -1: there is none."""
    return max((int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()), default=-1)


def being_written(checkpoints: pathlib.Path) -> bool:
    """Whether there is half a checkpoint."""
    return any(checkpoints.glob("*.orbax-checkpoint-tmp"))


def bits(folder: pathlib.Path) -> dict[str, Any]:
    """All that a run came to, without times."""
    checkpoints = folder / "checkpoints" / "training"
    record = json.loads(
        (checkpoints / str(newest(checkpoints)) / "record" / "metadata").read_text()
    )
    progress = {k: v for k, v in record["progress"].items() if k not in TIMES}
    progress["history"] = [without_times(row) for row in progress["history"]]
    with np.load(folder / "params.npz", allow_pickle=False) as params:
        kept = {name: params[name].tobytes() for name in params}
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "arrays": {about["name"]: about["sha256"] for about in record["arrays"].values()},
        "progress": progress,
        "params": kept,
        "rows": [without_times(json.loads(row)) for row in rows],
        "result": without_times(json.loads((folder / "result.json").read_text())),
    }


TIMES = {"seconds", "first_seconds", "first_updates"}


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row but for what a clock says."""
    return {name: value for name, value in row.items() if name not in TIMES}


def main() -> None:
    """Kill, compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        whole, killed = pathlib.Path(root, "whole"), pathlib.Path(root, "killed")
        module, *flags = STREAM
        subprocess.run(command(module, *flags, f"--output_dir={whole}"), cwd=ROOT, check=True)
        found = kill_and_resume(STREAM, killed, asked.kills, asked.seed)
        same = bits(whole) == bits(killed)
        print(
            f"killed {found.all} times, {found.while_saving} of them while a checkpoint was being "
            f"written: {'the same bits' if same else 'OTHER BITS'}"
        )
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
