"""experiments.credit, from the command line, on a run over invented reviews."""

import json

import numpy as np
import pytest

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

    for credit in result["by_lag"].values():
        assert len(credit["params"]) == len(credit["carry"]) == 40
    for biases in result["by_k2"].values():
        relative = [b["relative"] for b in biases.values()]
        assert relative[-1] == pytest.approx(0, abs=1e-5)
        assert relative[0] > 1e-3  # one step of credit loses something, whatever was learnt
    assert "4 of 12 |" in done.stdout
    for name in ("credit_by_lag", "bias", "words"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_a_run_it_trains_first(data_dir, tmp_path):
    arguments = [*SMALL, "--epochs=1", "--anchor=loss", f"--data_dir={data_dir}"]
    done = run("experiments.credit", *arguments, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["anchor"] == "loss"
    assert (tmp_path / "params.npz").exists()
