"""How can a network learn from first words that its gradient never reaches?

python -m experiments.first_words

A text of 100 words is classified at its end, and the gradient reaches back 30. Invented texts come
first: they open with "I love this film" or "I hate this film" and go on with words that say
nothing. Where all texts are long the opinion words get a gradient of zero, to the bit. Short texts
among them change that, and so does a loss after every 30 words. A text's first N words are a text
of N words, so what is answered after each word tells for how long the opinion is kept.

Then networks are trained on real reviews, and shown the first N words of reviews for test, or the
last N. Texts are padded at their start, so that all end at the last step.
"""

import dataclasses
import statistics
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app

import tbptt_jax as tbptt
from experiments import common, driver, run_folder
from experiments.common import RunOptions, flag
from experiments.run_folder import RunFolder, slug
from experiments.tasks import Task, opinions, reviews
from experiments.tasks.task import Part
from experiments.technique import Recipe, Technique
from tbptt_jax import data

NAME = "first_words"


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What a run is."""

    k2: int = flag(30, "Words that the gradient reaches back; also k1.", opinions.OPENING)
    length: int = flag(100, "Words of a long invented text.", opinions.OPENING)
    short_shares: tuple[float, ...] = flag(
        (0.1, 0.3), "Shares of invented texts that have k2 words at most.", above=0, below=1
    )
    passes: int = flag(25, "Passes over the invented texts.", 1)
    seeds: int = flag(5, "Networks of each kind on invented texts.", 1)
    data_dir: str | None = flag(None, "The aclImdb folder, instead of the installed package.")
    fast: bool = flag(False, "Shorter and fewer texts, fewer networks: under 30 seconds.")


FAST: dict[str, Any] = {"k2": 12, "length": 24, "short_shares": (0.3,), "passes": 4, "seeds": 1}
REVIEWS_FAST: dict[str, Any] = {**reviews.FAST, "hidden": 16, "embedding": 16, "epochs": 1}
REVIEWS_FAST |= {"dropout": 0.0, "word_dropout": 0.0}  # less to compile


class Regime(NamedTuple):
    """A way to train on invented texts, and the share of short ones."""

    technique: Technique
    share: float = 0.0


class Learnt(NamedTuple):
    """What a network came to on invented texts.

    Attributes:
      accuracy: [length], asked after each word of long texts.
      gradient: the largest entry, by size, of the gradient of the opinion words' embeddings, of
        all that were looked at: before training, and after each pass that was the best so far.
      moved: how far training moved an entry of these embeddings, at most.
      history: the driver's.
    """

    accuracy: list[float]
    gradient: float
    moved: float
    history: list[dict[str, Any]]


def check(config: Config) -> None:
    """Refuse what would not ask the question."""
    if config.length <= config.k2:
        common.stop(f"--length: expected more than k2={config.k2} words, got {config.length}")
    first = config.length % config.k2
    if 0 < first < opinions.OPENING:
        common.stop(
            f"--length: the first chunk of a text holds length % k2 = {first} words, expected 0 or "
            f"at least the {opinions.OPENING} of an opening"
        )


def regimes(config: Config) -> dict[str, Regime]:
    """The ways to train on invented texts."""
    shares = [(f"{share:.0%} short", share) for share in config.short_shares]
    whole = opinions.padded(config.length, config.k2)
    cut, full = (tbptt.Truncation(k, k) for k in (config.k2, whole))
    also = [] if config.fast else shares[:1]
    end, reach = "loss at the end", f"k2 = {config.k2}"
    listed = [
        Regime(Technique(f"{end}, {reach}", cut)),
        *(Regime(Technique(f"{end}, {reach}, {name}", cut), share) for name, share in shares),
        Regime(Technique(f"loss every {config.k2}, {reach}", cut, every=config.k2)),
        Regime(Technique(f"{end}, full BPTT", full)),
        *(Regime(Technique(f"{end}, full BPTT, {n}", full), share) for n, share in also),
    ]
    return {regime.technique.name: regime for regime in listed}


def fit(
    run: RunFolder, task: Task, technique: Technique, seed: int, keep: Any = None
) -> driver.Trained:
    """Train as the task asks for."""
    recipe = Recipe(task.epochs, task.learning_rate, task.averaging, seed=seed)
    saving = run.saving(slug(f"{task.name} {technique.name} {seed}"))
    return driver.fit(task, recipe, technique, saving, keep)


def learn(run: RunFolder, config: Config, regime: Regime, seed: int) -> Learnt:
    """Train a network on invented texts, and look at what its opinion words get."""
    technique = regime.technique
    size = {"length": config.length, "reach": config.k2, "epochs": config.passes}
    task = opinions.make_task(**size, share=regime.share, seed=seed)
    # In order of length: the shortest texts and the longest, of one shape, to compile once.
    shortest, *_, longest = technique.batches(task, "train", None)
    lacking = longest.inputs.shape[1] - shortest.inputs.shape[1]
    shortest = jax.tree.map(lambda x: np.pad(x, ((0, 0), (lacking, 0))), shortest)
    rows = opinions.encode(" ".join(opinions.OPINIONS))
    start = driver.make_state(task, Recipe(1, 0.0, 0.0, seed=seed))
    before = np.asarray(start.params["encoder"]["embedding"])[rows]

    def largest(params: Any) -> float:
        state = dataclasses.replace(start, params=params)
        found = [tbptt.gradient(state, b, technique.plan) for b in (shortest, longest)]
        return max(float(np.abs(g["encoder"]["embedding"][rows]).max()) for g in found)

    def look(history: list[dict[str, Any]], best: Any) -> None:
        if best is not None:
            history[-1]["gradient"] = largest(best)

    at_first = largest(start.params)
    trained = fit(run, task, technique, seed, look)
    seen = [at_first, *(row["gradient"] for row in trained.history if "gradient" in row)]
    after = np.asarray(trained.state.params["encoder"]["embedding"])[rows]
    answers = [
        (np.asarray(tbptt.predict(trained.state, batch)).argmax(-1) == batch.targets)[batch.mask]
        for batch in task.batches("test", 1, None)
    ]
    accuracy = np.concatenate(answers).reshape(-1, config.length).mean(0)
    moved = float(np.abs(after - before).max())
    return Learnt(accuracy.tolist(), max(seen), moved, trained.history)


def updates_until(history: list[dict[str, Any]], accuracy: float) -> int | None:
    """Updates made when the accuracy on validation was first so high; None: it never was."""
    return next((row["updates"] for row in history if row["valid_score"] >= accuracy), None)


def summary(config: Config, found: dict[str, list[Learnt]]) -> str:
    """A row for each way to train."""
    asked = sorted({min(10, config.k2), config.k2, config.length})
    rows = []
    for name, nets in found.items():
        reached = [u for net in nets if (u := updates_until(net.history, 0.95)) is not None]
        when = f"{statistics.median(reached):,.0f}" if reached else "never"
        if 0 < len(reached) < len(nets):
            when += f" ({len(reached)} of {len(nets)})"
        accuracy = np.mean([net.accuracy for net in nets], 0)
        largest = [max(net.gradient for net in nets), max(net.moved for net in nets)]
        shares = [f"{accuracy[words - 1]:.1%}" for words in asked]
        rows.append([name, *shares, when, *(f"{x:.1e}" for x in largest)])
    head = ["training", *(f"after {words} words" for words in asked), "updates to 95%"]
    return common.table([*head, "largest gradient", "moved by"], rows)


def plot_invented(config: Config, found: dict[str, list[Learnt]], run: RunFolder) -> None:
    """Accuracy by words read, and over training; means of the networks."""
    words = np.arange(opinions.OPENING, config.length + 1)
    by_words, by_updates = (common.figure(1, 1, width=7, height=3.2) for _ in range(2))
    for i, (name, nets) in enumerate(found.items()):
        # Thinner and thinner: many of the lines lie on each other.
        options = {"label": name, "linewidth": max(1.0, 6 - i), "color": f"C{i}"}
        accuracy = 100 * np.mean([net.accuracy for net in nets], 0)
        by_words[1].plot(words, accuracy[words - 1], **options)
        updates = [row["updates"] for row in nets[0].history]
        scores = np.mean([[row["valid_score"] for row in net.history] for net in nets], 0)
        by_updates[1].plot(updates, 100 * scores, **options)
    by_words[1].axvline(config.k2, color="0.8", zorder=0)
    by_words[1].set(xlabel="words of the text, its opinion in the first five", ylim=(-3, 103))
    by_updates[1].set(xlabel="updates", ylim=(40, 103), xscale="log")
    for (figure, axes), file in ((by_words, "by_length.png"), (by_updates, "training.png")):
        axes.set(ylabel="accuracy (%), mean of networks")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right", frameon=False)
        figure.savefig(run.path / file)


def only(batch: tbptt.Batch, words: int, end: str, longer: int, shorter: int) -> tbptt.Batch:
    """The first or the last words of texts of some lengths, asked after the last that is left."""
    mask = np.asarray(batch.mask)
    lengths = mask.sum(1, keepdims=True)
    place = mask.cumsum(1) if end == "first" else lengths + 1 - mask.cumsum(1)
    left = mask & (place <= words) & (lengths > longer) & (lengths < shorter)
    return data.mark_losses(batch._replace(mask=left))


def some(part: reviews.Texts) -> reviews.Texts:
    """Every second text that is not so short that its shape would have to be compiled too."""
    chosen = [i for i, text in enumerate(part.ids) if len(text) > reviews.padding(1)][::2]
    return reviews.Texts([part.ids[i] for i in chosen], part.labels[chosen])


def counts_of_words(texts: reviews.Config) -> list[int]:
    """How many words of a review are shown."""
    return [n for n in (10, 30, 60, 100, 200) if n < 0.6 * texts.max_length]


def check_reviews(texts: reviews.Config, parts: dict[Part, reviews.Texts]) -> None:
    """End the program, before anything is trained, where reviews are too short to be shown."""
    longest, most = counts_of_words(texts)[-1], texts.max_length
    for name, part in parts.items():
        if not any(longest < len(ids) < most for ids in part.ids):
            common.stop(
                f"--data_dir: expected reviews of more than {longest} and fewer than {most} words "
                f"in the part {name}, got none; give a folder with longer ones"
            )


def review_accuracy(
    run: RunFolder, config: Config, texts: reviews.Config, parts: Any, words: int
) -> dict:
    """For each way to train on reviews: accuracy on the first and on the last N words of a text.

    All on the same texts: those longer than the largest N, and short enough not to be cut.
    """
    task = reviews.make_task(texts, parts, words)
    counts = counts_of_words(texts)
    plan, full = (tbptt.Truncation(k, k) for k in (config.k2, texts.max_length))
    techniques = [
        Technique(f"loss at the end, k2 = {config.k2}", plan),
        Technique(f"loss every {config.k2}, k2 = {config.k2}", plan, every=config.k2),
        *([] if config.fast else [Technique("loss at the end, full BPTT", full)]),
    ]
    test = task.batches("test", 1, None)
    result: dict[str, Any] = {"words": counts}
    for technique in techniques:
        state = fit(run, task, technique, 0).state
        for end in ("first", "last"):
            for count in (*counts, texts.max_length):
                left = [only(b, count, end, counts[-1], texts.max_length) for b in test]
                found = tbptt.evaluate(state, [b for b in left if b.mask.any()], task.metrics)
                result["texts"] = int(found["weight"])
                result.setdefault(end, {}).setdefault(technique.name, []).append(found["accuracy"])
    return result


def review_tables(result: dict[str, Any]) -> str:
    """A table for the first words, and one for the last."""
    columns = [*map(str, result["words"]), "all"]
    return "\n\n".join(
        common.table(
            [f"{end} words shown", *columns],
            [[name, *(f"{s:.1%}" for s in scores)] for name, scores in result[end].items()],
        )
        for end in ("first", "last")
    )


def plot_reviews(result: dict, run: RunFolder) -> None:
    """Accuracy by the number of words that are shown."""
    figure, axes = common.figure(1, 2, width=8, height=3)
    ticks = range(len(result["words"]) + 1)
    for ax, end in zip(axes, ("first", "last"), strict=True):
        for style, (name, scores) in zip(
            ("C0o-", "C2s--", "C3^-."), result[end].items(), strict=False
        ):
            ax.plot(ticks, 100 * np.array(scores), style, label=name, markersize=4, linewidth=1)
        ax.set_xticks(ticks, [*map(str, result["words"]), "all"])
        ax.set(xlabel=f"{end} words shown", ylabel="test accuracy (%)")
    axes[1].sharey(axes[0])
    axes[0].legend(frameon=False)
    figure.savefig(run.path / "reviews.png")


def main(argv: list[str]) -> None:
    """Train all networks, and tell."""
    common.begin(argv)
    config = run_folder.configure(Config, NAME, FAST)
    check(config)
    options = REVIEWS_FAST if config.fast else {}
    texts = reviews.Config(data_dir=config.data_dir, fast=config.fast, **options)
    # First, since it is what may be missing.
    parts, vocabulary = common.load(reviews.load_texts, texts)
    if config.fast:
        parts = {name: some(part) for name, part in parts.items()}
    check_reviews(texts, parts)
    run = RunFolder.create(config, NAME)
    found: dict[str, list[Learnt]] = {}
    for name, regime in regimes(config).items():
        found[name] = [learn(run, config, regime, seed) for seed in range(config.seeds)]
    plot_invented(config, found, run)
    records = {name: [net._asdict() for net in nets] for name, nets in found.items()}
    result: dict[str, Any] = {"invented": records, "versions": common.versions()}
    run.write_json("result.json", result)
    print(f"\nInvented texts of {config.length} words, {config.seeds} networks of each kind:\n")
    print(summary(config, found))
    print(
        "\nThe gradient is that of the embeddings of love, hate and the like, the largest entry.\n"
    )
    result["reviews"] = review_accuracy(run, config, texts, parts, len(vocabulary))
    run.write_json("result.json", result)
    plot_reviews(result["reviews"], run)
    print(f"\nTest accuracy on the same {result['reviews']['texts']:,} reviews by words shown:\n")
    print(review_tables(result["reviews"]))
    print(f"\nsaved in {run.path}: by_length.png, training.png, reviews.png and result.json")


if __name__ == "__main__":
    common.define_flags(Config)
    app.run(main)
