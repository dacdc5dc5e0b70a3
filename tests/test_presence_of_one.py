"""The toy of the founding question, from the command line."""

import json
import time

import pytest

from tests.command_line import command, run, start
from tests.kills import timeless


@pytest.mark.slow
def test_what_the_gradient_does_not_reach_teaches_the_input_weights_nothing(tmp_path):
    done = run("experiments.presence_of_one", "--fast", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    found = {(row["trained_on"], row["plan"]): row for row in rows}
    assert len(found) == 6
    # Exactly zero where every 1 lies beyond the reach, and nowhere else.
    zero = {key for key, row in found.items() if row["largest_input_gradient"] == 0.0}
    assert zero == {("steps 1 to 10", "k2 = 10")}
    # 1s anywhere: it learns, and what it learnt of near ones holds for far ones.
    anywhere = found["anywhere", "k2 = 10"]
    assert anywhere["second_half"] > 0.95
    assert anywhere["first_half"] > 0.8
    assert anywhere["none"] > 0.6
    assert (tmp_path / "presence_of_one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_killed_after_a_network_it_goes_on_with_the_next(tmp_path):
    name = "experiments.presence_of_one"
    small = (name, "--length=6", "--k2=3", "--updates=60", "--seeds=1")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run(*small, f"--output_dir={alone}").returncode == 0
    process = start(command(*small, f"--output_dir={killed}"))
    journal = killed / "networks.jsonl"
    while not journal.exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = journal.read_text()
    assert before.count("\n") < 6
    done = run(name, f"--output_dir={killed}", "--resume")
    assert done.returncode == 0, done.stderr
    assert journal.read_text().startswith(before)
    found, expected = (json.loads((f / "result.json").read_text()) for f in (killed, alone))
    assert timeless(found) == timeless(expected)
