"""The toy of the founding question, from the command line."""

import json

import pytest

from tests.command_line import run


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
