"""How well does an LSTM predict the next character of a book?

Train:   python -m experiments.char_lm
Sample:  python -m experiments.char_lm --sample=500 --prompt="In the beginning" --temperature=0.8

The book is one stream of 4.3 million characters. The carry runs through it, an update is made every
k1 characters, and the gradient reaches back k2. The bits per character are compared with those of
counts: how often a character came after the same few characters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments import command, figures, trainer
from experiments.config import RunOptions, flag
from experiments.figures import Curve, Panel
from experiments.files import DataError, stop
from experiments.run import RunFolder
from experiments.tasks import Task, book
from experiments.tasks.task import Part
from experiments.technique import Recipe, Technique, warn_beyond
from tbptt_jax.types import Carry, Model, Params

CHARACTERS = "characters.json"
ORDERS = 6  # how many characters the longest count looks back, plus 1
RESTARTED = 0.05  # share of the pieces for training that start with an empty carry
PRIOR = 5.0  # how often a shorter context counts as seen after a longer one


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a run is."""

    NAME = "char_lm"

    k1: int = flag(25, "Characters between parameter updates.", 1, fast=50)
    k2: int = flag(25, "Characters that the gradient reaches back.", 1, fast=50)
    anchor: Literal["update", "loss"] = flag(
        "update", "What k2 is counted from: the end of the window, or each loss."
    )
    hidden: int = flag(256, "Units of the LSTM.", 1, fast=64)
    epochs: int = flag(2, "Passes over the part for training.", 1, fast=5)
    learning_rate: float = flag(
        1e-2, "Adam's, at first; a cosine takes it to 0 by the end.", above=0
    )
    characters: int = flag(
        4_300_000, "Characters of the book, from its beginning.", 1_000, fast=60_000
    )
    piece: int = flag(500, "Characters of a lane in a batch, about; at least k1.", 1, fast=100)
    seed: int = flag(0, "Of the weights and where passes start; of a sample.", 0)
    fast: bool = flag(False, "A small run of under 30 seconds: less of the book, fewer units.")
    sample: int | None = flag(
        None, "Print so many new characters, by a finished run.", 1, saved=False
    )
    prompt: str = flag("In the beginning", "What a sample continues.", saved=False)
    temperature: float = flag(
        0.8, "Of a sample: lower, and likely characters are likelier.", above=0, saved=False
    )


def make_task(config: Config, text: book.Text) -> Task:
    """The task of a run; a text without parts has a network all the same."""
    task = book.make_task(
        text,
        hidden=config.hidden,
        piece=config.piece,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
    )
    return task._replace(batches=functools.partial(restart_at_times, task.batches))


def restart_at_times(
    batches: Callable[..., list[tbptt.Batch]],
    part: Part,
    multiple: int,
    rng: np.random.Generator | None,
) -> list[tbptt.Batch]:
    """The batches; in training the carry of some lanes restarts in each.

    A test and a sample start with an empty carry. One that training met at the start of a pass
    only may lead anywhere: of 32 lanes for test one stayed at 15 bits per character to its end.
    """
    found = batches(part, multiple, rng)
    if rng is not None:
        for batch in found:
            batch.reset[:, 0] |= rng.random(len(batch.reset)) < RESTARTED
    return found


def counted_bits(train: np.ndarray, test: np.ndarray, symbols: int) -> list[float]:
    """Bits per character by counts alone; entry n looks at the n characters before.

    The counts after n characters have those after n - 1 as their prior, and so on down to all
    characters alike, so that nothing is impossible. The first characters of the test, which lack
    some before them, do not count.
    """
    train, test = train.astype(np.int64), test.astype(np.int64)  # the codes of contexts are large
    places = np.arange(ORDERS - 1, len(test))
    known = np.full(len(places), 1 / symbols)
    bits = []
    context, context_train = np.zeros(len(test), np.int64), np.zeros(len(train), np.int64)
    for order in range(ORDERS):
        if order:
            # The code of a context: its characters as the digits of a number.
            place = symbols ** (order - 1)
            context[order:] += place * test[: len(test) - order]
            context_train[order:] += place * train[: len(train) - order]
        seen = _count(context_train[order:], context[places])
        pair_seen = _count(
            context_train[order:] * symbols + train[order:],
            context[places] * symbols + test[places],
        )
        known = (pair_seen + PRIOR * known) / (seen + PRIOR)
        bits.append(float(-np.log2(known).mean()))
    return bits


def _count(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of the wanted codes occurs among all codes."""
    values, counts = np.unique(codes, return_counts=True)
    where = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[where] == wanted, counts[where], 0)


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
    """Draw `count` ids, int32 [count], each from what the network predicts after the one before.

    `carry` and `logits` [symbols] are those after the prompt; a temperature below 1 makes the
    likely likelier.
    """

    def draw(before: tuple[Carry, jax.Array], key: jax.Array) -> tuple[tuple, jax.Array]:
        carry, logits = before
        drawn = jax.random.categorical(key, logits / temperature)
        xs = functions.encode(params, drawn[None, None], None)
        carry, y = functions.step(params, carry, xs[:, 0])
        return (carry, functions.readout(params, y[:, None], None)[0, 0]), drawn

    return jax.lax.scan(draw, (carry, logits), jax.random.split(key, count))[1]


def sample(state: tbptt.TrainState, text: book.Text, config: Config, count: int) -> str:
    """What follows the prompt: `count` characters, of its temperature and its seed.

    Raises:
      DataError: the book lacks a character of the prompt.
    """
    ids = text.encode(config.prompt)[None]
    functions, params = state.functions, state.params
    carry, ys, _ = tbptt.forward(functions, params, None, tbptt.Window(ids, ids))
    logits = functions.readout(params, ys, None)[0, -1]
    key = jax.random.key(config.seed)
    drawn = generate(functions, params, carry, logits, key, config.temperature, count)
    return text.decode(np.asarray(drawn))


def table(text: book.Text, counted: list[float], bits: float) -> str:
    """The network beside the counts."""
    names = ["counts of characters", "counts after the same 1 character"]
    names += [f"counts after the same {order} characters" for order in range(2, ORDERS)]
    rows = {"each of the characters as likely as any other": math.log2(len(text.characters))}
    rows |= {**dict(zip(names, counted, strict=True)), "LSTM": bits}
    head = ["predicted by", "test bits per character"]
    return figures.table(head, [[name, f"{value:.3f}"] for name, value in rows.items()])


def train(config: Config, run: RunFolder) -> None:
    """The whole job: data, training, test, figure, and a sample."""
    text = book.read(config.characters)
    run.write_json(CHARACTERS, text.characters)
    sizes = ", ".join(f"{len(ids):,} {part}" for part, ids in text.parts.items())
    print(f"{sizes} characters, {len(text.characters)} different ones")
    task, plan = make_task(config, text), tbptt.Truncation(config.k1, config.k2, config.anchor)
    recipe = Recipe(config.epochs, config.learning_rate, task.averaging, seed=config.seed)
    technique, saving = Technique(str(plan), plan), run.saving("training")
    warn_beyond(plan, len(text.parts["train"]) // book.LANES, task.step)
    trained = trainer.fit(task, recipe, technique, saving, run.save_epoch)
    bits = task.score.of(tbptt.evaluate(trained.state, task.batches("test", 1, None)))
    counted = counted_bits(text.parts["train"], text.parts["test"], len(text.characters))
    best, history, seconds = trained.best, trained.history, trained.history[-1]["seconds"]
    bits_of = {"test_bits": bits, "valid_bits": best["valid_score"], "counted_bits": counted}
    run.write_result({**bits_of, "best_epoch": best["epoch"], "seconds": seconds})
    name = f"k1 = {config.k1}, k2 = {config.k2}, LSTM of {config.hidden}"
    epochs = [row["epoch"] for row in history]
    lines = [Curve("training", epochs, [row["train_loss"] / math.log(2) for row in history])]
    lines.append(Curve("validation", epochs, [row["valid_score"] for row in history]))
    levels = {f"counts after {order}, test": counted[order] for order in (3, ORDERS - 1)}
    panel = Panel("pass over the book", "bits per character", lines, title=name, levels=levels)
    run.write_figure("learning_curve.png", figures.curves([panel], size=(5, 3.2)))
    print("\n" + table(text, counted, bits))
    print(
        f"\ntest {bits:.3f} bits per character ({name}; epoch {best['epoch']} was best on "
        f"validation; {seconds:.0f} s of training)"
    )
    if not set(config.prompt) - set(text.characters):
        print(f"\n{config.prompt}{sample(trained.state, text, config, 300)}")
    print(
        f"\nsaved in {run.path}; try python -m experiments.char_lm --output_dir={run.path} "
        f'--sample=1000 --prompt="And it came to pass"'
    )


def write_sample(requested: Config, count: int) -> None:
    """New text by a finished run."""
    run = RunFolder.open(requested.output_dir, Config.NAME)
    config, text = run.read_config(Config), book.Text(run.read_json(CHARACTERS, str), {})
    state = trainer.make_state(make_task(config, text), Recipe(1, 1.0, 0.0))
    state = dataclasses.replace(state, params=run.load_params(state.params))
    try:
        print(requested.prompt + sample(state, text, requested, count))
    except DataError as error:
        stop(f"--prompt: {error}")


def main(config: Config) -> None:
    """Train, or sample with --sample."""
    if not config.prompt:
        stop("--prompt: expected at least one character, got none")
    if config.sample is not None:
        write_sample(config, config.sample)
        return
    if config.k1 > config.piece:
        stop(f"--piece: expected at least k1={config.k1}, got {config.piece}")
    with RunFolder.create(config) as run:
        train(config, run)


if __name__ == "__main__":
    command.run(Config, main)
