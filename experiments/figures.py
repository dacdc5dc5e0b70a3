"""Tables and figures in one style. What they show is computed elsewhere, as plain numbers."""

import itertools
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # Matplotlib is slow to import: that happens where something is drawn.
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Values: TypeAlias = Sequence[float] | np.ndarray
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "legend.fontsize": 8,
}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
# A curve has the colour and marker of the first of these words that its name contains: a scheme
# looks the same in every figure.
SCHEMES = {
    "each on its own": ("#CC79A7", "s"),
    "from each loss": ("#009E73", "D"),
    "full BPTT, loss every": ("#8C564B", "<"),
    "full BPTT": ("#332288", "^"),
    "TBPTT(1, 1)": ("#D55E00", "v"),
    "TBPTT(1, ": ("#56B4E9", "p"),
    "loss every": ("#0072B2", "o"),
    "loss at the end": ("#E69F00", "X"),
    "from the end": ("#E69F00", "X"),
    "k2 = ": ("#E69F00", "X"),
    "carry kept": ("#0072B2", "o"),
    "TBPTT(": ("#0072B2", "o"),
}
OTHERS = [("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "v"), ("#0072B2", "o")]
ACCENT, POINTS = "#D55E00", 10  # of lines that stand out; the most markers on a curve
BAND, BEYOND = "#CFE3F1", "0.92"  # of a confidence band; of what no gradient reaches, and only that
# What a mark in a heat map says, its marker and its area.
MARKS = {
    "best on validation": ("*", 60),
    "no worse than the star on test (95%)": ("o", 14),
    "better than the star on test (95%)": ("^", 20),
}


class Curve(NamedTuple):
    """Values y [N] over x [N], or [M, N] of M networks: their mean, with the range around it."""

    name: str
    x: Values
    y: ArrayLike
    line: bool = True  # False: markers only


class Panel(NamedTuple):
    """A pair of axes, and what they show."""

    x: str  # with units, as y
    y: str
    curves: Sequence[Curve]
    title: str = ""
    log: str = ""  # "x", "y" or "xy": logarithmic axes
    percent: bool = False  # y is a share, and its ticks are percentages
    limits: tuple[float, float] | None = None  # of y
    ticks: Mapping[float, str] | None = None  # places and labels, of x
    bars: Any = None  # x and y, [2, N]; the curves are then bands, y [2, N], behind the bars
    lines: Mapping[str, float] = {}  # names and places of vertical lines
    levels: Mapping[str, float] = {}  # of horizontal ones
    beyond: tuple[float, float, str] | None = None  # a range of x that no gradient reaches
    from_zero: bool = False  # x starts at 0


class HeatMap(NamedTuple):
    """A matrix as colours; NaN is left white."""

    title: str
    values: np.ndarray
    x: str
    y: str
    columns: Mapping[int, str]  # places and labels of ticks
    rows: Mapping[int, str]
    texts: Any = ()  # [rows, columns], in the cells
    marks: Sequence[tuple[int, int, str]] = ()  # row, column and one of MARKS
    colours: str = ""  # what the bar of colours shows; with it, each row of maps has one
    rules: Sequence[int] = ()  # rows above which a line is drawn


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as text, numbers to the right; also valid Markdown.

    For a terminal that is too narrow it is several tables below each other, each with the first
    column.
    """
    cells = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    parts: list[list[int]] = [[]]
    for column, width in enumerate(widths[1:], 1):
        used = widths[0] + 4 + sum(widths[i] + 3 for i in parts[-1])
        if parts[-1] and used + width + 3 > room:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(_table([[row[i] for i in (0, *part)] for row in cells]) for part in parts)


def mean_and_range(values: Values, write: Callable[[float], str]) -> str:
    """A cell of a table: the mean, and the range where there are several values."""
    text = write(statistics.fmean(values))
    return text if len(values) == 1 else f"{text} ({write(min(values))} to {write(max(values))})"


def _table(cells: Sequence[Sequence[str]]) -> str:
    """A table of text, its first row the head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    lines = []
    for first, *others in cells:
        numbers = (c.rjust(w) for c, w in zip(others, widths[1:], strict=True))
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *numbers])} |")
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def axes(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, np.ndarray]":
    """A figure that needs no screen, of a size in inches, and its axes, [rows, columns]."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    figure = Figure(size, dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def looks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """The colour, the marker and the dashes of each curve; equal colours have other dashes."""
    found: dict[str, tuple[str, str, str]] = {}
    others = itertools.cycle(OTHERS)
    for name in dict.fromkeys(names):
        known = (look for words, look in SCHEMES.items() if words in name)
        colour, marker = next(known, None) or next(others)
        dashes = ("-", "--", ":", "-.")[sum(look[0] == colour for look in found.values()) % 4]
        found[name] = colour, marker, dashes
    return found


def curves(panels: Sequence[Panel], title: str = "", rows: int = 1, size=(8.0, 3.4)) -> "Figure":
    """The panels in so many rows, and one legend below them; the size is in inches."""
    figure, places = axes(rows, -(-len(panels) // rows), size)
    for ax in places.flat[len(panels) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    styles = looks(curve.name for panel in panels for curve in panel.curves)
    for ax, panel in zip(places.flat, panels, strict=False):
        _draw(ax, panel, styles)
        drawn, names = ax.get_legend_handles_labels()
        handles |= dict(zip(names, drawn, strict=True))
    figure.suptitle(title)
    if len(handles) > 1:
        columns = max(1, int(15 * size[0] / (8 + max(map(len, handles)))))
        where = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        figure.legend(handles.values(), handles.keys(), **where)
    return figure


def _draw(ax: "Axes", panel: Panel, styles: Mapping[str, tuple[str, str, str]]) -> None:
    """Draw a panel; a curve of one name looks the same in all of a figure."""
    from matplotlib import ticker

    for i, curve in enumerate(panel.curves):
        (colour, marker, dashes), values = styles[curve.name], np.atleast_2d(curve.y)
        if panel.bars is not None:
            ax.fill_between(curve.x, *values, color=BAND, lw=0, label=curve.name)
            continue
        # Curves that lie on each other show their markers in turn.
        every = math.ceil(len(curve.x) / POINTS)
        (line,) = ax.plot(curve.x, values.mean(0), dashes, color=colour, label=curve.name, lw=1.2)
        line.set(marker=marker, ms=3.5, markevery=(i * every // len(panel.curves), every))
        if not curve.line:
            line.set(linestyle="", ms=7, zorder=3)
            ax.vlines(curve.x, values.min(0), values.max(0), color=colour, lw=1.2)
        elif len(values) > 1:
            ax.fill_between(curve.x, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    if panel.bars is not None:
        ax.vlines(panel.bars[0], 0, panel.bars[1], color="#0072B2", lw=0.8)
    for name, x in panel.lines.items():
        ax.axvline(x, color=ACCENT, linestyle="--", lw=1)
        near = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        ax.annotate(name, (x, 1), (3, 0), color=ACCENT, **near)
    for name, y in panel.levels.items():
        ax.axhline(y, color="k", linestyle=":", lw=0.8, zorder=0)
        right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        ax.annotate(name, (1, y), **right)
    if panel.beyond is not None:
        ax.axvspan(*panel.beyond[:2], color=BEYOND, lw=0, zorder=0, label=panel.beyond[2])
    ax.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
    for name in panel.log:
        ax.set(**{f"{name}scale": "log"})
        _write_plainly(getattr(ax, f"{name}axis"))
    if panel.from_zero:
        ax.set_xlim(left=0)
    if panel.limits is not None:
        ax.set_ylim(panel.limits)
    if panel.percent:
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    if not panel.log and all(np.asarray(c.x).dtype.kind == "i" for c in panel.curves):
        ax.locator_params("x", integer=True)
    if panel.ticks is not None:
        turned = 90 if max(map(len, panel.ticks.values())) > 4 else 0
        ax.set_xticks(list(panel.ticks), list(panel.ticks.values()), rotation=turned)
        ax.minorticks_off()


def _write_plainly(axis: "Axis") -> None:
    """Ticks of a logarithmic axis as numbers, 1 in place of 10^0; between the decades few."""
    from matplotlib import ticker

    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    low, high = axis.get_view_interval()
    if high / low < 100:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))


def heat_maps(
    maps: Sequence[Sequence[HeatMap]], scales: Sequence[str], title: str, size: tuple[float, float]
) -> "Figure":
    """Matrices in rows and columns.

    A row's scale says what its colours mean: "share", 0 is white and 1 blue, and the first row
    stands above; "high" or "low", such values are lighter, low ones on a logarithmic scale.
    """
    from matplotlib import cm, colormaps, colors

    figure, places = axes(len(maps), len(maps[0]), size)
    handles: dict[str, Any] = {}
    for row, scale, line in zip(maps, scales, places, strict=True):
        finite = np.concatenate([one.values[np.isfinite(one.values)] for one in row])
        ends = (0, 1) if scale == "share" else (finite.min(initial=1e9), finite.max(initial=1e-9))
        norm = (colors.LogNorm if scale == "low" else colors.Normalize)(*ends)
        paint = colormaps[{"share": "Blues", "high": "viridis", "low": "viridis_r"}[scale]]
        for ax, one in zip(line, row, strict=True):
            colour = paint(norm(np.ma.masked_invalid(one.values)))
            ax.imshow(colour, origin="upper" if scale == "share" else "lower", aspect="auto")
            for (y, x), text in np.ndenumerate(one.texts):
                ink = "w" if colour[y, x, 3] and colour[y, x, :3].mean() < 0.45 else "k"
                ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
            for y, x, name in one.marks:
                marker, area = MARKS[name]
                look = {"marker": marker, "s": area, "edgecolor": "w", "linewidth": 0.5}
                handles[name] = ax.scatter(x + 0.36, y + 0.32, color=ACCENT, **look)
            for y in one.rules:
                ax.axhline(y - 0.5, color=ACCENT, linewidth=0.9)
            ax.set(title=one.title, xlabel=one.x, ylabel=one.y)
            ax.set_xticks(list(one.columns), list(one.columns.values()))
            ax.set_yticks(list(one.rows), list(one.rows.values()))
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        if row[0].colours:
            bar = figure.colorbar(cm.ScalarMappable(norm, paint), ax=list(line), aspect=15)
            bar.set_label(row[0].colours)
            ticks = (np.geomspace if scale == "low" else np.linspace)(*ends, 4).tolist()
            bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks], minor=False)
            bar.ax.minorticks_off()
    figure.suptitle(title)
    if handles:
        names = [name for name in MARKS if name in handles]
        where = {"loc": "outside lower center", "ncols": len(names), "frameon": False}
        figure.legend([handles[name] for name in names], names, **where)
    return figure


def shaded_words(words: Sequence[str], values: Mapping[str, np.ndarray]) -> "Figure":
    """A text once for each entry of values, each word shaded by its own, and a key below.

    A shade is a share of the largest value of the entry; a word of value 0 is grey on white.
    """
    places, row, column, width = [], 0, 0, 100
    for word in words:
        if column + len(word) > width:
            row, column = row + 1, 0
        places.append((column, row + 0.5))
        column += len(word) + 1
    lines = len(values) * (row + 2.6)
    figure, grid = axes(len(values) + 1, 1, (7.5, 0.5 + 0.2 * lines))
    for ax, (name, sizes) in zip(grid.flat, values.items(), strict=False):
        ax.set(xlim=(0, width), ylim=(row + 1, 0))
        ax.set_title(name, loc="left", fontweight="bold")
        _shade(ax, words, places, sizes / (sizes.max() or 1))
    key, shares = grid[-1, 0], np.array([0, 0.01, 0.1, 0.5, 1])
    key.set(xlim=(0, width), ylim=(1, 0))
    names = ["no gradient", "1%", "10%", "50%", "100% of the largest norm in the text"]
    _shade(key, names, [(x, 0.5) for x in (0, 14, 20, 26, 32)], shares)
    for ax in grid.flat:
        ax.axis("off")
    heights = [row + 2.6] * len(values) + [1.5]
    grid[0, 0].get_gridspec().set_height_ratios(heights)
    return figure


def _shade(
    ax: "Axes", words: Sequence[str], places: Sequence[tuple[float, float]], shares: np.ndarray
) -> None:
    """Write words at their places, shaded by shares from 0 to 1."""
    from matplotlib import colormaps

    shades = colormaps["Blues"](0.1 + 0.5 * np.sqrt(shares))
    for word, place, share, shade in zip(words, places, shares, shades, strict=True):
        box = {"facecolor": shade if share else "w", "edgecolor": "none", "pad": 1}
        font = {"family": "monospace", "fontsize": 8.5, "color": "k" if share else "0.6"}
        ax.text(*place, word, va="center", bbox=box, **font)
