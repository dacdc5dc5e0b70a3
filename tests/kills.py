"""Kill a run again and again, and see that it ends with the bits of one that was left alone.

python -m tests.kills --kills=50
python -m tests.kills --kills=5 experiments.naive --task=digits --fast

Each life of the process is ended by SIGKILL, every second one while a checkpoint is being written;
the next resumes. What is compared: every array of the last checkpoints (parameters,
optimizer, keys, carry, lookback, averages) by its digest, the saved parameters, all rows
and the result, without what a clock says.
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

from tests.command_line import command, start

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
    count = saving = 0
    for i in tqdm(range(kills), desc="kills"):
        before = saved(folder)
        process = start(resume(arguments, folder) if i else begin(arguments, folder))
        while process.poll() is None and saved(folder) == before:
            time.sleep(0.002)
        if i % 2:
            while process.poll() is None and not being_written(folder):
                pass
        else:
            time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        printed, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, printed + errors
        count, saving = count + 1, saving + being_written(folder)
    finish(start(resume(arguments, folder)))
    return Kills(count, saving)


def begin(arguments: tuple[str, ...], folder: pathlib.Path) -> list[str]:
    """The command line of a run that is saved after every batch."""
    return command(*arguments, f"--output_dir={folder}", "--checkpoint_every=0")


def resume(arguments: tuple[str, ...], folder: pathlib.Path) -> list[str]:
    """The command line that resumes it."""
    return command(arguments[0], f"--output_dir={folder}", "--resume")


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end, which must be a good one."""
    printed, errors = process.communicate()
    assert process.returncode == 0, printed + errors


def saved(folder: pathlib.Path) -> list[str]:
    """The checkpoints that are whole."""
    return sorted(str(p) for p in folder.glob("checkpoints/*/*") if p.name.isdigit())


def being_written(folder: pathlib.Path) -> bool:
    """Whether there is half a checkpoint."""
    return any(folder.glob("checkpoints/*/*.orbax-checkpoint-tmp"))


def bits(folder: pathlib.Path) -> dict[str, Any]:
    """All that a run came to, without what a clock says."""
    found: dict[str, Any] = {}
    for training in sorted(folder.glob("checkpoints/*")):
        newest = max(int(p.name) for p in training.glob("*") if p.name.isdigit())
        record = json.loads((training / str(newest) / "record" / "metadata").read_text())
        arrays = {about["name"]: about["sha256"] for about in record["arrays"].values()}
        found[training.name] = arrays, timeless(record["progress"])
    for path in folder.glob("*.jsonl"):
        found[path.name] = [timeless(json.loads(row)) for row in path.read_text().splitlines()]
    if (folder / "params.npz").exists():
        with np.load(folder / "params.npz", allow_pickle=False) as params:
            found["params.npz"] = {name: params[name].tobytes() for name in params}
    found["result.json"] = timeless(json.loads((folder / "result.json").read_text()))
    return found


def timeless(content: Any) -> Any:
    """JSON without what a clock says; first_updates are those of calls that compiled."""
    if isinstance(content, list):
        return [timeless(item) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        name: timeless(value)
        for name, value in content.items()
        if not ("seconds" in name or "second" in name.split("_") or name == "first_updates")
    }


def main() -> None:
    """Kill, compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked, run = parser.parse_known_args()
    run = tuple(run or STREAM)
    with tempfile.TemporaryDirectory() as root:
        whole, killed = pathlib.Path(root, "whole"), pathlib.Path(root, "killed")
        finish(start(begin(run, whole)))
        found = kill_and_resume(run, killed, asked.kills, asked.seed)
        same = bits(whole) == bits(killed)
        print(
            f"{run[0]}: killed {found.all} times, {found.while_saving} of them while a checkpoint "
            f"was being written: {'the same bits' if same else 'OTHER BITS'}"
        )
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
