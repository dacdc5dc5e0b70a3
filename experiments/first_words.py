"""How can a network learn from first words that its gradient never reaches?

python -m experiments.first_words

A text of 100 words is classified at its end, and the gradient reaches back 30. Invented texts come
first: they open with "I love this film" or "I hate this film" and continue with words that say
nothing. Where all texts are long the opinion words get a gradient of zero, to the bit. Short texts
among them change that, and so does a loss after every 30 words. A text's first N words are a text
of N words, so the answers after each word show for how long the opinion is remembered.

Then networks are trained on real reviews, and shown the first N words of test reviews, or the last
N. Texts are padded at their start, so that all end at the last step.
"""

import dataclasses
import itertools
import statistics
from typing import Any

import jax
import numpy as np

import tbptt_jax as tbptt
from experiments import command, figures, trainer, watched
from experiments.config import RunOptions, fast_values, flag
from experiments.figures import Curve, Panel
from experiments.files import stop
from experiments.run import RunFolder, slug
from experiments.tasks import Task, opinions, reviews
from experiments.technique import Recipe, Technique
from tbptt_jax import Batch, Truncation, data
from tbptt_jax.types import Params

REVIEW_SEEDS = 3  # networks of each kind on reviews


@dataclasses.dataclass(frozen=True)
class Config(RunOptions):
    """What is trained."""

    NAME = "first_words"

    k2: int = flag(30, "Words that the gradient reaches back; also k1.", opinions.OPENING, fast=12)
    length: int = flag(100, "Words of a long invented text.", opinions.OPENING, fast=24)
    short_shares: tuple[float, ...] = flag(
        (0.1, 0.3), "Shares of invented texts that have k2 words at most.", above=0, below=1,
        fast=(0.3,),
    )  # fmt: skip
    passes: int = flag(25, "Passes over the invented texts.", 1, fast=4)
    seeds: int = flag(5, "Networks of each kind on invented texts.", 1, fast=1)
    data_dir: str | None = flag(None, "The aclImdb folder, instead of the installed package.", 1)
    fast: bool = flag(False, "Shorter and fewer texts, fewer networks: under 30 seconds.")


def check(config: Config) -> None:
    """Refuse flags that would not pose the question."""
    if config.length <= config.k2:
        stop(f"--length: expected more than k2={config.k2} words, got {config.length}")
    first = config.length % config.k2
    if 0 < first < opinions.OPENING:
        stop(
            f"--length: the first chunk of a text holds length % k2 = {first} words, expected 0 or "
            f"at least the {opinions.OPENING} of an opening"
        )


def regimes(config: Config) -> list[tuple[Technique, float]]:
    """The ways to train on invented texts, each with its share of short ones."""
    whole, k2, end = opinions.padded(config.length, config.k2), config.k2, "loss at the end"
    cut, full = Truncation(k2, k2), Truncation(whole, whole)
    shares = {"": 0.0, **{f", {share:.0%} short": share for share in config.short_shares}}
    some = list(shares.items())[: 1 if config.fast else 2]
    return [
        *((Technique(f"{end}, k2 = {k2}{name}", cut), share) for name, share in shares.items()),
        (Technique(f"loss every {k2}, k2 = {k2}", cut, every=k2), 0.0),
        *((Technique(f"{end}, full BPTT{name}", full), share) for name, share in some),
    ]


def learn(
    run: RunFolder, config: Config, technique: Technique, share: float, seed: int
) -> dict[str, Any]:
    """Train a network on invented texts, and watch the embeddings of its opinion words.

    Returns:
      accuracy: [length], after each word of long texts.
      gradient, moved: as of `watched.fit`.
      history: the trainer's.
    """
    size = {"length": config.length, "reach": config.k2, "epochs": config.passes}
    task = opinions.make_task(**size, share=share, seed=seed)
    # In order of length: the shortest texts and the longest, of one shape, to compile once.
    shortest, *_, longest = technique.batches(task, "train", None)
    padding = longest.inputs.shape[1] - shortest.inputs.shape[1]
    shortest = jax.tree.map(lambda x: np.pad(x, ((0, 0), (padding, 0))), shortest)
    rows = opinions.encode(" ".join(opinions.OPINIONS))

    def opinion_words(params: Params) -> jax.Array:
        return params["encoder"]["embedding"][rows]

    batches = [shortest, longest]
    trained, found = watched.fit(run, task, technique, seed, opinion_words, batches)
    answers = [
        (np.asarray(tbptt.predict(trained.state, batch)).argmax(-1) == batch.targets)[batch.mask]
        for batch in task.batches("test", 1, None)
    ]
    accuracy = np.concatenate(answers).reshape(-1, config.length).mean(0).tolist()
    return {"accuracy": accuracy, **found, "history": trained.history}


def updates_until(history: list[dict[str, Any]], accuracy: float) -> int | None:
    """Updates made when the validation accuracy was first so high; None: it never was."""
    return next((row["updates"] for row in history if row["valid_score"] >= accuracy), None)


def _share(values: figures.Values) -> str:
    """Shares of right answers, in per cent."""
    return figures.mean_and_range(values, "{:.1%}".format)


def summary(config: Config, found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each way to train."""
    counts, rows = sorted({min(10, config.k2), config.k2, config.length}), []
    for name, nets in found.items():
        reached = [u for net in nets if (u := updates_until(net["history"], 0.95)) is not None]
        when = f"{statistics.median(reached):,.0f}" if reached else "never"
        if 0 < len(reached) < len(nets):
            when += f" ({len(reached)} of {len(nets)})"
        accuracy = np.array([net["accuracy"] for net in nets])
        largest = [f"{max(net[key] for net in nets):.1e}" for key in ("gradient", "moved")]
        rows.append([name, *(_share(accuracy[:, n - 1]) for n in counts), when, *largest])
    head = ["training", *(f"after {n} words" for n in counts), "updates to 95%"]
    return figures.table([*head, "largest gradient", "moved by"], rows)


def invented_panels(
    config: Config, found: dict[str, list[dict[str, Any]]]
) -> tuple[list[Panel], list[Panel]]:
    """Accuracy by words read, and over training; a panel for each way to train."""
    words, by_words, by_updates = np.arange(opinions.OPENING, config.length + 1), [], []
    axes = {"percent": True, "limits": (-0.03, 1.12)}
    lines, networks = {f"k2 = {config.k2}": config.k2}, f"mean and range of {config.seeds} networks"
    for name, nets in found.items():
        answers = np.array([net["accuracy"] for net in nets])[:, words - 1]
        panel = Panel("words read", "test accuracy", [Curve(networks, words, answers)], name)
        by_words.append(panel._replace(lines=lines, **axes))
        updates = [row["updates"] for row in nets[0]["history"]]
        scores = [[row["valid_score"] for row in net["history"]] for net in nets]
        panel = Panel("updates", "validation accuracy", [Curve(networks, updates, scores)], name)
        by_updates.append(panel._replace(log="x", **axes))
    return by_words, by_updates


def only(batch: Batch, words: int, end: str, longer: int, shorter: int) -> Batch:
    """The first or the last words of texts of some lengths, a loss at the last one left."""
    mask = np.asarray(batch.mask)
    lengths = mask.sum(1, keepdims=True)
    place = mask.cumsum(1) if end == "first" else lengths + 1 - mask.cumsum(1)
    left = mask & (place <= words) & (lengths > longer) & (lengths < shorter)
    return data.mark_losses(batch._replace(mask=left))


def shown_words(texts: reviews.Config) -> list[int]:
    """How many words of a review are shown."""
    return [n for n in (10, 30, 60, 100, 200) if n < 0.6 * texts.max_length]


def load_reviews(config: Config) -> tuple[reviews.Config, Task]:
    """The reviews; the program ends, before anything is trained, if they are too short."""
    # Without dropout there is less to compile.
    small = {"hidden": 16, "embedding": 16, "epochs": 1, "dropout": 0.0, "word_dropout": 0.0}
    options = {**fast_values(reviews.Config), **small} if config.fast else {}
    texts = reviews.Config(data_dir=config.data_dir, fast=config.fast, **options)
    parts, vocabulary = reviews.load_texts(texts)
    longest, most = shown_words(texts)[-1], texts.max_length
    for name, part in parts.items():
        if config.fast:  # every second text that needs no further shape to be compiled
            some = [i for i, ids in enumerate(part.texts) if len(ids) > reviews.padding(1)][::2]
            parts[name] = reviews.Texts([part.texts[i] for i in some], part.labels[some])
        if not any(longest < len(ids) < most for ids in parts[name].texts):
            stop(
                f"--data_dir: expected reviews of more than {longest} and fewer than {most} words "
                f"in the part {name}, got none; give a folder with longer ones"
            )
    return texts, reviews.make_task(texts, parts, len(vocabulary))


def review_accuracy(
    run: RunFolder, config: Config, texts: reviews.Config, task: Task
) -> dict[str, Any]:
    """For each way to train on reviews: accuracy on the first and on the last N words of a text.

    All on the same texts: those longer than the largest N, and short enough not to be cut. Each
    network has its own list.
    """
    counts, k2, end = shown_words(texts), config.k2, "loss at the end"
    cut, full = (Truncation(k, k) for k in (k2, texts.max_length))
    techniques = [
        Technique(f"{end}, k2 = {k2}", cut),
        Technique(f"loss every {k2}, k2 = {k2}", cut, every=k2),
        *([] if config.fast else [Technique(f"{end}, full BPTT", full)]),
    ]
    test = task.batches("test", 1, None)
    result: dict[str, Any] = {"words": counts}
    for technique, seed in itertools.product(techniques, range(1 if config.fast else REVIEW_SEEDS)):
        recipe = Recipe(task.epochs, task.learning_rate, task.averaging, seed=seed)
        saving = run.saving(slug(f"{task.name} {technique.name} {seed}"))
        state = trainer.fit(task, recipe, technique, saving).state
        for end in ("first", "last"):
            scores = []
            for count in (*counts, texts.max_length):
                left = [only(b, count, end, counts[-1], texts.max_length) for b in test]
                found = tbptt.evaluate(state, [b for b in left if b.mask.any()], task.metrics)
                result["texts"] = int(found["weight"])
                scores.append(found["accuracy"])
            result.setdefault(end, {}).setdefault(technique.name, []).append(scores)
    return result


def review_table(result: dict[str, Any], end: str) -> str:
    """A row for each way to train."""
    rows = [
        [name, *(_share(scores) for scores in zip(*nets, strict=True))]
        for name, nets in result[end].items()
    ]
    return figures.table([f"{end} words shown", *result["words"], "all"], rows)


def review_panels(result: dict[str, Any]) -> list[Panel]:
    """Accuracy by the number of words that are shown."""
    ticks = dict(enumerate([*map(str, result["words"]), "all"]))
    scores = np.concatenate([*result["first"].values(), *result["last"].values()])
    axes = {"percent": True, "ticks": ticks, "limits": (scores.min() - 0.02, scores.max() + 0.02)}
    return [
        Panel(
            f"{end} words shown",
            "test accuracy",
            [Curve(name, range(len(ticks)), ys) for name, ys in result[end].items()],
            **axes,
        )
        for end in ("first", "last")
    ]


def main(config: Config) -> None:
    """Train all networks, on invented texts and on reviews, and report."""
    check(config)
    texts, task = load_reviews(config)  # first, since they may be missing
    with RunFolder.create(config) as run:
        found = {
            technique.name: [learn(run, config, technique, share, s) for s in range(config.seeds)]
            for technique, share in regimes(config)
        }
        by_words, by_updates = invented_panels(config, found)
        title = f"invented texts of {config.length} words, the opinion in the first five"
        for name, panels in (("by_length.png", by_words), ("training.png", by_updates)):
            run.write_figure(name, figures.curves(panels, title, rows=2, size=(9, 5)))
        run.write_result({"invented": found})
        print(f"\nInvented texts of {config.length} words, {config.seeds} networks of each kind:\n")
        print(
            f"{summary(config, found)}\n\nThe gradient is that of the embeddings of love, hate and"
        )
        print("the like, the largest entry.")
        shown = review_accuracy(run, config, texts, task)
        run.write_result({"invented": found, "reviews": shown})
        run.write_figure("reviews.png", figures.curves(review_panels(shown)))
    print(f"\nTest accuracy on the same {shown['texts']:,} reviews by words shown:\n")
    print("\n\n".join(review_table(shown, end) for end in ("first", "last")))
    print(f"\nsaved in {run.path}: by_length.png, training.png, reviews.png and result.json")


if __name__ == "__main__":
    command.run(Config, main)
