"""The characters of a book, one after the other: bits per character, and new text.

Train:   python -m experiments.char_lm
Sample:  python -m experiments.char_lm --sample=500 --prompt="In the beginning" --temperature=0.8

The book is one stream of 4.3 million characters. The carry runs through it, an update is made every
k1 characters, and the gradient reaches back k2. How well the next character is foretold is compared
with what counting gives: how often it came after the same few characters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from absl import app, flags

import tbptt_jax as tbptt
from experiments import common, driver, run_folder
from experiments.common import RunOptions, flag
from experiments.packaged import DataError
from experiments.run_folder import RunFolder
from experiments.tasks import Task, book
from experiments.tasks.task import Part
from experiments.technique import Recipe, Technique
from tbptt_jax.types import Carry, Model, Params

NAME = "char_lm"
ORDERS = 6  # how many characters the longest count looks back, plus 1
ANEW = 0.05  # share of the pieces for training that begin with an empty carry
PRIOR = 5.0  # how often a shorter context counts as seen after a longer one


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a run is."""

    k1: int = flag(25, "Characters between parameter updates.", 1)
    k2: int = flag(25, "Characters that the gradient reaches back.", 1)
    anchor: Literal["update", "loss"] = flag(
        "update", "What k2 is counted from: the end of the window, or each loss."
    )
    hidden: int = flag(256, "Units of the LSTM.", 1)
    epochs: int = flag(2, "Passes over the part for training.", 1)
    learning_rate: float = flag(
        1e-2, "Adam's, at first; a cosine takes it to 0 by the end.", above=0
    )
    characters: int = flag(4_300_000, "Characters of the book, from its beginning.", 1_000)
    piece: int = flag(500, "Characters of a lane in a batch, about; at least k1.", 1)
    seed: int = flag(0, "Of the weights and where passes begin; of a sample.", 0)
    fast: bool = flag(False, "A small run of under 30 seconds: less of the book, fewer units.")


FAST: dict[str, Any] = {
    "k1": 50,
    "k2": 50,
    "hidden": 64,
    "epochs": 5,
    "learning_rate": 1e-2,
    "characters": 60_000,
    "piece": 100,
}


def make_task(config: Config, text: book.Text) -> Task:
    """The task of a run; a text without parts gives a network all the same."""
    task = book.make_task(
        text,
        hidden=config.hidden,
        piece=config.piece,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
    )
    return task._replace(batches=functools.partial(begin_anew_at_times, task.batches))


def begin_anew_at_times(
    batches: Callable[..., list[tbptt.Batch]],
    part: Part,
    multiple: int,
    rng: np.random.Generator | None,
) -> list[tbptt.Batch]:
    """The batches; in training the carry of some lanes begins anew in each.

    A test and a sample begin with an empty carry. One that training met at the start of a pass
    only may lead anywhere: of 32 lanes for test one stayed at 15 bits per character to its end.
    """
    found = batches(part, multiple, rng)
    if rng is not None:
        for batch in found:
            batch.reset[:, 0] |= rng.random(len(batch.reset)) < ANEW
    return found


def counted_bits(train: np.ndarray, test: np.ndarray, symbols: int) -> list[float]:
    """Bits per character by counts alone; entry n looks at the n characters before.

    The counts after n characters have those after n - 1 as their prior, and so on down to all
    characters alike, so that nothing is impossible. The first characters of the test, which lack
    some before them, are not asked for.
    """
    train, test = train.astype(np.int64), test.astype(np.int64)  # the codes of contexts are large
    asked = np.arange(ORDERS - 1, len(test))
    known = np.full(len(asked), 1 / symbols)
    bits = []
    context, context_train = np.zeros(len(test), np.int64), np.zeros(len(train), np.int64)
    for order in range(ORDERS):
        if order:
            # The code of a context: its characters as the digits of a number.
            place = symbols ** (order - 1)
            context[order:] += place * test[: len(test) - order]
            context_train[order:] += place * train[: len(train) - order]
        seen = _count(context_train[order:], context[asked])
        pair_seen = _count(
            context_train[order:] * symbols + train[order:], context[asked] * symbols + test[asked]
        )
        known = (pair_seen + PRIOR * known) / (seen + PRIOR)
        bits.append(float(-np.log2(known).mean()))
    return bits


def _count(codes: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each of the asked codes occurs among all codes."""
    values, counts = np.unique(codes, return_counts=True)
    where = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.where(values[where] == asked, counts[where], 0)


@functools.partial(jax.jit, static_argnames=("functions", "count"))
def generate(
    functions: Model,
    params: Params,
    carry: Carry,
    logits: jax.Array,
    key: jax.Array,
    temperature: float,
    count: int,
) -> jax.Array:
    """Draw `count` ids, int32 [count], each from what the network says after the one before.

    `carry` and `logits` [symbols] are those after the prompt; a temperature below 1 makes the
    likely likelier.
    """

    def draw(before, key):
        carry, logits = before
        drawn = jax.random.categorical(key, logits / temperature)
        xs = functions.encode(params, drawn[None, None], None)
        carry, y = functions.step(params, carry, xs[:, 0])
        return (carry, functions.readout(params, y[:, None], None)[0, 0]), drawn

    return jax.lax.scan(draw, (carry, logits), jax.random.split(key, count))[1]


def sample(
    state: tbptt.TrainState, text: book.Text, prompt: str, count: int, temperature: float, seed: int
) -> str:
    """What follows the prompt: `count` characters.

    Raises:
      DataError: the book lacks a character of the prompt.
    """
    ids = text.encode(prompt)[None]
    functions, params = state.functions, state.params
    carry, ys, _ = tbptt.forward(functions, params, None, tbptt.Window(ids, ids))
    logits = functions.readout(params, ys, None)[0, -1]
    key = jax.random.key(seed)
    drawn = generate(functions, params, carry, logits, key, temperature, count)
    return text.decode(np.asarray(drawn))


def plot_history(
    run: RunFolder, history: list[dict[str, Any]], counted: list[float], title: str
) -> None:
    """Bits per character by pass, and what some of the counts give."""
    figure, axes = common.figure(1, 1, width=5, height=3.2)
    epochs = [row["epoch"] for row in history]
    training = [row["train_loss"] / math.log(2) for row in history]
    axes.plot(epochs, training, "o-", label="training")
    axes.plot(epochs, [row["valid_score"] for row in history], "s--", label="validation")
    for order in (3, ORDERS - 1):
        axes.axhline(counted[order], color="0.6", linewidth=0.8, linestyle=":")
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        label = f"counts after {order}, test"
        axes.annotate(label, (1, counted[order]), color="0.4", fontsize=7, **place)
    axes.set(xlabel="pass over the book", ylabel="bits per character", xticks=epochs, title=title)
    axes.legend(frameon=False)
    figure.savefig(run.path / "learning_curve.png")


def report(text: book.Text, counted: list[float], bits: float) -> str:
    """The network beside the counts."""
    rows = [["any of the book's characters alike", f"{math.log2(len(text.characters)):.3f}"]]
    for order, value in enumerate(counted):
        after = "counts of characters"
        if order:
            after = f"counts after the same {order} character{'s' if order > 1 else ''}"
        rows.append([after, f"{value:.3f}"])
    return common.table(
        ["foretold by", "test bits per character"], [*rows, ["LSTM", f"{bits:.3f}"]]
    )


def run_training(config: Config, prompt: str, temperature: float) -> None:
    """The whole job: data, training, test, figure, and a sample."""
    if config.k1 > config.piece:
        common.stop(f"--piece: expected at least k1={config.k1}, got {config.piece}")
    run = RunFolder.create(config, NAME)
    text = common.load(book.read, config.characters)
    run.write_json("characters.json", text.characters)
    sizes = ", ".join(f"{len(ids):,} {part}" for part, ids in text.parts.items())
    print(f"{sizes} characters, {len(text.characters)} different ones")
    task = make_task(config, text)
    plan = tbptt.Truncation(config.k1, config.k2, config.anchor)

    recipe = Recipe(config.epochs, config.learning_rate, task.averaging, seed=config.seed)
    technique = Technique(str(plan), plan)
    trained = driver.fit(task, recipe, technique, run.saving("training"), run.keep)
    bits = task.score.of(tbptt.evaluate(trained.state, task.batches("test", 1, None)))
    counted = counted_bits(text.parts["train"], text.parts["test"], len(text.characters))
    result = {
        "test_bits": bits,
        "valid_bits": trained.best["valid_score"],
        "counted_bits": counted,
        "best_epoch": trained.best["epoch"],
        "seconds": trained.history[-1]["seconds"],
        "versions": common.versions(),
    }
    run.write_json("result.json", result)
    name = f"k1 = {config.k1}, k2 = {config.k2}, LSTM of {config.hidden}"
    plot_history(run, trained.history, counted, name)
    print("\n" + report(text, counted, bits))
    print(
        f"\ntest {bits:.3f} bits per character ({name}; epoch {trained.best['epoch']} was best on "
        f"validation; {result['seconds']:.0f} s of training)"
    )
    if not set(prompt) - set(text.characters):
        drawn = sample(trained.state, text, prompt, 300, temperature, config.seed)
        print(f"\n{prompt}{drawn}")
    print(
        f"\nsaved in {run.path}; try python -m experiments.{NAME} --output_dir={run.path} "
        f'--sample=1000 --prompt="And it came to pass"'
    )


def run_sampling(
    output_dir: str | None, prompt: str, count: int, temperature: float, seed: int
) -> None:
    """New text by a finished run."""
    run = RunFolder.open(output_dir, NAME)
    config = run.read_config(Config)
    text = book.Text(run.read_json("characters.json"), {})
    state = driver.make_state(make_task(config, text), Recipe(1, 1.0, 0.0))
    state = dataclasses.replace(state, params=run.load_params(state.params))
    try:
        print(prompt + sample(state, text, prompt, count, temperature, seed))
    except DataError as error:
        common.stop(f"--prompt: {error}")


def main(argv: list[str]) -> None:
    """Train, or sample where --sample is given."""
    common.begin(argv)
    given = flags.FLAGS
    if not given.prompt:
        common.stop("--prompt: expected at least one character, got none")
    config = run_folder.configure(Config, NAME, FAST)
    if given.sample is not None:
        run_sampling(config.output_dir, given.prompt, given.sample, given.temperature, config.seed)
        return
    run_training(config, given.prompt, given.temperature)


if __name__ == "__main__":
    common.define_flags(Config)
    flags.DEFINE_integer(
        "sample", None, "Print so many new characters, by a finished run.", lower_bound=1
    )
    flags.DEFINE_string("prompt", "In the beginning", "What a sample goes on from.")
    text = "Of a sample: lower, and it dares less."
    flags.DEFINE(common.FiniteFloatParser(above=0), "temperature", 0.8, text)
    app.run(main)
