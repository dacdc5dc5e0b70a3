"""Training on reviews: what a run is, its batches, network and loop."""

import dataclasses
import math
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import common, reviews
from experiments.common import flag
from tbptt_jax import data

CELLS = {"lstm": tbptt.LSTM, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is."""

    k1: int = flag(30, "Words between parameter updates.", 1)
    k2: int = flag(30, "Words that the gradient reaches back.", 1)
    anchor: Literal["update", "loss"] = flag(
        "update", "What k2 is counted from: the end of the window, or each loss."
    )
    loss_at: Literal["chunk", "end"] = flag(
        "chunk", "Ask for the sentiment after every k1 words, or at the text's end only."
    )
    cell: Literal["lstm", "gru", "rnn"] = flag("lstm", "Recurrent cell.")
    embedding: int = flag(64, "Size of a word's embedding.", 1)
    hidden: int = flag(64, "Units of the cell.", 1)
    dropout: float = flag(0.5, "Share of embeddings and outputs dropped while training.", 0)
    word_dropout: float = flag(0.2, "Share of whole words dropped while training.", 0)
    vocabulary: int = flag(10_000, "Ids; rarer words share one.", 3)
    max_length: int = flag(420, "Longer texts keep their last so many words.", 1)
    epochs: int = flag(3, "Passes over the training texts.", 1)
    batch_size: int = flag(64, "Texts in a batch.", 1)
    learning_rate: float = flag(2e-3, "Adam's, at first; a cosine takes it to 0 by the end.", 0)
    clip: float = flag(1.0, "Largest norm of a gradient.", 0)
    averaging: float = flag(
        0.998, "Decay, per batch, of the average of the parameters, which is what is kept.", 0
    )
    seed: int = flag(0, "Of the weights, the order of the texts and the dropout.", 0)
    data_dir: str | None = flag(None, "The aclImdb folder, instead of the installed package.")
    output_dir: str | None = flag(None, "Folder of the run; default runs/sentiment-TIME.")
    fast: bool = flag(False, "A small run of under a minute: fewer, shorter texts.")


FAST = {
    "max_length": 120,
    "epochs": 4,
    "vocabulary": 5_000,
    "hidden": 32,
    "embedding": 32,
    "dropout": 0.3,
    "learning_rate": 5e-3,
    "averaging": 0.95,
}


def from_flags() -> Config:
    """The run that the command line asks for; --fast changes what it leaves open."""
    config = common.from_flags(Config)
    if config.fast:
        given = common.given_flags(Config)
        config = dataclasses.replace(config, **{k: v for k, v in FAST.items() if k not in given})
    return config


def describe(config: Config) -> str:
    """The truncation and the losses of a run, in words."""
    anchor = "" if config.anchor == "update" else f", anchor = {config.anchor}"
    return f"k1 = {config.k1}, k2 = {config.k2}{anchor}, loss at {config.loss_at}"


class Part(NamedTuple):
    """Encoded texts and their labels."""

    ids: list[np.ndarray]
    labels: np.ndarray


def plan(config: Config) -> tbptt.Truncation:
    """The truncation that the run asks for."""
    return tbptt.Truncation(config.k1, config.k2, config.anchor)


def padding(config: Config) -> int:
    """Padded lengths are multiples of this.

    Of k1, so that the last words of every text fall in the last window; and not too small, since
    each length is compiled once. A window that holds any text whole needs no multiple of its own.
    """
    if config.k1 >= config.max_length:
        return 60
    return config.k1 * math.ceil(60 / config.k1)


def load_data(config: Config) -> tuple[dict[str, Part], reviews.Vocabulary]:
    """The texts of "train", "valid" and "test" as ids; the vocabulary is that of the first."""
    try:
        splits = reviews.load(config.data_dir)
    except reviews.DataError as error:
        common.stop(str(error))
    step = 6 if config.fast else 1  # spread over the labels, which stand in blocks
    tokens = [[reviews.tokenize(text) for text in split.texts[::step]] for split in splits]
    vocabulary = reviews.Vocabulary.build(tokens[0], config.vocabulary)
    parts = {}
    for name, texts, split in zip(("train", "valid", "test"), tokens, splits, strict=True):
        ids = [vocabulary.encode(text, config.max_length) for text in texts]
        parts[name] = Part(ids, split.labels[::step])
    return parts, vocabulary


def make_batches(config: Config, part: Part, rng: np.random.Generator | None) -> list[tbptt.Batch]:
    """Batches of similar length with the losses that the run asks for."""
    return data.bucketed_batches(
        part.ids,
        part.labels,
        batch_size=config.batch_size,
        multiple=padding(config),
        loss_every=config.k1 if config.loss_at == "chunk" else None,
        rng=rng,
    )


def make_model(config: Config, vocabulary_size: int) -> tbptt.SequenceModel:
    """Embedding, one recurrent cell, two classes; dropout on both sides of the cell."""
    rngs = nnx.Rngs(config.seed)
    options = {"bias_init": remember} if config.cell == "lstm" else {}
    return tbptt.SequenceModel(
        encoder=nnx.Sequential(
            nnx.Embed(vocabulary_size, config.embedding, rngs=rngs),
            nnx.Dropout(config.word_dropout, broadcast_dims=(-1,), rngs=rngs),
            nnx.Dropout(config.dropout, rngs=rngs),
        ),
        core=CELLS[config.cell](config.embedding, config.hidden, rngs=rngs, **options),
        readout=nnx.Sequential(
            nnx.Dropout(config.dropout, rngs=rngs), nnx.Linear(config.hidden, 2, rngs=rngs)
        ),
    )


def remember(key: jax.Array, shape: tuple[int], dtype: Any) -> jax.Array:
    """An LSTM's biases with forget gates that begin open (Jozefowicz et al. 2015)."""
    del key
    gates = jnp.zeros((4, shape[0] // 4), dtype)  # input, forget, candidate, output
    return gates.at[1].set(1).reshape(shape)


def make_state(config: Config, vocabulary_size: int, updates: int = 1) -> tbptt.TrainState:
    """The state before training."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, updates)),
    )
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(
        make_model(config, vocabulary_size), optimizer, loss, seed=config.seed
    )


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where the class is right, [B, T]."""
    return (outputs.argmax(-1) == targets).astype(outputs.dtype)


def at_end(batch: tbptt.Batch) -> tbptt.Batch:
    """The same texts, judged at their last word."""
    weights = np.zeros(batch.mask.shape, np.float32)
    weights[:, -1] = batch.mask[:, -1]
    return batch._replace(weights=weights)


def count_updates(config: Config, batches: list[tbptt.Batch]) -> int:
    """Optimizer steps of an epoch: the windows in which some text has a loss."""
    steps = [np.arange(0, b.weights.shape[1], config.k1) for b in batches]
    per_window = [np.add.reduceat(b.weights.sum(0), s) for b, s in zip(batches, steps, strict=True)]
    return sum(int((w > 0).sum()) for w in per_window)


def load_run(
    run: common.RunFolder,
) -> tuple[Config, reviews.Vocabulary, tbptt.TrainState]:
    """What a finished run was, and its network."""
    config = Config(**run.read_json("config.json"))
    vocabulary = reviews.Vocabulary.load(run.path / "vocabulary.json")
    state = make_state(config, len(vocabulary))
    return config, vocabulary, dataclasses.replace(state, params=run.load_params(state.params))


class Trained(NamedTuple):
    """What training leaves: the state of the best epoch, and what the run was like."""

    state: tbptt.TrainState
    history: list[dict]
    interrupted: bool


def run_training(config: Config, run: common.RunFolder) -> tuple[dict[str, Part], Trained]:
    """Load the texts and train, leaving in the folder what `load_run` needs."""
    begun = time.perf_counter()
    parts, vocabulary = load_data(config)
    vocabulary.save(run.path / "vocabulary.json")
    sizes = ", ".join(f"{len(part.ids):,} {name}" for name, part in parts.items())
    print(f"{sizes} texts, {len(vocabulary):,} words, in {time.perf_counter() - begun:.1f} s")
    return parts, train(config, run, parts, len(vocabulary))


def train(config: Config, run: common.RunFolder, parts: dict[str, Part], words: int) -> Trained:
    """Train, and keep the averaged parameters that were best on the validation texts."""
    valid = [at_end(b) for b in make_batches(config, parts["valid"], None)]
    batches = make_batches(config, parts["train"], np.random.default_rng((config.seed, 0)))
    state = make_state(config, words, config.epochs * count_updates(config, batches))
    averager = optax.ema(config.averaging)
    average_of = jax.jit(averager.update)
    averages = averager.init(state.params)
    best = average = state.params
    history, seconds = [], 0.0
    total = config.epochs * sum(int(b.mask.sum()) for b in batches)
    with (
        common.ctrl_c() as pressed,
        tqdm(total=total, unit=" steps", unit_scale=True, smoothing=0.1, mininterval=0.5) as bar,
    ):
        for epoch in range(config.epochs):
            if epoch:
                rng = np.random.default_rng((config.seed, epoch))
                batches = make_batches(config, parts["train"], rng)
            losses, begun = [], time.perf_counter()
            for i, batch in enumerate(batches):
                state, metrics = tbptt.train_step(state, batch, plan(config))
                average, averages = average_of(state.params, averages)
                losses.append((metrics.loss, metrics.weight))
                bar.update(int(batch.mask.sum()))
                if i % 25 == 0 or pressed:
                    # Reading a value waits for the device, so it is done now and then.
                    now = tbptt.evaluate(state, at_end(batch), {"accuracy": accuracy})
                    loss = weighted_mean(losses[-25:])
                    so_far = max((r["valid_accuracy"] for r in history), default=0.0)
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}/{config.epochs} loss {loss:.3f} "
                        f"accuracy {now['accuracy']:.1%} valid {so_far:.1%}"
                    )
                if pressed:
                    break
            jax.block_until_ready(average)
            seconds += time.perf_counter() - begun
            averaged = dataclasses.replace(state, params=average)
            result = tbptt.evaluate(averaged, valid, {"accuracy": accuracy})
            row = {
                "epoch": epoch + 1,
                "updates": int(state.step),
                "train_loss": weighted_mean(losses),
                "valid_loss": result["loss"],
                "valid_accuracy": result["accuracy"],
                "seconds": round(seconds, 2),
            }
            history.append(row)
            run.log(**row)
            if row is max(history, key=rank):
                best = average
                run.save_params(best)
            if pressed:
                break
    return Trained(dataclasses.replace(state, params=best), history, bool(pressed))


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """What makes an epoch better: its accuracy on the validation texts, and then its loss there."""
    return row["valid_accuracy"], -row["valid_loss"]


def weighted_mean(losses: list[tuple[jax.Array, jax.Array]]) -> float:
    """Mean loss of the scored words of many updates."""
    loss, weight = (np.concatenate(parts) for parts in zip(*losses, strict=True))
    return float(np.average(loss, weights=weight)) if weight.sum() else math.nan


def judge(config: Config, state: tbptt.TrainState, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """For every text: whether it is classified rightly, and its length; batch by batch."""
    right, lengths = [], []
    for batch in make_batches(config, part, None):
        outputs = np.asarray(tbptt.predict(state, batch))
        real = batch.mask[:, -1]
        right.append((outputs[:, -1].argmax(-1) == batch.targets[:, -1])[real])
        lengths.append(batch.mask.sum(1)[real])
    return np.concatenate(right), np.concatenate(lengths)
