"""Bad flags: each is refused by its name, before anything is trained, and without a traceback."""

import runpy
import signal
import sys

import pytest
from absl import app, flags

from tests.command_line import SMALL

ENUM = "value should be one of "
SEVERAL = "expected numbers with commas between them, each"
# The script, its arguments with {folder} and {run} to be put in, and what is said.
BAD = [
    ("sentiment", "--k1=0", "flag --k1=0: 0 is not a positive integer"),
    ("sentiment", "--k1=1.5", "flag --k1=1.5: invalid literal for int"),
    ("sentiment", "--k1=", "flag --k1=: invalid literal for int"),
    ("sentiment", "--k2=-30", "flag --k2=-30: -30 is not a positive integer"),
    ("sentiment", "--anchor=end", ENUM + "<update|loss>"),
    ("sentiment", "--loss_at=middle", ENUM + "<chunk|end>"),
    ("sentiment", "--cell=transformer", ENUM + "<lstm|gru|rnn>"),
    ("sentiment", "--embedding=0", "flag --embedding=0: 0 is not a positive integer"),
    ("sentiment", "--hidden=many", "flag --hidden=many: invalid literal for int"),
    ("sentiment", "--dropout=1", "--dropout=1: 1.0 is not a finite number at least 0 and below 1"),
    ("sentiment", "--dropout=-0.1", "-0.1 is not a finite number at least 0 and below 1"),
    ("sentiment", "--word_dropout=2", "flag --word_dropout=2: 2.0 is not a finite number at le"),
    ("sentiment", "--vocabulary=2", "flag --vocabulary=2: 2 is not integer >= 3"),
    ("sentiment", "--max_length=0", "flag --max_length=0: 0 is not a positive integer"),
    ("sentiment", "--epochs=0", "flag --epochs=0: 0 is not a positive integer"),
    ("sentiment", "--batch_size=0", "flag --batch_size=0: 0 is not a positive integer"),
    ("sentiment", "--learning_rate=0", "--learning_rate=0: 0.0 is not a finite number above 0"),
    ("sentiment", "--learning_rate=nan", "nan is not a finite number above 0"),
    ("sentiment", "--learning_rate=inf", "inf is not a finite number above 0"),
    ("sentiment", "--clip=0", "flag --clip=0: 0.0 is not a finite number above 0"),
    ("sentiment", "--averaging=1", "1.0 is not a finite number at least 0 and below 1"),
    ("sentiment", "--seed=-1", "flag --seed=-1: -1 is not a non-negative integer"),
    ("sentiment", "--checkpoint_every=-1", "-1.0 is not a finite number at least 0"),
    ("sentiment", "--on_nonfinite=ignore", ENUM + "<stop|skip>"),
    ("sentiment", "--kl=30", "Unknown command line flag 'kl'"),
    ("sentiment", "30", "error: unexpected arguments ['30']; write --name=value"),
    ("sentiment", "--data_dir=/nowhere", "error: --data_dir: expected reviews like 0_9.txt in"),
    ("sentiment", "--output_dir=/proc/run", "error: --output_dir: /proc/run cannot be made"),
    ("sentiment", "--output_dir={run}", "{run} already holds a run; go on with it by --resume"),
    ("sentiment", "--resume", "--resume: {folder} holds no run to go on with; leave it out to be"),
    ("sentiment", "--resume --output_dir={run} --k1=6", "--k1=6, and {run} was begun with 5; leav"),
    ("sentiment", "--resume --output_dir={run} --fast", "--fast=True, and {run} was begun with F"),
    ("char_lm", "--resume --output_dir={run}", "{run} holds a run of something else; give anoth"),
    ("sentiment", "--predict=good", "{folder} holds no trained network"),
    ("sentiment", "--predict= --output_dir={run}", "--predict: expected a text with at least one"),
    ("credit", "--run=/nowhere", "/nowhere holds no trained network"),
    ("credit", "--run={run} --text=", "error: --text: expected a text with at least one word"),
    ("char_lm", "--k1=600", "error: --piece: expected at least k1=600, got 500"),
    ("char_lm", "--characters=10", "flag --characters=10: 10 is not integer >= 1000"),
    ("char_lm", "--sample=0", "flag --sample=0: 0 is not a positive integer"),
    ("char_lm", "--sample=5", "{folder} holds no trained network"),
    ("char_lm", "--sample=5 --prompt=", "error: --prompt: expected at least one character, got n"),
    ("char_lm", "--temperature=0", "--temperature=0: 0.0 is not a finite number above 0"),
    ("char_lm", "--temperature=nan", "--temperature=nan: nan is not a finite number above 0"),
    ("naive", "--task=poems", ENUM + "<reviews|digits|book|demand|sunspots>"),
    ("naive", "--task=demand --steps=672", "error: --steps: expected fewer than the 672 half-hour"),
    ("naive", "--seeds=0", "flag --seeds=0: 0 is not a positive integer"),
    ("full_bptt", "--learning_rate=-1", "-1.0 is not a finite number above 0"),
    ("tbptt_1_1", "extra", "error: unexpected arguments ['extra']"),
    ("domain_split", "--task=book", ENUM + "<demand|sunspots|reviews>"),
    ("grid_search", "--k1=30,x", f"flag --k1=30,x: {SEVERAL} a positive integer"),
    ("grid_search", "--k2=0", f"flag --k2=0: {SEVERAL} a positive integer; 0 is not"),
    ("grid_search", "--k1=", f"flag --k1=: {SEVERAL} a positive integer"),
    ("grid_search", "--k2=30,661", "error: --k2: expected at most the 660 months of a sequence"),
    ("grid_search", "--anchor=all", ENUM + "<both|update|loss>"),
    ("grid_search", "--learning_rate=0.1,nan", f"{SEVERAL} a finite number above 0; nan is not"),
    ("first_words", "--length=30", "error: --length: expected more than k2=30 words, got 30"),
    ("first_words", "--length=92", "--length: the first chunk of a text holds length % k2 = 2 wo"),
    ("first_words", "--short_shares=0.1,1", "1.0 is not a finite number above 0 and below 1"),
    ("first_words", "--k2=2", "flag --k2=2: 2 is not integer >= 5"),
    ("presence_of_one", "--length=1", "flag --length=1: 1 is not integer >= 2"),
    ("presence_of_one", "--updates=0", "flag --updates=0: 0 is not a positive integer"),
    ("credit_matrices", "extra", "error: unexpected arguments ['extra']"),
    ("credit_matrices", "--output=/proc/a.png", "error: --output: /proc/a.png cannot be written"),
]


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script in this process and give its exit status and what it said; nothing of it stays.

    In a process of its own each would take three seconds.
    """
    app.define_help_flags()
    own = set(flags.FLAGS)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name, arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"experiments.{name}", run_name="__main__")
        said = ended.value.code
        return said if isinstance(said, str) else capsys.readouterr().err

    yield run
    for name in set(flags.FLAGS) - own:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("name", "arguments", "message"), BAD, ids=lambda value: value[:40])
def test_a_bad_flag_is_refused_by_its_name(name, arguments, message, script, begun, tmp_path):
    places = {"folder": tmp_path / "new", "run": begun}
    given = arguments.format(**places).split(" ")
    if name != "credit_matrices" and "--output_dir" not in arguments:
        given.append(f"--output_dir={places['folder']}")
    before = sorted(begun.iterdir())
    assert message.format(**places) in script(name, given)
    # Its configuration at most, which the next try may replace.
    assert {path.name for path in places["folder"].glob("*")} <= {"config.json"}
    assert sorted(begun.iterdir()) == before


@pytest.fixture(scope="module")
def begun(finished):
    """The folder of a run, finished: of experiments.sentiment, with the flags of SMALL."""
    assert "--k1=5" in SMALL
    return finished[0]
