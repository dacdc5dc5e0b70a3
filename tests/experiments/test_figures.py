"""Tables and figures: what is drawn are the numbers that went in."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from matplotlib import colors

from experiments import figures, full_bptt, naive, tbptt_1_1
from experiments.figures import Curve, HeatMap, Panel
from experiments.tasks import TASKS

NETWORKS = [[1.0, 2.0, 4.0], [3.0, 2.0, 8.0]]


def draw(*curves, **options) -> Any:
    """The axes of a panel with these curves."""
    (axes,) = figures.curves([Panel("x (m)", "y (s)", curves, **options)]).axes
    return axes


def test_a_table_is_markdown_with_numbers_to_the_right():
    assert figures.table(["name", "n"], [["a", 10], ["longer", 5]]).splitlines() == [
        "| name   |  n |",
        "|--------|---:|",
        "| a      | 10 |",
        "| longer |  5 |",
    ]


def test_a_cell_of_one_value_has_no_range():
    assert figures.mean_and_range([1.0], "{:.1f}".format) == "1.0"
    assert figures.mean_and_range(np.array([1.0, 4.0, 2.5]), "{:.1f}".format) == "2.5 (1.0 to 4.0)"


def test_a_table_too_wide_for_the_terminal_repeats_its_first_column(monkeypatch):
    head, row = ["name", "first", "second", "third"], ["a", 1, 22, 333]
    assert len(figures.table(head, [row]).splitlines()) == 3
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "25")
    whole = ["| name | first | second |", "|------|------:|-------:|", "| a    |     1 |     22 |"]
    assert figures.table(head, [row]).splitlines() == [
        *whole,
        "",
        "| name | third |",
        "|------|------:|",
        "| a    |   333 |",
    ]


def test_networks_are_drawn_as_their_mean_and_range():
    axes = draw(Curve("a", [1, 2, 3], NETWORKS), log="y")
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xydata(), [[1, 2], [2, 2], [3, 6]])
    corners = {tuple(vertex) for vertex in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 1), (1, 3), (2, 2), (3, 4), (3, 8)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (m)", "y (s)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    low, high = axes.get_ylim()
    assert low < 1
    assert high > 8


def test_one_network_has_no_range_and_a_point_no_line_but_its_range():
    axes = draw(Curve("a", [1, 2, 3], [3, 4, 5]), Curve("b", [2], [[1], [3]], line=False))
    (span,) = axes.collections
    assert [segment.tolist() for segment in span.get_segments()] == [[[2, 1], [2, 3]]]
    line, point = axes.lines
    assert line.get_linestyle() == "-"
    assert point.get_linestyle() == "None"
    np.testing.assert_array_equal(point.get_xydata(), [[2, 2]])


def test_bars_stand_before_their_band():
    band = np.array([0.1, 0.2])
    axes = draw(Curve("band", [1, 2], [-band, band]), bars=([1, 2], [0.5, -0.1]), lines={"5": 1.5})
    area, bars = axes.collections
    assert {tuple(v) for v in area.get_paths()[0].vertices.tolist()} == {
        *((1, -0.1), (1, 0.1), (2, -0.2), (2, 0.2))
    }
    assert [s.tolist() for s in bars.get_segments()] == [[[1, 0], [1, 0.5]], [[2, 0], [2, -0.1]]]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]
    assert [text.get_text() for text in axes.texts] == ["5"]


def test_ticks_levels_and_limits_are_as_requested():
    ticks = {0: "a", 2: "b"}
    axes = draw(Curve("a", [0, 1, 2], [0.1, 0.2, 0.4]), percent=True, ticks=ticks, limits=(0, 1))
    assert axes.get_xticks().tolist() == [0, 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert axes.get_ylim() == (0, 1)
    assert axes.yaxis.get_major_formatter()(0.25) == "25%"
    axes = draw(Curve("a", [0, 1], [1, 2]), levels={"baseline": 1.5}, beyond=(0.2, 0.4, "far"))
    assert axes.lines[1].get_ydata()[0] == 1.5
    assert axes.patches[0].get_x() == 0.2
    assert axes.patches[0].get_width() == pytest.approx(0.2)


def test_a_time_axis_starts_at_0_and_logarithmic_ticks_are_plain():
    axes = draw(Curve("a", [2.0, 3.0], [0.5, 200.0]), log="y", from_zero=True)
    assert axes.get_xlim()[0] == 0
    assert [axes.yaxis.get_major_formatter()(value) for value in (1.0, 0.01)] == ["1", "0.01"]


def test_panels_that_do_not_fill_their_rows_leave_the_last_place_empty():
    panels = [Panel("x", "y", [Curve("a", [1, 2], [1, 2])]) for _ in range(3)]
    figure: Any = figures.curves(panels, rows=2)
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]


def test_whole_numbers_have_whole_ticks():
    ticks = draw(Curve("a", [1, 2, 3], [1, 2, 3])).get_xticks()
    assert (ticks == ticks.round()).all()


def test_panels_share_one_legend_below_them():
    panels = [Panel("x", "y", [Curve(n, [1, 2], [1, 2]) for n in names]) for names in ("ab", "cb")]
    figure: Any = figures.curves(panels, "title", rows=2)
    (_, b), (c, b_again) = (axes.lines for axes in figure.axes)
    assert b.get_color() == b_again.get_color() != c.get_color()
    assert b.get_marker() == b_again.get_marker() != c.get_marker()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert legend.legend_handles[1].get_color() == b.get_color()
    assert figure.get_suptitle() == "title"
    figure.draw_without_rendering()
    bottom = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert legend.get_window_extent().y1 <= bottom


def scheme_names():
    """The names of all curves that the comparisons of techniques draw, figure by figure."""
    for module, task in itertools.product((naive, full_bptt, tbptt_1_1), ("reviews", "sunspots")):
        task = TASKS[task](True)
        yield [technique.name for technique in module.techniques(task, task.steps)]


def test_a_scheme_looks_the_same_in_every_figure_and_unlike_its_neighbours():
    seen = {}
    for names in scheme_names():
        found = figures.looks(names)
        assert len({(colour, dashes) for colour, _, dashes in found.values()}) == len(names)
        for name, look in found.items():
            assert seen.setdefault(name, look) == look
    colours = {look[0] for name, look in seen.items() if name.endswith("full BPTT")}
    assert colours == {figures.SCHEMES["full BPTT"][0]}


def test_heat_maps_of_a_row_share_their_colours():
    values = np.array([[1.0, math.nan], [2.0, 3.0]]), np.array([[1.0, 5.0], [3.0, 4.0]])
    texts = np.array([["1", "not run"], ["2", "3"]])
    maps = [
        HeatMap(
            f"map {i}",
            v,
            "x",
            "y",
            {0: "a"},
            {1: "b"},
            texts,
            [(1, 0, "best on validation")],
            "ms",
            [1],
        )
        for i, v in enumerate(values)
    ]
    figure: Any = None
    for scale, sign in (("high", 1), ("low", -1)):
        figure = figures.heat_maps([maps], [scale], "title", (5, 3))
        assert [axes.get_ylabel() for axes in figure.axes] == ["y", "y", "ms"]  # one bar for both
        assert figure.axes[2].get_ylim() == pytest.approx((1, 5))
        drawn = [axes.images[0].get_array() for axes in figure.axes[:2]]
        np.testing.assert_array_equal(drawn[0][0, 0], drawn[1][0, 0])  # both have the value 1
        np.testing.assert_array_equal(drawn[0][1, 1], drawn[1][1, 0])
        light = drawn[1][..., :3].mean(-1)
        assert (np.argsort(sign * values[1].ravel()) == np.argsort(light.ravel())).all()
        assert drawn[0][0, 1, 3] == 0  # NaN is transparent
    first = figure.axes[0]
    assert [text.get_text() for text in first.texts] == ["1", "not run", "2", "3"]
    assert [text.get_position() for text in first.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    ((x, y),) = first.collections[0].get_offsets()
    assert (round(float(x)), round(float(y))) == (0, 1)
    assert first.lines[0].get_ydata()[0] == 0.5
    assert first.get_ylim()[0] < first.get_ylim()[1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["best on validation"]


def test_shares_are_white_at_0_and_blue_at_1_from_the_top():
    share = HeatMap("", np.array([[0.0, 1.0], [0.5, 0.0]]), "", "", {}, {})
    figure: Any = figures.heat_maps([[share]], ["share"], "", (2, 2))
    (axes,) = figure.axes
    drawn = axes.images[0].get_array()[..., :3]
    assert drawn[0, 0].mean() > 0.95 > drawn[1, 0].mean() > drawn[0, 1].mean()
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_words_are_shaded_by_their_values_and_stay_in_their_columns():
    words, sizes = ["one", "two", "three"], np.array([0.0, 1.0, 4.0])
    figure: Any = figures.shaded_words(words, {"name": sizes})
    axes, key = figure.axes
    shown = [text for text in axes.texts if text.get_text() in words]
    assert [text.get_text() for text in shown] == words
    assert [text.get_position() for text in shown] == [(0, 0.5), (4, 0.5), (8, 0.5)]
    faces = [text.get_bbox_patch().get_facecolor() for text in shown]
    assert colors.to_hex(faces[0]) == "#ffffff"
    assert np.mean(faces[1][:3]) > np.mean(faces[2][:3])
    assert len({text.get_color() for text in shown[1:]} - {shown[0].get_color()}) == 1
    assert [text.get_text() for text in key.texts][:2] == ["no gradient", "1%"]
    assert key.texts[-1].get_bbox_patch().get_facecolor() == faces[2]
    figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in shown]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(extents))


def test_long_texts_are_broken_into_lines():
    words = ["word"] * 30
    axes, _ = figures.shaded_words(words, {"": np.zeros(30)}).axes
    lines = {text.get_position()[1] for text in axes.texts if text.get_text() == "word"}
    assert lines == {0.5, 1.5}
