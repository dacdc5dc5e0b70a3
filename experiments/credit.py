"""What truncation loses on real reviews: credit by lag, bias against k2, and word by word.

python -m experiments.credit                        train as experiments.sentiment does, then look
python -m experiments.credit --run=runs/sentiment-TIME    look at a finished run
python -m experiments.credit --k2=10 --text="I love this film ..."
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import app

import tbptt_jax as tbptt
from experiments import common, reviews, run_folder
from experiments import review_training as training
from experiments.common import flag
from experiments.run_folder import RunFolder
from experiments.tasks.reviews import FAST, Texts
from experiments.tasks.reviews import Config as Training
from tbptt_jax import data

NAME = "credit"
PROBE_TEXTS, PROBE_LENGTH = 32, 240
# A hundred words that say what they think in the first four, as in the question.
TEXT = (
    "I love this film. It is set in a small town by the sea, where a man who repairs clocks lives "
    "with his sister above their shop. One morning a letter arrives from a cousin in the city, and "
    "the two of them take the train to see him. The second part takes place in his office and in a "
    "hotel nearby, over three days in winter. There is a long scene on a bridge, then a dinner "
    "with the neighbours, and in the end they return home and open the shop again on a Monday."
)


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """What is looked at, and how it is trained."""

    run: str | None = flag(None, "A finished run's folder to look at, instead of training.")
    text: str = flag(TEXT, "A positive review to look at word by word.")


def probe(config: Config, part: Texts, loss_at: str) -> tbptt.Batch:
    """The longest texts, their last words, as one batch with the losses asked for."""
    length = min(PROBE_LENGTH, config.max_length)
    longest = sorted(range(len(part.ids)), key=lambda i: -len(part.ids[i]))[:PROBE_TEXTS]
    (batch,) = data.bucketed_batches(
        [part.ids[i][-length:] for i in longest],
        part.labels[longest],
        batch_size=len(longest),
        multiple=length,
        loss_every=config.k1 if loss_at == "chunk" else None,
    )
    return batch


def by_lag(
    config: Config, states: dict[str, tbptt.TrainState], part: Texts, run: RunFolder
) -> dict[str, Any]:
    """Credit by lag of a loss at the text's end: a figure, and the numbers."""
    batch = probe(config, part, "end")
    lags = np.arange(batch.mask.shape[1])
    found = {
        name: tbptt.credit_by_lag(state, batch, max_lag=int(lags[-1]))
        for name, state in states.items()
    }
    figure, axes = common.figure(1, 2, width=7.5, height=3)
    titles = {"params": "gradient of the parameters", "carry": "gradient of the carry"}
    for ax, (field, title) in zip(axes, titles.items(), strict=True):
        for style, (name, credit) in zip(("C0-", "C1--"), found.items(), strict=True):
            ax.plot(lags, getattr(credit, field), style, label=name, linewidth=1.2)
        ax.axvspan(config.k2 - 0.5, lags[-1], color="0.93", zorder=0)
        ax.set(title=f"{title}, its part of each lag", xlabel="words before the loss", yscale="log")
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("norm")
    axes[0].legend(frameon=False)
    axes[1].text(config.k2 + 2, axes[1].get_ylim()[1] / 2, f"beyond k2 = {config.k2}", va="top")
    figure.savefig(run.path / "credit_by_lag.png")
    rows = []
    for name, credit in found.items():
        size = np.asarray(credit.params)
        beyond = size[config.k2 :].sum() / size.sum()
        half = int(np.searchsorted(np.cumsum(size) / size.sum(), 0.5))
        at = [f"{size[k]:.1e}" for k in (0, 9, 29, 99, 199) if k < len(size)]
        rows.append([name, *at, half, f"{beyond:.0%}"])
    head = [f"lag {k}" for k in (0, 9, 29, 99, 199) if k < len(lags)]
    columns = ["network", *head, "half of it within", f"beyond k2 = {config.k2}"]
    print("\nNorm of the parameters' gradient by lag, loss at the end of the text:\n")
    print(common.table(columns, rows))
    return {
        name: {field: np.asarray(n).tolist() for field, n in c._asdict().items()}
        for name, c in found.items()
    }


def by_k2(
    config: Config, state: tbptt.TrainState, part: Texts, run: RunFolder
) -> dict[str, dict[int, dict[str, float]]]:
    """Bias of the truncated gradient against k2: a figure, a table and the numbers."""
    found: dict[str, dict[int, tbptt.Bias]] = {}
    for loss_at in ("end", "chunk"):
        batch = probe(config, part, loss_at)
        length = batch.mask.shape[1]
        k1 = length if loss_at == "end" else min(config.k1, length)
        reaches = sorted({k for k in (1, 3, 10, 30, 60, 120) if k < length} | {length})
        name = "loss at the end" if loss_at == "end" else f"loss every {k1} words"
        found[name] = {
            k2: tbptt.gradient_bias(state, batch, tbptt.Truncation(k1, k2, config.anchor))["all"]
            for k2 in common.progress(reaches, name)
        }
    figure, axes = common.figure(1, 2, width=7.5, height=3)
    for style, (name, biases) in zip(("C0o-", "C1s--"), found.items(), strict=True):
        axes[0].plot(biases.keys(), [b.relative for b in biases.values()], style, label=name)
        axes[1].plot(biases.keys(), [b.cosine for b in biases.values()], style)
    axes[0].set(ylabel="relative bias |g - f| / |f|", xlabel="k2 (words)", xscale="log")
    axes[1].set(ylabel="cosine of g and f", xlabel="k2 (words)", xscale="log")
    axes[0].legend(frameon=False)
    figure.suptitle("truncated gradient g against full BPTT's f", fontsize=9)
    figure.savefig(run.path / "bias.png")
    print("\nTruncated gradient g against full BPTT's f:\n")
    rows = [
        [name, k2, f"{b.relative:.3f}", f"{b.cosine:.3f}", f"{b.norm_ratio:.3f}"]
        for name, biases in found.items()
        for k2, b in biases.items()
    ]
    print(common.table(["losses", "k2", "relative bias", "cosine", "|g| / |f|"], rows))
    return {n: {k: b._asdict() for k, b in biases.items()} for n, biases in found.items()}


def word_gradients(
    config: Config, state: tbptt.TrainState, ids: np.ndarray, label: int, full: bool
) -> np.ndarray:
    """Norm of the gradient that each word's embedding receives under the run's truncation.

    Each word is given a row of the embedding of its own, so that two of a kind are told apart.
    """
    encoder = state.params["encoder"]
    own = {**encoder["layers"][0], "embedding": encoder["layers"][0]["embedding"][ids]}
    params = {**state.params, "encoder": {"layers": {**encoder["layers"], 0: own}}}
    (batch,) = data.bucketed_batches(
        [np.arange(len(ids), dtype=np.int32)],
        np.array([label]),
        batch_size=1,
        multiple=config.k1,
        loss_every=config.k1 if config.loss_at == "chunk" else None,
    )
    length = batch.mask.shape[1]
    plan = tbptt.Truncation(length, length) if full else training.technique(config).plan
    functions = state.functions._replace(vocabulary=len(ids))
    state = dataclasses.replace(state, functions=functions, params=params)
    grads = tbptt.gradient(state, batch, plan)
    return np.linalg.norm(grads["encoder"]["layers"][0]["embedding"], axis=-1)


def by_word(
    config: Config, state: tbptt.TrainState, vocabulary: reviews.Vocabulary, text: str, run: Any
) -> dict[str, Any]:
    """Which words of a text receive gradient: a figure, and the numbers."""
    words = reviews.tokenize(text)
    ids = vocabulary.encode(words, len(words))
    end, chunk = (dataclasses.replace(config, loss_at=at) for at in ("end", "chunk"))
    plan = f"k1 = {config.k1}, k2 = {config.k2}"
    norms = {
        "full BPTT, loss at the end": word_gradients(end, state, ids, 1, full=True),
        f"{plan}, loss at the end": word_gradients(end, state, ids, 1, full=False),
        f"{plan}, loss every {config.k1} words": word_gradients(chunk, state, ids, 1, full=False),
    }
    draw_words(words, norms, run.path / "words.png")
    print(f"\nWords of a text that receive gradient ({len(words)} words, label positive):\n")
    rows = [
        [name, f"{(n > 0).sum()} of {len(n)}", f"{n[: min(4, len(n))].sum() / n.sum():.1%}"]
        for name, n in norms.items()
    ]
    print(common.table(["truncation", "words with gradient", "share of the first 4"], rows))
    return {"words": words, "norms": {name: n.tolist() for name, n in norms.items()}}


def draw_words(words: list[str], norms: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """The text once for each truncation, each word shaded by the gradient it receives."""
    from matplotlib import cm, colors

    columns = 100
    places, row, column = [], 0, 0
    for word in words:
        if column + len(word) > columns:
            row, column = row + 1, 0
        places.append((row, column))
        column += len(word) + 1
    figure, axes = common.figure(
        len(norms), 1, width=7.5, height=0.2 + len(norms) * 0.2 * (row + 2.6)
    )
    for ax, (name, values) in zip(np.atleast_1d(axes), norms.items(), strict=True):
        ax.set(xlim=(0, columns), ylim=(row + 1, 0))
        ax.axis("off")
        ax.set_title(name, loc="left", fontsize=9, fontweight="bold")
        shades = np.sqrt(values / values.max()) if values.max() > 0 else values
        for word, (r, c), value, shade in zip(words, places, values, shades, strict=True):
            color = cm.Blues(0.12 + 0.7 * shade) if value > 0 else "white"
            dark = value > 0 and np.mean(colors.to_rgb(color)) < 0.55
            ax.text(
                c,
                r + 0.5,
                word,
                family="monospace",
                fontsize=7,
                va="center",
                color="white" if dark else "black" if value > 0 else "0.65",
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2},
            )
    figure.savefig(path)


def main(argv: list[str]) -> None:
    """Train or load, then look."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME, FAST)
    if not reviews.tokenize(config.text):
        common.stop("--text: expected a text with at least one word, got none")
    if config.run is None:
        run = RunFolder.create(config, NAME)
        _, parts, trained = training.run_training(config, run)
        state = trained.state
        vocabulary = common.load(reviews.Vocabulary.load, run.path / "vocabulary.json")
    else:
        own, vocabulary, state = training.load_run(RunFolder.open(config.run, "sentiment"))
        if not config.resume:
            given = {name: getattr(config, name) for name in common.given_flags(Config)}
            config = Config(**{**dataclasses.asdict(own), "output_dir": None, **given})
        run = RunFolder.create(config, NAME)
        parts, _ = training.load_data(config)
    states = {"trained": state, "untrained": training.untrained(config, len(vocabulary))}
    run.write_json(
        "result.json",
        {
            "by_lag": by_lag(config, states, parts["valid"], run),
            "by_k2": by_k2(config, state, parts["valid"], run),
            "by_word": by_word(config, state, vocabulary, config.text, run),
            "versions": common.versions(),
        },
    )
    print(f"\nsaved in {run.path}: credit_by_lag.png, bias.png, words.png and result.json")


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
