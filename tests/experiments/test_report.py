"""The page on runs: it shows what their folders hold, loads nothing, and opens in a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image

from experiments import report
from experiments.files import DataError
from tests.command_line import run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ROWS = [
    {"epoch": 1, "train_loss": 0.6, "valid_score": 0.7},
    {"epoch": 2, "train_loss": 0.4, "valid_score": 0.8},
]


def make_run(folder, *, k2=30, accuracy=0.875, **result):
    folder.mkdir()
    config = {"format": 2, "k1": 30, "k2": k2, "text": "<script>alert(1)</script>"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "result.json").write_text(json.dumps({"test_accuracy": accuracy, **result}))
    image.imsave(folder / "figure.png", np.full((20, 30), 0.5))
    return folder


def rows(page):
    """The rows of the tables, as texts, and whether they stand out."""
    found = re.findall(r"<tr( class=differs)?>(.*?)</tr>", page)
    return {
        cells[0]: (cells[1:], bool(mark))
        for mark, row in found
        for cells in [re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
    }


def test_runs_stand_side_by_side_and_what_differs_stands_out(tmp_path):
    folders = make_run(tmp_path / "a"), make_run(tmp_path / "b", k2=60, accuracy=0.9)
    page = report.page([report.read(folder) for folder in folders])
    found = rows(page)
    assert found["k1"] == (["30", "30"], False)
    assert found["k2"] == (["30", "60"], True)
    assert found["test_accuracy"] == (["0.875", "0.9"], True)
    assert page.count("data:image/png") == 2
    assert page.count("data:image/svg+xml") == 1


def test_nothing_of_a_run_is_run_or_loaded(tmp_path):
    page = report.page([report.read(make_run(tmp_path / "<b>run"))])
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)


def test_words_are_shaded_by_their_share_of_the_largest_gradient(tmp_path):
    by_word = {"words": ["so", "<good>", "film"], "norms": {"plan": [0.0, 1.0, 4.0]}}
    page = report.page([report.read(make_run(tmp_path / "a", by_word=by_word))])
    spans = re.findall(
        r"<span style=\"background: rgb\(8 81 156 / ([\d.]+)\)(.*?)\".*?>(.*?)</span>", page
    )
    shades, marks, words = zip(*spans, strict=True)
    assert words == ("so", "&lt;good&gt;", "film")
    assert [float(shade) for shade in shades] == [0, pytest.approx(0.38, abs=0.01), 0.75]
    assert [bool(mark) for mark in marks] == [True, False, False]  # grey where there is none


def test_a_comparison_has_a_row_and_a_curve_for_each_technique(tmp_path):
    results = [
        {"technique": name, "test": [0.5, 0.7], "plan": {"k1": 1}, "histories": [ROWS, ROWS]}
        for name in ("full BPTT", "TBPTT(1, 1)")
    ]
    folder = make_run(tmp_path / "a", results=results)
    (folder / "metrics.jsonl").unlink()
    one = report.read(folder)
    assert list(one.histories) == ["full BPTT", "TBPTT(1, 1)"]
    found = rows(report.page([one]))
    assert found["technique"] == (["test"], False)
    assert found["full BPTT"] == (["0.6 (0.5 to 0.7)"], False)


@pytest.mark.parametrize(
    "histories",
    [[], [{}], [[{}]], [[{**ROWS[0], "valid_score": None}]], [ROWS, ROWS[:1]], [[], ROWS]],
)
def test_histories_that_are_no_curves_are_left_out(histories, tmp_path):
    good = {"technique": "full BPTT", "test": [0.6], "histories": [ROWS, ROWS]}
    other = {"technique": "TBPTT(1, 1)", "test": [0.5], "histories": histories}
    one = report.read(make_run(tmp_path / "a", results=[good, other]))
    assert list(one.histories) == ["a", "full BPTT"]
    assert rows(report.page([one]))["TBPTT(1, 1)"] == (["0.5"], False)


@pytest.mark.parametrize("norms", [None, 3, [1.0], [-1.0, 2.0], [float("nan"), 1.0], ["a", "b"]])
def test_norms_that_are_none_are_left_out(norms, tmp_path):
    by_word = {"words": ["good", "film"], "norms": {"plan": [1.0, 2.0], "other": norms}}
    page = report.page([report.read(make_run(tmp_path / "a", by_word=by_word))])
    assert page.count("<h3>plan</h3>") == 1
    assert "<h3>other</h3>" not in page


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, "0.1235"),
        (12345.6, "12,346"),
        (None, ""),
        ("k1", "k1"),
        ([1.0, 2.0], "1.5 (1 to 2)"),
        ([2000.5], "2,000"),
    ],
)
def test_a_cell_is_short(value, expected):
    assert report.cell(value) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("result.json", "{"),
        ("metrics.jsonl", "{"),
        ("metrics.jsonl", "[1]\n"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(name, content, tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=name):
        report.read(folder)


def test_the_command_writes_one_file(tmp_path):
    folder, output = make_run(tmp_path / "a"), tmp_path / "new" / "page.html"
    done = run("experiments.report", str(folder), f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"saved {output}, ")
    assert "0.875" in output.read_text()
    done = run("experiments.report", str(tmp_path))
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {tmp_path} holds no run (no config.json); give the folder of a run\n"
    )
    done = run("experiments.report")
    assert done.stderr == "error: RUN: expected the folder of at least one run, got none\n"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page(tmp_path):
    folder, output, picture = (
        make_run(tmp_path / "a"),
        tmp_path / "page.html",
        tmp_path / "page.png",
    )
    output.write_text(report.page([report.read(folder)]), encoding="utf-8")
    line = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'u'}",
    ]
    subprocess.run(
        [*line, f"--screenshot={picture}", "--window-size=900,2000", output.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = image.imread(picture)[..., :3]
    figure = image.imread(folder / "figure.png")[0, 0, :3]
    shown = np.isclose(pixels, figure, atol=0.02).all(-1)
    assert shown.sum() == 20 * 30  # the figure, pixel for pixel
    orange = np.isclose(pixels, [0xD5 / 255, 0x5E / 255, 0], atol=0.05).all(-1)
    assert orange.sum() > 100  # the curves, which are SVG
