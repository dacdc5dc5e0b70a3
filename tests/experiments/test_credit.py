"""What truncation loses of the gradient, on a run over invented reviews."""

import json

import numpy as np
import pytest

from experiments import credit
from tests.command_line import SMALL, run

TEXT = "wonderful a b c d e f a b c d e"  # the longest that the windows of 5 do not divide


@pytest.mark.slow
def test_a_finished_run_is_looked_at(finished, tmp_path):
    folder, _ = finished
    arguments = [f"--run={folder}", f"--output_dir={tmp_path}", f"--text={TEXT}", "--k2=4"]
    done = run("experiments.credit", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())

    norms = [np.array(n) for n in result["by_word"]["norms"].values()]
    assert result["by_word"]["words"] == TEXT.split()
    # 12 words padded in front to a multiple of 5: the windows end after words 2, 7 and 12.
    received = ["".join("x" if n > 0 else "." for n in values) for values in norms]
    assert received == ["xxxxxxxxxxxx", "........xxxx", "xx.xxxx.xxxx"]
    # The last loss alone, and no further: what it gives is full BPTT's.
    np.testing.assert_allclose(norms[1][-4:], norms[0][-4:], rtol=1e-5)

    for by_lag in result["by_lag"].values():
        assert len(by_lag["params"]) == len(by_lag["carry"]) == 40
    for biases in result["by_k2"].values():
        relative = [b["relative"] for b in biases.values()]
        assert relative[-1] == pytest.approx(0, abs=1e-5)
        assert relative[0] > 1e-3  # one step of credit loses something, whatever was learnt
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    counts = {row[2] for row in rows if len(row) == 5}
    assert counts >= {"12 of 12", "4 of 12", "10 of 12"}
    written = {path.name for path in tmp_path.glob("*.png")}
    assert written == {"credit_by_lag.png", "bias.png", "words.png"}


@pytest.mark.slow
def test_without_a_run_it_trains_first(data_dir, tmp_path):
    arguments = [*SMALL, "--epochs=1", "--anchor=loss", f"--data_dir={data_dir}"]
    done = run("experiments.credit", *arguments, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["anchor"] == "loss"
    assert (tmp_path / "params.npz").exists()


def test_credit_by_lag_is_shown_for_parameters_and_carry():
    found = {
        "trained": {"params": [4.0, 2.0, 1.0], "carry": [3.0, 2.0, 0.5]},
        "untrained": {"params": [4.0, 0.1, 0.0], "carry": [3.0, 0.2, 0.0]},
    }
    params, carry = credit.lag_panels(credit.Config(k2=2), found)
    for panel, name in ((params, "params"), (carry, "carry")):
        assert {c.name: c.y for c in panel.curves} == {n: c[name] for n, c in found.items()}
        assert all(list(c.x) == [0, 1, 2] for c in panel.curves)
        assert panel.log == "y"
        assert panel.beyond == (1.5, 2, "beyond k2 = 2")


def test_bias_is_shown_by_k2_in_length_and_direction():
    found = {
        "loss at the end": {1: {"relative": 0.9, "cosine": 0.5}, 10: {"relative": 0, "cosine": 1}}
    }
    relative, cosine = credit.bias_panels(found)
    assert (relative.log, relative.curves[0].x) == ("x", [1, 10])
    assert (relative.curves[0].y, cosine.curves[0].y) == ([0.9, 0], [0.5, 1])
