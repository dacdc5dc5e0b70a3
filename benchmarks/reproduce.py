"""Measure every table and figure of the documentation at one commit, and write them.

python -m benchmarks.reproduce            run what has not been run at this commit, then write
python -m benchmarks.reproduce --list     only say what would be run, and for how long
python -m benchmarks.reproduce --norun    only write what has finished at this commit

It resumes: what has finished at this commit is not run again, and an experiment that was stopped
continues where it was. Tables go between `<!-- measured: NAME -->` and `<!-- end -->` in README.md,
docs/ and experiments/README.md, figures to docs/figures. Commit the result by itself.
"""

import contextlib
import datetime
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from absl import app, flags

from experiments import figures, files
from experiments.files import stop
from experiments.run import slug

ROOT = pathlib.Path(__file__).parent.parent
MINUTES = "minutes.json"
SEEDS = (0, 1, 2)
SENTIMENT = {
    "loss after every 30 words": ("--k1=30", "--k2=30"),
    "loss at the end only": ("--k1=30", "--k2=30", "--loss_at=end"),
    "loss at the end only, full BPTT": ("--k1=420", "--k2=420", "--loss_at=end"),
}


class Job(NamedTuple):
    """A command to run.

    Attributes:
      line: the module and its arguments.
      figures: which of its figures go to docs/figures, and under what name.
      output: the flag that names its folder.
    """

    line: tuple[str, ...]
    figures: Mapping[str, str] = {}
    output: str = "--output_dir={}"

    @property
    def command(self) -> str:
        """What to type."""
        return shlex.join(["python", "-m", *self.line])


def compared(module: str, task: str, **figures: str) -> Job:
    """A comparison of techniques, three networks of each kind.

    The digits are the small ones, with ten passes; reviews and the book have one pass.
    """
    less = {"digits": ("--fast",), "book": ("--epochs=1",), "reviews": ("--epochs=1",)}
    line = f"experiments.{module}", f"--task={task}", *less.get(task, ()), f"--seeds={len(SEEDS)}"
    return Job(line, figures)


JOBS: dict[str, Job] = {
    "credit_matrices": Job(
        ("experiments.credit_matrices",),
        {"credit_matrices.png": "credit_matrices.png"},
        "--output={}/credit_matrices.png",
    ),
    **{
        f"sentiment, {name}, seed {seed}": Job(
            ("experiments.sentiment", *options, f"--seed={seed}")
        )
        for name, options in SENTIMENT.items()
        for seed in SEEDS
    },
    "tfidf": Job(("benchmarks.tfidf",), output=""),
    "credit": Job(
        ("experiments.credit",),
        {name: name for name in ("credit_by_lag.png", "bias.png", "words.png")},
    ),
    "presence_of_one": Job(
        ("experiments.presence_of_one",), {"presence_of_one.png": "presence_of_one.png"}
    ),
    "first_words": Job(
        ("experiments.first_words",),
        {"by_length.png": "first_words.png", "reviews.png": "first_words_reviews.png"},
    ),
    "naive, demand": compared("naive", "demand", **{"comparison.png": "comparison.png"}),
    "domain_split, demand": compared("domain_split", "demand"),
    "domain_split, sunspots": compared(
        "domain_split",
        "sunspots",
        **{"suggestion.png": "suggestion.png", "domain_split.png": "domain_split.png"},
    ),
    "naive, sunspots": compared("naive", "sunspots"),
    **{
        f"{module}, {task}": compared(module, task)
        for task in ("demand", "sunspots", "digits", "book", "reviews")
        for module in ("tbptt_1_1", "full_bptt")
    },
    **{f"naive, {task}": compared("naive", task) for task in ("digits", "book", "reviews")},
    "domain_split, reviews": compared("domain_split", "reviews"),
    **{
        f"char_lm, seed {seed}": Job(
            ("experiments.char_lm", f"--seed={seed}"),
            {} if seed else {"learning_curve.png": "char_lm.png"},
        )
        for seed in SEEDS
    },
    **{
        f"grid_search, {task}": Job(
            ("experiments.grid_search", f"--task={task}"),
            {"plane.png": "plane.png"} if task == "sunspots" else {},
        )
        for task in ("sunspots", "demand")
    },
}


class Measured(NamedTuple):
    """What a job left.

    Attributes:
      job: the job.
      text: what it printed.
      folder: of its run.
    """

    job: Job
    text: str
    folder: pathlib.Path

    def result(self) -> dict:
        """Its result.json."""
        return files.read_json(self.folder / "result.json", dict)


def tables(text: str) -> list[str]:
    """The Markdown tables in what a command printed."""
    return [found.strip() for found in re.findall(r"(?:^\|.*\n)+", text + "\n", re.M)]


def git(*words: str) -> str:
    """What git answers in this repository."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def place(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder of a job's run; what it printed stands beside it, in a .txt."""
    return folder / slug(name)


def finished(name: str, job: Job, folder: pathlib.Path) -> Measured | None:
    """What a job left when it ran to its end at this commit; None: it did not."""
    run_folder = place(name, folder)
    printed = run_folder.with_suffix(".txt")
    if not printed.exists():
        return None
    return Measured(job, printed.read_text(encoding="utf-8"), run_folder)


def run(name: str, job: Job, folder: pathlib.Path) -> Measured:
    """Run a job to its end, and keep what it prints."""
    run_folder = place(name, folder)
    line = [sys.executable, "-m", *job.line]
    line += [job.output.format(run_folder)] * bool(job.output)
    line += ["--resume"] * (run_folder / "config.json").exists()
    started = time.monotonic()
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    minutes = {**read_minutes(folder), name: round((time.monotonic() - started) / 60, 1)}
    files.write(folder / MINUTES, lambda file: file.write(as_json(minutes)))
    files.write(run_folder.with_suffix(".txt"), lambda file: file.write(done.stdout.encode()))
    return Measured(job, done.stdout, run_folder)


def read_minutes(folder: pathlib.Path) -> dict[str, float]:
    """How long each job took when it was last run; of one that was resumed, the last part."""
    path = folder / MINUTES
    return files.read_json(path, dict) if path.exists() else {}


def as_json(content: dict) -> bytes:
    """JSON that reads well in a diff."""
    return (json.dumps(content, indent=2) + "\n").encode()


def sentiment(found: Mapping[str, Measured]) -> str:
    """Test accuracy of each way to train on reviews, mean and range of the seeds; and TF-IDF's."""
    rows = []
    for name, options in SENTIMENT.items():
        results = [found[f"sentiment, {name}, seed {seed}"].result() for seed in SEEDS]
        accuracies = [one["test_accuracy"] for one in results]
        ends = f"{min(accuracies):.2%} to {max(accuracies):.2%}"
        seconds = statistics.median(one["seconds"] for one in results)
        shown = f"`experiments.sentiment {' '.join(options)}`: {name}"
        rows.append([shown, f"{statistics.fmean(accuracies):.2%}", ends, f"{seconds:.0f}"])
    (printed,) = tables(found["tfidf"].text)
    for line in printed.splitlines()[2:]:
        name, _, accuracy, seconds, _ = (cell.strip() for cell in line.strip("|").split("|"))
        shown = f"`benchmarks.tfidf`: TF-IDF of {name}, logistic regression"
        rows.append([shown, accuracy, "", f"{float(seconds):.0f}"])
    return figures.table(["`python -m ...`", "test accuracy", "range", "seconds"], rows)


def char_lm(found: Mapping[str, Measured]) -> str:
    """The counts beside the network, mean and range of the seeds."""
    networks = [found[f"char_lm, seed {seed}"] for seed in SEEDS]
    (printed,) = tables(networks[0].text)
    *rows, (name, _) = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()
    )
    bits = [network.result()["test_bits"] for network in networks]
    head, _, *counts = rows
    return figures.table(head, [*counts, [name, figures.mean_and_range(bits, "{:.3f}".format)]])


def printed(name: str, which: slice = slice(None)) -> Callable[[Mapping[str, Measured]], str]:
    """The tables that a job printed, or some of them."""

    def section(found: Mapping[str, Measured]) -> str:
        return "\n\n".join(tables(found[name].text)[which])

    return section


SECTIONS: dict[str, Callable[[Mapping[str, Measured]], str]] = {
    **{name: printed(name) for name in JOBS if ", seed " not in name and name != "credit_matrices"},
    "sentiment": sentiment,
    "char_lm": char_lm,
    "first_words": printed("first_words", slice(1)),
    "first_words, reviews": printed("first_words", slice(1, None)),
}
MARK = re.compile(r"(<!-- measured: ([^>]+?) -->\n).*?(\n<!-- end -->)", re.S)


def fill(text: str, sections: Mapping[str, str], path: str) -> str:
    """A document with what was measured between its marks; what was not stays as it is."""

    def section(match: re.Match[str]) -> str:
        if match[2] not in SECTIONS:
            stop(f"{path}: nothing is measured under the name {match[2]!r}; take one of JOBS")
        if match[2] not in sections:
            return match[0]
        return f"{match[1]}\n{sections[match[2]]}\n{match[3]}"

    return MARK.sub(section, text)


def documents() -> Iterable[pathlib.Path]:
    """The files that hold what was measured."""
    yield ROOT / "README.md"
    yield ROOT / "experiments" / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def write(found: Mapping[str, Measured], commit: str, minutes: dict[str, float]) -> None:
    """Write the tables, the figures, and how long it took."""
    about = f"\n\nCommit {commit}, {datetime.date.today()}."
    sections = {}
    for name, section in SECTIONS.items():
        with contextlib.suppress(KeyError):  # a job of it has not finished
            sections[name] = section(found) + about
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = fill(before, sections, path.name)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    for one in found.values():
        for source, target in one.job.figures.items():
            (ROOT / "docs" / "figures" / target).write_bytes((one.folder / source).read_bytes())
            print(f"wrote docs/figures/{target}")
    files.write(ROOT / "benchmarks" / MINUTES, lambda file: file.write(as_json(minutes)))


def main(argv: list[str]) -> None:
    """Run what is missing, then write."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    minutes = read_minutes(ROOT / "benchmarks")
    left = sum(minutes.get(name, 0) for name in JOBS)
    print(f"{len(JOBS)} jobs, about {left:.0f} minutes on two CPU cores")
    if flags.FLAGS.list:
        print(
            figures.table(
                ["minutes", "command"], [[minutes.get(n, "?"), j.command] for n, j in JOBS.items()]
            )
        )
        return
    if git("status", "--porcelain", "--untracked-files=no"):
        stop("the working tree has changes; commit them, so that the figures are of one commit")
    commit = git("rev-parse", "--short", "HEAD")
    folder = pathlib.Path(flags.FLAGS.output_dir) / commit
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, (name, job) in enumerate(JOBS.items(), 1):
        one = finished(name, job, folder)
        if one is None and flags.FLAGS.run:
            about = f"about {left:.0f} minutes left"
            print(f"\n{number} of {len(JOBS)}, {about}: {job.command}", flush=True)
            one = run(name, job, folder)
        if one is not None:
            found[name] = one
        left -= minutes.get(name, 0)
    write(found, commit, read_minutes(folder))


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "runs/reproduce", "Folder of the runs.")
    flags.DEFINE_bool("run", True, "Run what has not finished; otherwise only write what has.")
    flags.DEFINE_bool("list", False, "Only list the jobs, and how long each takes.")
    app.run(main)
