"""Training on reviews: a run from the command line, and a finished one again."""

import dataclasses
import time

import tbptt_jax as tbptt
from experiments import trainer
from experiments.run import RunFolder
from experiments.tasks.imdb import Vocabulary
from experiments.tasks.reviews import Config, Texts, load_texts, make_task
from experiments.tasks.task import Part, Task
from experiments.technique import Recipe, Technique, warn_beyond
from experiments.trainer import Trained

VOCABULARY = "vocabulary.json"


def technique(config: Config) -> Technique:
    """The truncation and the losses of a run."""
    anchor = "" if config.anchor == "update" else f", anchor = {config.anchor}"
    return Technique(
        f"k1 = {config.k1}, k2 = {config.k2}{anchor}, loss at {config.loss_at}",
        tbptt.Truncation(config.k1, config.k2, config.anchor),
        every=config.k1 if config.loss_at == "chunk" else None,
    )


def recipe(config: Config) -> Recipe:
    """How a run trains."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    return Recipe(**{name: getattr(config, name) for name in names})


def load_run(run: RunFolder) -> tuple[Config, Vocabulary, tbptt.TrainState]:
    """The configuration of a finished run, and its network."""
    config = run.read_config(Config)
    vocabulary = Vocabulary(run.read_json(VOCABULARY, list[str]))
    state = untrained(config, len(vocabulary))
    return config, vocabulary, dataclasses.replace(state, params=run.load_params(state.params))


def untrained(config: Config, words: int) -> tbptt.TrainState:
    """The network of a run before training."""
    return trainer.make_state(make_task(config, {}, words), recipe(config))


def train(config: Config, run: RunFolder) -> tuple[Task, dict[Part, Texts], Vocabulary, Trained]:
    """Load the texts and train, leaving in the folder what `load_run` needs."""
    started = time.perf_counter()
    parts, vocabulary = load_texts(config)
    run.write_json(VOCABULARY, vocabulary.words)
    sizes = ", ".join(f"{len(part.texts):,} {name}" for name, part in parts.items())
    print(f"{sizes} texts, {len(vocabulary):,} words, in {time.perf_counter() - started:.1f} s")
    task, saving = make_task(config, parts, len(vocabulary)), run.saving("training")
    chosen = technique(config)
    warn_beyond(chosen.plan, max(map(len, parts["train"].texts)), task.step)
    trained = trainer.fit(task, recipe(config), chosen, saving, run.save_epoch)
    return task, parts, vocabulary, trained
