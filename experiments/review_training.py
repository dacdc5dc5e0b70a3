"""Training on reviews: a run from the command line, and a finished one again."""

import dataclasses
import time

import numpy as np

import tbptt_jax as tbptt
from experiments import common, driver, reviews
from experiments.driver import Trained
from experiments.run_folder import RunFolder
from experiments.tasks.reviews import Config, Texts, load_texts, make_task
from experiments.tasks.task import Part, Task
from experiments.technique import Recipe, Technique


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


def load_data(config: Config) -> tuple[dict[Part, Texts], reviews.Vocabulary]:
    """The texts of each part; without them the program ends."""
    return common.load(load_texts, config)


def load_run(run: RunFolder) -> tuple[Config, reviews.Vocabulary, tbptt.TrainState]:
    """What a finished run was, and its network."""
    config = run.read_config(Config)
    vocabulary = common.load(reviews.Vocabulary.load, run.path / "vocabulary.json")
    state = untrained(config, len(vocabulary))
    return config, vocabulary, dataclasses.replace(state, params=run.load_params(state.params))


def untrained(config: Config, words: int) -> tbptt.TrainState:
    """The network of a run before training."""
    return driver.make_state(make_task(config, {}, words), recipe(config))


def run_training(config: Config, run: RunFolder) -> tuple[Task, dict[Part, Texts], Trained]:
    """Load the texts and train, leaving in the folder what `load_run` needs."""
    begun = time.perf_counter()
    parts, vocabulary = load_data(config)
    run.write_json("vocabulary.json", vocabulary.words)
    sizes = ", ".join(f"{len(part.ids):,} {name}" for name, part in parts.items())
    print(f"{sizes} texts, {len(vocabulary):,} words, in {time.perf_counter() - begun:.1f} s")
    task = make_task(config, parts, len(vocabulary))
    return (
        task,
        parts,
        driver.fit(task, recipe(config), technique(config), run.saving("training"), run.keep),
    )


def judge(task: Task, state: tbptt.TrainState) -> tuple[np.ndarray, np.ndarray]:
    """For every text for test: whether it is classified rightly, and its length."""
    correct, lengths = [], []
    for batch in task.batches("test", 1, None):
        outputs = np.asarray(tbptt.predict(state, batch))
        real = batch.mask[:, -1]
        correct.append((outputs[:, -1].argmax(-1) == batch.targets[:, -1])[real])
        lengths.append(batch.mask.sum(1)[real])
    return np.concatenate(correct), np.concatenate(lengths)
