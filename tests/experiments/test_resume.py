"""A run that is killed and resumed ends with the bits of one that was left alone."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.command_line import ROOT, SMALL, command, run, start
from tests.kills import STREAM, begin, bits, finish, kill_and_resume, resume, saved

# Shuffled anew in every epoch, with dropout, windows that begin before their interval.
TEXTS = ("experiments.sentiment", *SMALL, "--k2=8", "--epochs=4")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run on a stream that nothing interrupted."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(start(begin(STREAM, folder)))
    return folder


@pytest.mark.slow
def test_killed_in_the_middle_of_a_stream(alone, tmp_path):
    kills = kill_and_resume(STREAM, tmp_path / "run", kills=4, seed=1)
    assert kills.all == 4
    assert kills.while_saving >= 1
    assert bits(tmp_path / "run") == bits(alone)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_of_texts(data_dir, tmp_path):
    texts = (*TEXTS, f"--data_dir={data_dir}")
    finish(start(begin(texts, tmp_path / "alone")))
    kills = kill_and_resume(texts, tmp_path / "run", kills=2, seed=2)
    assert kills.all == 2
    assert bits(tmp_path / "run") == bits(tmp_path / "alone")


@pytest.mark.slow
def test_a_comparison_resumes_with_the_technique_it_was_at(tmp_path):
    several = ("experiments.tbptt_1_1", "--task=sunspots", "--fast", "--epochs=2")
    finish(start(begin(several, tmp_path / "alone")))
    kills = kill_and_resume(several, tmp_path / "run", kills=2, seed=3)
    assert kills.all == 2
    assert bits(tmp_path / "run") == bits(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")], ids=["int", "term"]
)
def test_a_signal_saves_and_says_how_to_resume(how, said, alone, tmp_path):
    folder = tmp_path / "run"
    # Never saved by the clock: what is saved is what the signal saves.
    process = start(command(*STREAM, f"--output_dir={folder}", "--checkpoint_every=1000"))
    while not (folder / "metrics.jsonl").exists():  # in the second epoch
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + how, errors
    resuming = f"python -m {STREAM[0]} --output_dir={folder} --resume"
    assert f"stopped by {said}; resume with\n  {resuming}\n" in errors
    assert "Traceback" not in errors
    assert len(saved(folder)) == 1
    done = run(STREAM[0], *resuming.split()[3:])
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    assert bits(folder) == bits(alone)


@pytest.mark.slow
def test_two_signals_in_a_moment_end_a_run_at_once_and_lose_nothing(alone, tmp_path):
    folder, rng = tmp_path / "run", random.Random(4)
    for i in range(6):
        before = saved(folder)
        process = start(resume(STREAM, folder) if i else begin(STREAM, folder))
        while process.poll() is None and saved(folder) == before:
            time.sleep(0.001)
        begun = time.monotonic()
        process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
        time.sleep(rng.uniform(0.001, 0.01))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - begun < 10
        assert process.returncode in (130, 143), errors
        assert "Traceback" not in errors
    finish(start(resume(STREAM, folder)))
    assert bits(folder) == bits(alone)


@pytest.mark.slow
def test_where_no_checkpoint_can_be_read_a_run_never_restarts(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    for checkpoint in saved(folder):
        (pathlib.Path(checkpoint) / "record" / "metadata").write_bytes(b"")
    for _ in range(2):
        done = run(STREAM[0], f"--output_dir={folder}", "--resume")
        assert done.returncode == 1
        assert "no checkpoint can be read: " in done.stderr
        assert "Traceback" not in done.stderr
    assert saved(folder) == []


@pytest.mark.slow
def test_a_finished_run_is_only_reported_again(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    done = run(STREAM[0], f"--output_dir={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    assert bits(folder) == bits(alone)
    assert "bits per character" in done.stdout


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_leads_to_the_same_end(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(begin(STREAM, folder))
    while len(saved(folder)) < 2:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    newest = saved(folder)[-1]
    for file in (f for f in (folder / "checkpoints").rglob("*") if str(f).startswith(newest)):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])
    done = run(STREAM[0], f"--output_dir={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert "set aside as damaged-" in done.stderr
    assert bits(folder) == bits(alone)


@pytest.mark.slow
def test_other_data_are_refused(data_dir, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data_dir, data)
    texts = (*TEXTS, f"--data_dir={data}")
    finish(start(begin(texts, folder)))
    text = next((data / "train" / "pos").glob("*.txt"))
    text.write_text(text.read_text() + " f")
    done = run(texts[0], f"--output_dir={folder}", "--resume")
    assert done.returncode == 1
    assert "error: --resume: checkpoint" in done.stderr
    assert "belongs to another training:\n  data: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_what_it_has(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *begin(STREAM, folder)],  # 4 KiB a file
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    # Of the checkpoint; TensorStore may print what else it thinks of writes that fail together.
    assert "warning: [Errno 5] checkpoint 0 could not be written: " in process.stderr
    assert "params.npz cannot be written (File too large); make room or give" in process.stderr
    assert f"--output_dir={folder} --resume\n" in process.stderr
    # What is there is whole.
    assert not list(folder.glob("*.part"))
    json.loads((folder / "config.json").read_text())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
