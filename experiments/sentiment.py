"""What does an LSTM learn of long reviews when its gradient reaches back 30 words?

Train:    python -m experiments.sentiment --k1=30 --k2=30
Predict:  python -m experiments.sentiment --predict="I love this film, although ..."

--loss_at=chunk asks for the sentiment at the end of every k1 words, --loss_at=end only at the end
of the text, with the gradient of its last k2 words. Full BPTT is k1 = k2 = --max_length.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments import command, figures
from experiments import review_training as training
from experiments.config import flag
from experiments.figures import Curve, Panel
from experiments.files import stop
from experiments.run import RunFolder
from experiments.tasks import imdb, reviews
from experiments.tasks.task import Task
from tbptt_jax import data

LENGTHS = [0, 60, 120, 180, 240, 300, 360, 420, 10**9]


@dataclasses.dataclass(frozen=True)
class Config(reviews.Config):
    """What a run is."""

    NAME = "sentiment"

    predict: str | None = flag(
        None,
        "A text: print the probability after each of its words, by a finished run.",
        saved=False,
    )


def reach(config: reviews.Config, length: int) -> tuple[float, float]:
    """Share of a text's words that receive gradient from any loss, and from the last one."""
    technique = training.technique(config)
    padded = padded_length(config, length)
    matrix = tbptt.credit_matrix(technique.plan, padded)
    scored = np.zeros(padded, bool)
    scored[-1] = True
    if technique.every is not None:
        scored[technique.every - 1 :: technique.every] = True
    words = slice(padded - length, padded)
    scored[: padded - length] = False
    return matrix[scored, words].any(0).mean(), matrix[-1, words].mean()


def padded_length(config: reviews.Config, length: int) -> int:
    """Steps of a text in its batch."""
    multiple = reviews.padding(config.k1 if config.k1 < config.max_length else 1)
    return math.ceil(length / multiple) * multiple


def evaluate(task: Task, state: tbptt.TrainState) -> tuple[np.ndarray, np.ndarray]:
    """For every test text: whether it is classified correctly, and its length."""
    correct, lengths = [], []
    for batch in task.batches("test", 1, None):
        outputs = np.asarray(tbptt.predict(state, batch))
        real = batch.mask[:, -1]
        correct.append((outputs[:, -1].argmax(-1) == batch.targets[:, -1])[real])
        lengths.append(batch.mask.sum(1)[real])
    return np.concatenate(correct), np.concatenate(lengths)


def tables(config: Config, correct: np.ndarray, lengths: np.ndarray) -> str:
    """Accuracy by length, and by how much of the text the last loss's gradient sees."""
    reaches = {n: reach(config, n) for n in np.unique(lengths).tolist()}
    any_loss, last_loss = np.array([reaches[n] for n in lengths.tolist()]).T
    by_length = {
        f"{a + 1} to {b}" if b < 10**9 else f"over {a}": (lengths > a) & (lengths <= b)
        for a, b in itertools.pairwise(LENGTHS)
    }
    by_reach = {
        "all of the text": last_loss == 1,
        "half or more": (last_loss >= 0.5) & (last_loss < 1),
        "a quarter to a half": (last_loss >= 0.25) & (last_loss < 0.5),
        "less than a quarter": last_loss < 0.25,
    }
    columns = ["texts", "accuracy", "words with gradient", "from the last loss"]
    found = []
    for head, groups in {
        "words in the text": by_length,
        "the last loss's gradient sees": by_reach,
    }.items():
        rows = []
        for name, chosen in groups.items():
            if chosen.any():
                shares = [f"{share[chosen].mean():.0%}" for share in (any_loss, last_loss)]
                rows.append([name, int(chosen.sum()), f"{correct[chosen].mean():.1%}", *shares])
        found.append(figures.table([head, *columns], rows))
    return "\n\n".join(found)


def train(config: Config, run: RunFolder) -> None:
    """The whole job: data, training, test, figures."""
    task, _, _, trained = training.train(config, run)
    correct, lengths = evaluate(task, trained.state)
    best, plan = trained.best, training.technique(config).name
    accuracy, seconds = float(correct.mean()), trained.history[-1]["seconds"]
    tested = {"test_accuracy": accuracy, "test_texts": len(correct)}
    validated = {"valid_accuracy": best["valid_score"], "best_epoch": best["epoch"]}
    run.write_result({**tested, **validated, "seconds": seconds})
    column = {name: [row[name] for row in trained.history] for name in trained.history[0]}
    epochs = column["epoch"]
    losses = [Curve("training", epochs, column["train_loss"])]
    losses.append(Curve("validation", epochs, column["valid_loss"]))
    scores = [Curve("validation", epochs, column["valid_score"])]
    panels = [
        Panel("epoch", "loss (nats)", losses),
        Panel("epoch", "validation accuracy", scores, percent=True),
    ]
    run.write_figure("learning_curve.png", figures.curves(panels, f"{config.cell}, {plan}"))
    print("\n" + tables(config, correct, lengths))
    print(
        f"\ntest accuracy {accuracy:.2%} on {len(correct):,} texts ({plan}; epoch {best['epoch']} "
        f"was best on validation; {seconds:.0f} s of training)\n"
        f"saved in {run.path}; try python -m experiments.sentiment --output_dir={run.path} "
        '--predict="I love this film"'
    )


def predict(output_dir: str | None, text: str) -> None:
    """The probability after each word, by a finished run."""
    run = RunFolder.open(output_dir, Config.NAME)
    config, vocabulary, state = training.load_run(run)
    words = imdb.tokenize(text)
    if not words:
        stop("--predict: expected a text with at least one word, got none")
    ids = vocabulary.encode(words, len(words))
    # Padded to few lengths, so that the next text need not be compiled again.
    inputs, mask = data.pad([ids], padded_length(config, len(ids)))
    outputs = tbptt.predict(state, tbptt.Batch(inputs, inputs, mask=mask))
    positive = np.asarray(jax.nn.softmax(outputs[0], axis=-1))[mask[0], 1]
    for word, id_, p in zip(words, ids, positive, strict=True):
        unknown = " (unknown)" if id_ == imdb.Vocabulary.UNKNOWN else ""
        print(f"{p:6.1%} {'#' * round(30 * p):<30} {word}{unknown}")
    ticks = {float(i): word for i, word in enumerate(words)} if len(words) <= 60 else None
    curve = Curve("positive", range(len(words)), positive)
    panel = Panel("word", "positive", [curve], percent=True, limits=(0, 1), ticks=ticks)
    size = max(4.0, min(0.28 * len(words), 16.0)), 2.8
    run.write_figure("prediction.png", figures.curves([panel], size=size))
    print(f"\npositive with {positive[-1]:.1%}; curve saved in {run.path / 'prediction.png'}")


def main(config: Config) -> None:
    """Train, or predict with --predict."""
    if config.predict is not None:
        predict(config.output_dir, config.predict)
        return
    with RunFolder.create(config) as run:
        train(config, run)


if __name__ == "__main__":
    command.run(Config, main)
