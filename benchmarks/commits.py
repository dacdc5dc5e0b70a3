"""This checkout against another one of the same project: is a change slower?

git worktree add ../before COMMIT
python -m benchmarks.commits ../before

The rows of `benchmarks.peers`, our side only. For every row both checkouts have a process each, and
the processes take turns. Ratios are of times within a turn, here over there: above 1, this checkout
is slower by that factor. Each row is measured in several pairs of processes, so that one process's
luck with memory does not decide.
"""

import pathlib
import statistics

from absl import app, flags
from tqdm import tqdm

from benchmarks import peers
from benchmarks.job import Job
from experiments import command, figures
from experiments.run import versions

JOBS: dict[str, tuple[str, Job]] = {
    **{f"windows, {name}": ("ours", job) for name, job in peers.WINDOWS_JOBS.items()},
    **{f"single, {name}": ("ours", job) for name, job in peers.SINGLE_JOBS.items()},
    **{f"lookback, {name}": ("ours", job) for name, job in peers.LOOKBACK_JOBS.items()},
    **{f"30 networks, vmap, {name}": ("ours", job) for name, job in peers.SEEDS_JOBS.items()},
    **{f"30 networks, lax.map, {name}": ("in turn", job) for name, job in peers.SEEDS_JOBS.items()},
    "epoch of sentiment": ("ours", Job(batches=40)),
}


def ratios(side: str, job: Job, folder: str, turns: int) -> tuple[list[float], float]:
    """Of each turn of a pair of processes, here over there; and our milliseconds of a call."""
    here, there = peers.Side(side, job), peers.Side(side, job, folder)
    ours, found = [], []
    for turn in range(turns):
        first, second = (here, there) if turn % 2 else (there, here)
        seconds = {id(one): one.seconds() for one in (first, second)}
        ours.append(seconds[id(here)])
        found.append(seconds[id(here)] / seconds[id(there)])
    here.end()
    there.end()
    return found, 1e3 * statistics.median(ours)


def main(argv: list[str]) -> None:
    """Print the table."""
    (folder,) = argv[1:] or [""]
    if not (pathlib.Path(folder) / "benchmarks" / "sides.py").exists() or not folder:
        raise app.UsageError("expected the folder of another checkout")
    command.start(argv[:1])
    print(" ".join(f"{name} {v}," for name, v in versions().items()))
    rows = []
    chosen = {name: one for name, one in JOBS.items() if flags.FLAGS.rows in name}
    for name, (side, job) in tqdm(chosen.items(), leave=False):
        turns = max(3, flags.FLAGS.turns // 4) if job.batches else flags.FLAGS.turns
        pairs = [ratios(side, job, folder, turns) for _ in range(flags.FLAGS.pairs)]
        middle = [statistics.median(found) for found, _ in pairs]
        milliseconds = statistics.median(ms for _, ms in pairs)
        spread = f"{min(middle):.3f} to {max(middle):.3f}"
        rows.append([name, f"{milliseconds:.3g}", f"{statistics.median(middle):.3f}", spread])
    print(figures.table(["row", "here, ms a call", "here / there", "pairs of processes"], rows))


if __name__ == "__main__":
    flags.DEFINE_string("rows", "", "Only rows whose name contains this.")
    flags.DEFINE_integer("turns", 15, "How many turns each pair has.", lower_bound=1)
    flags.DEFINE_integer("pairs", 3, "How many pairs of processes.", lower_bound=1)
    app.run(main)
