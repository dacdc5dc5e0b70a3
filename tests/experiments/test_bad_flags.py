"""Bad flags: each is refused by its name, before anything is trained, and without a traceback."""

import pytest

from tests.command_line import SMALL

INTEGER = "expected an integer from 1 to 2147483647, got "
SEVERAL = "expected numbers separated by commas, each "
# The script, its arguments with {folder} and {run} to be put in, and what is said.
BAD = [
    ("sentiment", "--k1=0", INTEGER + "'0'"),
    ("sentiment", "--k1=1.5", INTEGER + "'1.5'"),
    ("sentiment", "--k1=", INTEGER + "''"),
    ("sentiment", "--k2=-30", INTEGER + "'-30'"),
    ("sentiment", "--anchor=end", "expected 'update' or 'loss', got "),
    ("sentiment", "--loss_at=middle", "expected 'chunk' or 'end', got "),
    ("sentiment", "--cell=transformer", "expected 'lstm' or 'gru' or 'rnn', got "),
    ("sentiment", "--embedding=0", INTEGER + "'0'"),
    ("sentiment", "--hidden=many", INTEGER + "'many'"),
    ("sentiment", "--dropout=1", "expected a finite number at least 0 and below 1, got '1'"),
    ("sentiment", "--dropout=-0.1", "expected a finite number at least 0 and below 1, got '-0.1'"),
    ("sentiment", "--word_dropout=2", "expected a finite number at least 0 and below 1, got '2'"),
    ("sentiment", "--vocabulary=2", "expected an integer from 3 to 2147483647, got '2'"),
    ("sentiment", "--max_length=0", INTEGER + "'0'"),
    ("sentiment", "--epochs=0", INTEGER + "'0'"),
    ("sentiment", "--batch_size=0", INTEGER + "'0'"),
    ("sentiment", "--learning_rate=0", "expected a finite number above 0, got '0'"),
    ("sentiment", "--learning_rate=nan", "expected a finite number above 0, got 'nan'"),
    ("sentiment", "--learning_rate=inf", "expected a finite number above 0, got 'inf'"),
    ("sentiment", "--clip=0", "flag --clip=0: expected a finite number above 0, got '0'"),
    ("sentiment", "--averaging=1", "expected a finite number at least 0 and below 1, got '1'"),
    ("sentiment", "--seed=-1", "expected an integer from 0 to 2147483647, got '-1'"),
    ("sentiment", "--checkpoint_every=-1", "expected a finite number at least 0, got '-1'"),
    ("sentiment", "--on_nonfinite=ignore", "expected 'stop' or 'skip', got "),
    ("sentiment", "--seed=99999999999999999999", "to 2147483647, got '99999999999999999999'"),
    ("grid_search", "--k1=9999999999", "each an integer from 1 to 2147483647, got '9999999999'"),
    ("sentiment", "--kl=30", "Unknown command line flag 'kl'"),
    ("sentiment", "30", "error: unexpected arguments ['30']; write --name=value"),
    ("sentiment", "--data_dir=/nowhere", "error: --data_dir: expected reviews like 0_9.txt in"),
    ("sentiment", "--output_dir=/proc/run", "error: --output_dir: /proc/run cannot be made"),
    ("sentiment", "--output_dir=", "expected a text of at least 1 character, got ''"),
    ("sentiment", f"--output_dir={'x' * 5000}", "xxx cannot be made (File name too long); give a"),
    ("sentiment", f"--resume --output_dir={'x' * 5000}", "cannot be used (File name too long); gi"),
    ("sentiment", "--data_dir=", "expected a text of at least 1 character, got ''"),
    ("credit", "--run=", "expected a text of at least 1 character, got ''"),
    ("sentiment", "--output_dir={run}", "{run} already holds a run; resume it with --resume"),
    ("sentiment", "--resume", "--resume: {folder} holds no run; leave --resume out to start one"),
    ("sentiment", "--resume --output_dir={run} --k1=6", "--k1=6, and {run} was started with 5; le"),
    ("sentiment", "--resume --output_dir={run} --fast", "--fast=True, and {run} was started with"),
    ("char_lm", "--resume --output_dir={run}", "config.json must hold the flags of this exper"),
    ("sentiment", "--predict=good", "{folder} holds no trained network"),
    ("sentiment", "--predict= --output_dir={run}", "--predict: expected a text with at least one"),
    ("credit", "--run=/nowhere", "/nowhere holds no trained network"),
    ("credit", "--run={run} --text=", "error: --text: expected a text with at least one word"),
    ("char_lm", "--k1=600", "error: --piece: expected at least k1=600, got 500"),
    ("char_lm", "--characters=10", "expected an integer from 1000 to 2147483647, got '10'"),
    ("char_lm", "--sample=0", INTEGER + "'0'"),
    ("char_lm", "--sample=5", "{folder} holds no trained network"),
    ("char_lm", "--sample=5 --prompt=", "error: --prompt: expected at least one character, got n"),
    ("char_lm", "--temperature=0", "expected a finite number above 0, got '0'"),
    ("char_lm", "--temperature=nan", "expected a finite number above 0, got 'nan'"),
    ("naive", "--task=poems", "expected 'reviews' or 'digits' or 'book' or 'demand' or 'sunspots'"),
    ("naive", "--task=demand --steps=672", "error: --steps: expected fewer than the 672 half-hour"),
    ("naive", "--seeds=0", INTEGER + "'0'"),
    ("full_bptt", "--learning_rate=-1", "expected a finite number above 0, got '-1'"),
    ("tbptt_1_1", "extra", "error: unexpected arguments ['extra']"),
    ("domain_split", "--task=book", "expected 'demand' or 'sunspots' or 'reviews', got "),
    ("grid_search", "--k1=30,x", f"flag --k1=30,x: {SEVERAL}an integer from 1 to"),
    ("grid_search", "--k2=0", f"flag --k2=0: {SEVERAL}an integer from 1 to"),
    ("grid_search", "--k1=", f"flag --k1=: {SEVERAL}an integer from 1 to"),
    ("grid_search", "--k2=30,661", "error: --k2: expected at most the 660 months of a sequence"),
    ("grid_search", "--anchor=all", "expected 'both' or 'update' or 'loss', got "),
    ("grid_search", "--learning_rate=0.1,nan", f"{SEVERAL}a finite number above 0, got '0.1,nan'"),
    ("first_words", "--length=30", "error: --length: expected more than k2=30 words, got 30"),
    ("first_words", "--length=92", "--length: the first chunk of a text holds length % k2 = 2 wo"),
    ("first_words", "--short_shares=0.1,1", "each a finite number above 0 and below 1"),
    ("first_words", "--k2=2", "expected an integer from 5 to 2147483647, got '2'"),
    ("presence_of_one", "--length=1", "expected an integer from 2 to 2147483647, got '1'"),
    ("presence_of_one", "--passes=0", INTEGER + "'0'"),
    ("credit_matrices", "extra", "error: unexpected arguments ['extra']"),
    ("credit_matrices", "--output=/proc/a.png", "error: --output: /proc/a.png cannot be written"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=lambda value: value[:40])
def test_a_bad_flag_is_refused_by_its_name(name, arguments, message, script, begun, tmp_path):
    places = {"folder": tmp_path / "new", "run": begun}
    given = arguments.format(**places).split(" ")
    if name != "credit_matrices" and "--output_dir" not in arguments:
        given.append(f"--output_dir={places['folder']}")
    before = sorted(begun.iterdir())
    said = script(name, given)
    assert message.format(**places) in said
    if message.startswith(("expected ", "each ")):
        assert f"flag {arguments}: expected " in said
    assert not places["folder"].exists()
    assert sorted(begun.iterdir()) == before


@pytest.fixture(scope="module")
def begun(finished):
    """The folder of a run, finished: of experiments.sentiment, with the flags of SMALL."""
    assert "--k1=5" in SMALL
    return finished[0]
