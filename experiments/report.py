"""How do these runs compare?

python -m experiments.report runs/sentiment-TIME runs/sentiment-OTHER --output=report.html

One self-contained HTML page about one run or several: results and flags side by side, what they
learned pass by pass, every figure, and the words that received gradient.
"""

import base64
import dataclasses
import html
import io
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import command, figures, files
from experiments.config import Options, flag
from experiments.figures import Curve, Panel
from experiments.files import DataError, stop
from experiments.run import CONFIG, METRICS, RESULT

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: right;
  white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.differs td { background: #fff4d6 }
figure { margin: 1rem 0 } figcaption { color: #666; font-size: 90% }
img { max-width: 100%; height: auto }
.words { line-height: 2 } .words span { padding: .1rem .15rem; border-radius: .2rem }
"""
# Nothing is loaded and nothing is run, whatever the folders hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
ROW = {"epoch": int, "train_loss": float, "valid_score": float}  # of a history, at least


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Where the page goes."""

    NAME = "report"

    output: str = flag("runs/report.html", "The page's file.", 1)


class Run(NamedTuple):
    """What a run's folder holds; empty where it does not.

    Attributes:
      path: the folder.
      config, result: config.json and result.json.
      histories: for each training, its rows by network.
      figures: PNG by name.
    """

    path: pathlib.Path
    config: dict[str, Any]
    result: dict[str, Any]
    histories: dict[str, list[list[dict[str, Any]]]]
    figures: dict[str, bytes]


def read(path: pathlib.Path) -> Run:
    """Read a run's folder.

    Raises:
      DataError: it holds no run, or a file that cannot be read.
    """
    if not (path / CONFIG).exists():
        raise DataError(f"{path} holds no run (no {CONFIG}); give the folder of a run")
    config = files.read_json(path / CONFIG, dict)
    result = files.read_json(path / RESULT, dict) if (path / RESULT).exists() else {}
    histories: dict[str, list[list[dict[str, Any]]]] = {}
    if (path / METRICS).exists():
        histories[path.name] = [files.read_rows(path / METRICS, ROW)]
    for row in _rows(result.get("results")):
        if files.fits(row, {"technique": str, "histories": list[list[ROW]]}):
            networks = row["histories"]
            if len({len(rows) for rows in networks}) == 1:
                histories[row["technique"]] = networks
    figures = {p.name: files.read(p) for p in sorted(path.glob("*.png"))}
    return Run(path, config, result, histories, figures)


def _rows(content: Any) -> list[dict[str, Any]]:
    """The objects of a list of objects; otherwise none."""
    return content if files.fits(content, list[dict]) else []


def cell(value: Any) -> str:
    """A value as a table shows it: numbers shortened, several as their mean and range."""
    if _is_numbers(value):
        mean, ends = statistics.fmean(value), f" ({cell(min(value))} to {cell(max(value))})"
        return cell(mean) + ends * (len(value) > 1)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def _is_numbers(value: Any) -> bool:
    """Whether this is a list of numbers."""
    return isinstance(value, list) and bool(value) and files.fits(value, list[float])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], marked: Iterable[bool] = ()) -> str:
    """An HTML table; marked rows stand out."""
    marks = [*marked]
    lines = [f"<tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>"]
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell(value))}</td>" for value in row)
        lines.append(f"<tr{' class=differs' if marks[i : i + 1] == [True] else ''}>{cells}</tr>")
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def side_by_side(runs: Sequence[Run], contents: Sequence[Mapping[str, Any]]) -> str:
    """What each run's mapping holds, a column for each run; rows that differ stand out."""
    names = list(dict.fromkeys(name for content in contents for name in content))
    rows = [[name, *(content.get(name) for content in contents)] for name in names]
    marks = [any(value != row[1] for value in row[2:]) for row in rows]
    return table(["", *(run.path.name for run in runs)], rows, marks)


def scalars(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are one value each; those of objects under their names."""
    found = {}
    for name, value in content.items():
        if isinstance(value, dict) and all(not isinstance(v, dict | list) for v in value.values()):
            found |= {f"{name}: {key}": v for key, v in value.items()}
        elif not isinstance(value, dict | list):
            found[name] = value
    return found


def rows_of_result(run: Run) -> str:
    """A table for each list of objects in a result, of their entries that fit into a cell."""
    parts = []
    for name, content in run.result.items():
        if rows := _rows(content):
            first = rows[0].items()
            kept = [k for k, v in first if not isinstance(v, dict | list) or _is_numbers(v)]
            lines = ([row.get(key) for key in kept] for row in rows)
            parts.append(f"<h3>{html.escape(name)}</h3>{table(kept, lines)}")
    return "".join(parts)


def _are_norms(content: Any, count: int) -> bool:
    """Whether these are so many norms."""
    return (
        files.fits(content, list[float])
        and len(content) == count
        and all(0 <= norm < math.inf for norm in content)
    )


def words(content: Any) -> str:
    """The words of a text, shaded by the gradient that each received, once for each plan."""
    if not files.fits(content, {"words": list[str], "norms": dict}):
        return ""
    parts = []
    for name, norms in content["norms"].items():
        if not _are_norms(norms, len(content["words"])):
            continue
        largest = max(norms, default=0) or 1
        shaded = " ".join(
            f'<span style="background: rgb(8 81 156 / {0.75 * (norm / largest) ** 0.5:.2f})'
            f'{"; color: #999" if not norm else ""}" title="{norm:.2e}">{html.escape(word)}</span>'
            for word, norm in zip(content["words"], norms, strict=True)
        )
        parts.append(f"<h3>{html.escape(name)}</h3><p class=words>{shaded}</p>")
    note = "Darker: a larger gradient of the word's embedding. Grey: none. Hover for its norm."
    return f"<h2>Words with gradient</h2><p>{note}</p>{''.join(parts)}"


def curves(runs: Sequence[Run]) -> str:
    """Loss and score pass by pass, of every training of every run, as SVG."""
    trainings = {}
    for run in runs:
        for name, networks in run.histories.items():
            of_run = len(runs) == 1 or name == run.path.name
            trainings[name if of_run else f"{run.path.name}: {name}"] = networks
    if not trainings:
        return ""
    panels = []
    for key, what in (("train_loss", "training loss"), ("valid_score", "validation score")):
        lines = [
            Curve(
                name,
                [row["epoch"] for row in networks[0]],
                [[row[key] for row in n] for n in networks],
            )
            for name, networks in trainings.items()
        ]
        panels.append(Panel("passes over the data", what, lines))
    file = io.BytesIO()
    figures.curves(panels, size=(10, 4)).savefig(file, format="svg")
    return f"<h2>Pass by pass</h2>{_image(file.getvalue(), 'svg+xml', 'loss and score')}"


def _image(content: bytes, kind: str, name: str) -> str:
    """An image inside the page."""
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{html.escape(name)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
    )


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    title = ", ".join(run.path.name for run in runs)
    parts = ["<h2>Results</h2>", side_by_side(runs, [scalars(run.result) for run in runs])]
    parts.append(curves(runs))
    for run in runs:
        parts.append(f"<h2>{html.escape(run.path.name)}</h2>{rows_of_result(run)}")
        parts += [_image(content, "png", name) for name, content in run.figures.items()]
        parts.append(words(run.result.get("by_word")))
    parts += ["<h2>Flags</h2>", side_by_side(runs, [scalars(run.config) for run in runs])]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def main(config: Config, folders: Sequence[str]) -> None:
    """Write the page."""
    if not folders:
        stop("RUN: expected the folder of at least one run, got none")
    runs = [read(pathlib.Path(folder)) for folder in folders]
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: file.write(page(runs).encode()))
    print(f"saved {path}, {path.stat().st_size / 2**10:,.0f} KiB; open it in a browser")


if __name__ == "__main__":
    command.run(Config, main, positional=True)
