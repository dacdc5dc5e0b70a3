"""What is measured anew reaches the documents: whole, once, and under a name that is known."""

import json
import platform

import pytest

from benchmarks import reproduce
from benchmarks.reproduce import JOBS, MARK, SECTIONS, Job, Measured, fill, tables
from experiments import figures

TABLE = "| a | b |\n|---|--:|\n| x | 1 |"


def test_tables_are_found_in_what_a_command_prints():
    text = f"saved in x | y\n\n{TABLE}\n\nnotes\n{TABLE}"
    assert tables(text) == [TABLE, TABLE]
    assert tables("nothing | here") == []


def test_a_document_gets_its_sections_and_keeps_the_rest(monkeypatch):
    text = "before\n<!-- measured: n -->\nold\n<!-- end -->\nafter <!-- end -->"
    monkeypatch.setitem(SECTIONS, "n", lambda found: "")
    filled = fill(text, {"n": "new"}, "x.md")
    assert filled == "before\n<!-- measured: n -->\n\nnew\n\n<!-- end -->\nafter <!-- end -->"
    assert fill(filled, {"n": "new"}, "x.md") == filled
    assert fill(text, {}, "x.md") == text  # not measured yet
    with pytest.raises(SystemExit, match="x.md: nothing is measured under the name 'm'"):
        fill(text.replace(": n ", ": m "), {}, "x.md")


def test_a_comparison_is_of_several_networks():
    compared = {"naive", "domain_split", "tbptt_1_1", "full_bptt"}
    found = [job for name, job in JOBS.items() if name.split(", ")[0] in compared]
    assert len(found) == 18
    assert all("--seeds=3" in job.line for job in found)


def test_a_language_model_is_shown_beside_the_counts(tmp_path):
    found = {}
    for seed, bits in zip(reproduce.SEEDS, (1.5, 1.25, 1.75), strict=True):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"test_bits": bits}))
        printed = figures.table(["by", "bits"], [["counts", "2.000"], ["LSTM", f"{bits:.3f}"]])
        key = f"char_lm, seed {seed}"
        found[key] = Measured(JOBS[key], f"read\n{printed}\nsaved", folder)
    rows = [line.split("|")[1:-1] for line in SECTIONS["char_lm"](found).splitlines()]
    assert [[cell.strip() for cell in row] for row in rows if "--" not in row[0]] == [
        ["by", "bits"],
        ["counts", "2.000"],
        ["LSTM", "1.500 (1.250 to 1.750)"],
    ]


def test_every_mark_of_the_documents_is_measured():
    for path in reproduce.documents():
        text = path.read_text(encoding="utf-8")
        names = [match[2] for match in MARK.finditer(text)]
        assert text.count("<!-- measured:") == len(names), path
        assert set(names) <= SECTIONS.keys(), path


def test_a_job_that_has_finished_is_not_run_again(tmp_path):
    job = Job(("platform",), output="")
    first = reproduce.run("Name, of it", job, tmp_path)
    assert first.text.strip() == platform.platform()
    assert reproduce.finished("Name, of it", job, tmp_path) == first
    assert reproduce.finished("another", job, tmp_path) is None
    assert reproduce.read_minutes(tmp_path).keys() == {"Name, of it"}


def test_accuracies_are_those_of_all_seeds_and_of_tfidf(tmp_path):
    found = {}
    for i, name in enumerate(reproduce.SENTIMENT):
        for seed in reproduce.SEEDS:
            folder = tmp_path / f"{i}-{seed}"
            folder.mkdir()
            result = {"test_accuracy": 0.5 + 0.1 * i + 0.01 * seed, "seconds": 10 * seed}
            (folder / "result.json").write_text(json.dumps(result))
            key = f"sentiment, {name}, seed {seed}"
            found[key] = Measured(JOBS[key], "", folder)
    tfidf = figures.table(["of", "C", "a", "s", "r"], [["words", "1", "88.0%", "2.5", "2 to 3"]])
    found["tfidf"] = Measured(JOBS["tfidf"], tfidf, tmp_path)
    rows = [line.split("|")[2:-1] for line in reproduce.sentiment(found).splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["51.00%", "50.00% to 52.00%", "10"],
        ["61.00%", "60.00% to 62.00%", "10"],
        ["71.00%", "70.00% to 72.00%", "10"],
        ["88.0%", "", "2"],
    ]
