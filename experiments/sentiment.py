"""Sentiment of real, long movie reviews by truncated backpropagation through time.

Train:    python -m experiments.sentiment --k1=30 --k2=30
Predict:  python -m experiments.sentiment --predict="I love this film, although ..."

--loss_at=chunk asks for the sentiment at the end of every k1 words, --loss_at=end only at the end
of the text, with the gradient of its last k2 words. Full BPTT is k1 = k2 = --max_length.
"""

import itertools
import math

import jax
import numpy as np
from absl import app, flags

import tbptt_jax as tbptt
from experiments import common, reviews, run_folder
from experiments import review_training as training
from experiments.run_folder import RunFolder
from experiments.tasks.reviews import FAST, Config, padding
from tbptt_jax import data

NAME = "sentiment"


def reach(config: Config, length: int) -> tuple[float, float]:
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


def padded_length(config: Config, length: int) -> int:
    """Steps of a text in its batch."""
    multiple = padding(config.k1 if config.k1 < config.max_length else 1)
    return math.ceil(length / multiple) * multiple


def report(config: Config, right: np.ndarray, lengths: np.ndarray) -> str:
    """Accuracy by length, and by how much of the text the last loss's gradient sees."""
    reaches = {n: reach(config, n) for n in np.unique(lengths).tolist()}
    any_loss, last_loss = np.array([reaches[n] for n in lengths.tolist()]).T

    def rows(groups):
        return [
            [
                name,
                int(chosen.sum()),
                f"{right[chosen].mean():.1%}",
                f"{any_loss[chosen].mean():.0%}",
                f"{last_loss[chosen].mean():.0%}",
            ]
            for name, chosen in groups
            if chosen.any()
        ]

    edges = [0, 60, 120, 180, 240, 300, 360, 420, 10**9]
    by_length = [
        (f"{a + 1} to {b}" if b < 10**9 else f"over {a}", (lengths > a) & (lengths <= b))
        for a, b in itertools.pairwise(edges)
    ]
    by_reach = [
        ("all of the text", last_loss == 1),
        ("half or more", (last_loss >= 0.5) & (last_loss < 1)),
        ("a quarter to a half", (last_loss >= 0.25) & (last_loss < 0.5)),
        ("less than a quarter", last_loss < 0.25),
    ]
    columns = ["texts", "accuracy", "words with gradient", "from the last loss"]
    return "\n\n".join(
        common.table([head, *columns], rows(groups))
        for head, groups in (
            ("words in the text", by_length),
            ("the last loss's gradient sees", by_reach),
        )
    )


def plot_history(run: RunFolder, history: list[dict], title: str) -> None:
    """The learning curve."""
    figure, (left, right) = common.figure(1, 2, width=7, height=2.8)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], "o-", label="training")
    left.plot(epochs, [row["valid_loss"] for row in history], "s--", label="validation")
    left.set(xlabel="epoch", ylabel="loss", xticks=epochs)
    left.legend(frameon=False)
    right.plot(epochs, [100 * row["valid_score"] for row in history], "s--", color="C1")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", xticks=epochs)
    figure.suptitle(title)
    figure.savefig(run.path / "learning_curve.png")


def run_training(config: Config) -> None:
    """The whole job: data, training, test, figures."""
    run = RunFolder.create(config, NAME)
    task, _, trained = training.run_training(config, run)
    right, lengths = training.judge(task, trained.state)
    best = trained.best
    result = {
        "test_accuracy": float(right.mean()),
        "test_texts": len(right),
        "valid_accuracy": best["valid_score"],
        "best_epoch": best["epoch"],
        "seconds": trained.history[-1]["seconds"],
        "versions": common.versions(),
    }
    run.write_json("result.json", result)
    plan = training.technique(config).name
    plot_history(run, trained.history, f"{config.cell}, {plan}")
    print("\n" + report(config, right, lengths))
    print(
        f"\ntest accuracy {result['test_accuracy']:.2%} on {len(right):,} texts "
        f"({plan}; epoch {best['epoch']} was best on validation; "
        f"{result['seconds']:.0f} s of training)"
    )
    print(
        f"saved in {run.path}; try python -m experiments.sentiment --output_dir={run.path} "
        '--predict="I love this film"'
    )


def run_prediction(output_dir: str | None, text: str) -> None:
    """The probability after each word, by a finished run."""
    run = RunFolder.open(output_dir, NAME)
    config, vocabulary, state = training.load_run(run)
    words = reviews.tokenize(text)
    if not words:
        common.stop("--predict: expected a text with at least one word, got none")
    ids = vocabulary.encode(words, len(words))
    # Padded to few lengths, so that the next text need not be compiled again.
    inputs, mask = data.pad([ids], padded_length(config, len(ids)))
    outputs = tbptt.predict(state, tbptt.Batch(inputs, inputs, mask=mask))
    positive = np.asarray(jax.nn.softmax(outputs[0], axis=-1))[mask[0], 1]
    for word, id_, p in zip(words, ids, positive, strict=True):
        unknown = " (unknown)" if id_ == reviews.Vocabulary.UNKNOWN else ""
        print(f"{p:6.1%} {'#' * round(30 * p):<30} {word}{unknown}")
    figure, axes = common.figure(1, 1, width=max(4.0, min(0.28 * len(words), 16.0)), height=2.8)
    axes.plot(range(len(words)), 100 * positive, ".-")
    axes.axhline(50, color="0.7", linewidth=0.8)
    axes.set(ylabel="positive (%)", ylim=(0, 100))
    if len(words) <= 60:
        axes.set_xticks(range(len(words)), words, rotation=90)
    else:
        axes.set_xlabel("word")
    figure.savefig(run.path / "prediction.png")
    print(f"\npositive with {positive[-1]:.1%}; curve saved in {run.path / 'prediction.png'}")


def main(argv: list[str]) -> None:
    """Train, or predict where --predict is given."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME, FAST)
    if flags.FLAGS.predict is not None:
        run_prediction(config.output_dir, flags.FLAGS.predict)
    else:
        run_training(config)


if __name__ == "__main__":
    common.define_flags(Config)
    flags.DEFINE_string(
        "predict", None, "A text: print the probability after each of its words, by a finished run."
    )
    app.run(main)
