"""What does truncation lose of the gradient on real reviews?

python -m experiments.credit                        train as experiments.sentiment does, then look
python -m experiments.credit --run=runs/sentiment-TIME    look at a finished run
python -m experiments.credit --k2=10 --text="I love this film ..."

Credit by lag, bias against k2, and the gradient word by word.
"""

import dataclasses

import numpy as np
from tqdm import tqdm

import tbptt_jax as tbptt
from experiments import command, figures
from experiments import review_training as training
from experiments.config import flag, set_flags
from experiments.figures import Curve, Panel
from experiments.files import stop
from experiments.run import RunFolder
from experiments.tasks import imdb, reviews
from experiments.tasks.reviews import Texts
from tbptt_jax import Batch, TrainState, Truncation, data

PROBE_TEXTS, PROBE_LENGTH = 32, 240
LAGS, REACHES = (0, 9, 29, 99, 199), (1, 3, 10, 30, 60, 120)
# A hundred words whose opinion is in the first four.
TEXT = (
    "I love this film. It is set in a small town by the sea, where a man who repairs clocks lives "
    "with his sister above their shop. One morning a letter arrives from a cousin in the city, and "
    "the two of them take the train to see him. The second part takes place in his office and in a "
    "hotel nearby, over three days in winter. There is a long scene on a bridge, then a dinner "
    "with the neighbours, and in the end they return home and open the shop again on a Monday."
)


@dataclasses.dataclass(frozen=True)
class Config(reviews.Config):
    """What is looked at, and how it is trained."""

    NAME = "credit"

    run: str | None = flag(None, "A finished run's folder to look at, instead of training.", 1)
    text: str = flag(TEXT, "A positive review to look at word by word.")


def probe(config: Config, part: Texts, loss_at: str) -> Batch:
    """The longest texts, their last words, as one batch with the requested losses."""
    length = min(PROBE_LENGTH, config.max_length)
    longest = sorted(range(len(part.texts)), key=lambda i: -len(part.texts[i]))[:PROBE_TEXTS]
    (batch,) = data.bucketed_batches(
        [part.texts[i][-length:] for i in longest],
        part.labels[longest],
        batch_size=len(longest),
        multiple=length,
        loss_every=config.k1 if loss_at == "chunk" else None,
    )
    return batch


def by_lag(
    config: Config, states: dict[str, TrainState], part: Texts
) -> dict[str, dict[str, list[float]]]:
    """Credit by lag of a loss at the text's end, and a table of it."""
    batch, found, rows = probe(config, part, "end"), {}, []
    length = batch.mask.shape[1]
    lags = [k for k in LAGS if k < length]
    for name, state in states.items():
        credit = tbptt.credit_by_lag(state, batch, max_lag=length - 1)
        found[name] = {field: np.asarray(n).tolist() for field, n in credit._asdict().items()}
        size = np.asarray(credit.params)
        half = int(np.searchsorted(np.cumsum(size) / size.sum(), 0.5))
        beyond = size[config.k2 :].sum() / size.sum()
        rows.append([name, *(f"{size[k]:.1e}" for k in lags), half, f"{beyond:.0%}"])
    columns = ["network", *(f"lag {k}" for k in lags), "half of it within"]
    print("\nNorm of the parameters' gradient by lag, loss at the end of the text:\n")
    print(figures.table([*columns, f"beyond k2 = {config.k2}"], rows))
    return found


def lag_panels(config: Config, found: dict[str, dict[str, list[float]]]) -> list[Panel]:
    """The norm by lag, of parameters and of the carry."""
    count = len(next(iter(found.values()))["params"])
    beyond = config.k2 - 0.5, count - 1, f"beyond k2 = {config.k2}"
    return [
        Panel(
            "lag (words before the loss)",
            f"norm of the gradient of the {what}",
            [Curve(name, range(count), credit[field]) for name, credit in found.items()],
            log="y",
            beyond=beyond,
        )
        for field, what in (("params", "parameters"), ("carry", "carry"))
    ]


def by_k2(config: Config, state: TrainState, part: Texts) -> dict[str, dict[int, dict[str, float]]]:
    """Bias of the truncated gradient against k2, and a table of it."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for loss_at in ("end", "chunk"):
        batch = probe(config, part, loss_at)
        length = batch.mask.shape[1]
        k1 = length if loss_at == "end" else min(config.k1, length)
        name = "loss at the end" if loss_at == "end" else f"loss every {k1} words"
        found[name] = {}
        for k2 in tqdm([*(k for k in REACHES if k < length), length], name, leave=False):
            bias = tbptt.gradient_bias(state, batch, Truncation(k1, k2, config.anchor))["all"]
            found[name][k2] = bias._asdict()
    print("\nTruncated gradient g against full BPTT's f:\n")
    rows = [
        [name, k2, *(f"{b[key]:.3f}" for key in ("relative", "cosine", "norm_ratio"))]
        for name, biases in found.items()
        for k2, b in biases.items()
    ]
    print(figures.table(["losses", "k2", "relative bias", "cosine", "norm of g over f"], rows))
    return found


def bias_panels(found: dict[str, dict[int, dict[str, float]]]) -> list[Panel]:
    """Length and direction of the truncated gradient g against full BPTT's f."""
    ys = {"relative": "relative bias |g - f| / |f|", "cosine": "cosine of g and f"}
    return [
        Panel(
            "k2 (words)",
            y,
            [Curve(name, list(bs), [b[key] for b in bs.values()]) for name, bs in found.items()],
            log="x",
        )
        for key, y in ys.items()
    ]


def word_gradients(config: Config, state: TrainState, ids: np.ndarray, full: bool) -> np.ndarray:
    """Norm of the gradient that each word's embedding receives under the run's truncation.

    Each word has a row of its own in the embedding: a word that occurs twice has two gradients.
    """
    encoder = state.params["encoder"]
    own = {**encoder["layers"][0], "embedding": encoder["layers"][0]["embedding"][ids]}
    params = {**state.params, "encoder": {"layers": {**encoder["layers"], 0: own}}}
    (batch,) = data.bucketed_batches(
        [np.arange(len(ids), dtype=np.int32)],
        np.array([1]),
        batch_size=1,
        multiple=config.k1,
        loss_every=config.k1 if config.loss_at == "chunk" else None,
    )
    length = batch.mask.shape[1]
    plan = Truncation(length, length) if full else training.technique(config).plan
    functions = state.functions._replace(vocabulary=len(ids))
    state = dataclasses.replace(state, functions=functions, params=params)
    grads = tbptt.gradient(state, batch, plan)
    return np.linalg.norm(grads["encoder"]["layers"][0]["embedding"], axis=-1)


def by_word(config: Config, state: TrainState, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The norm of each word's gradient in a positive text, and a table of how many have one."""
    end, chunk = (dataclasses.replace(config, loss_at=at) for at in ("end", "chunk"))
    plan = f"k1 = {config.k1}, k2 = {config.k2}"
    norms = {
        "full BPTT, loss at the end": word_gradients(end, state, ids, full=True),
        f"{plan}, loss at the end": word_gradients(end, state, ids, full=False),
        f"{plan}, loss every {config.k1} words": word_gradients(chunk, state, ids, full=False),
    }
    print(f"\nWords of a text that receive gradient ({len(ids)} words, label positive):\n")
    rows = [
        [name, f"{(n > 0).sum()} of {len(n)}", f"{n[:4].sum() / n.sum():.1%}"]
        for name, n in norms.items()
    ]
    print(figures.table(["truncation", "words with gradient", "share of the first 4"], rows))
    return norms


def look(
    config: Config,
    run: RunFolder,
    part: Texts,
    vocabulary: imdb.Vocabulary,
    state: TrainState,
) -> None:
    """Report, draw and save what a trained network's gradients look like."""
    words = imdb.tokenize(config.text)
    states = {"trained": state, "untrained": training.untrained(config, len(vocabulary))}
    lags, biases = by_lag(config, states, part), by_k2(config, state, part)
    norms = by_word(config, state, vocabulary.encode(words, len(words)))
    by_words = {"words": words, "norms": {name: n.tolist() for name, n in norms.items()}}
    run.write_result({"by_lag": lags, "by_k2": biases, "by_word": by_words})
    run.write_figure("credit_by_lag.png", figures.curves(lag_panels(config, lags)))
    title = "truncated gradient g against full BPTT's f"
    run.write_figure("bias.png", figures.curves(bias_panels(biases), title))
    run.write_figure("words.png", figures.shaded_words(words, norms))
    print(f"\nsaved in {run.path}: credit_by_lag.png, bias.png, words.png and result.json")


def main(config: Config) -> None:
    """Train or load, then look."""
    if not imdb.tokenize(config.text):
        stop("--text: expected a text with at least one word, got none")
    if config.run is None:
        with RunFolder.create(config) as run:
            _, parts, vocabulary, trained = training.train(config, run)
            look(config, run, parts["valid"], vocabulary, trained.state)
        return
    own, vocabulary, state = training.load_run(RunFolder.open(config.run, "sentiment"))
    if not config.resume:
        config = Config(**{**dataclasses.asdict(own), "output_dir": None, **set_flags(Config)})
    parts, _ = reviews.load_texts(config)
    with RunFolder.create(config) as run:
        look(config, run, parts["valid"], vocabulary, state)


if __name__ == "__main__":
    command.run(Config, main)
