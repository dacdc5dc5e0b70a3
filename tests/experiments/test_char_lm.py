"""The language model, from the command line, and the counts that it is compared with."""

import json
import math

import jax
import numpy as np
import pytest

import tbptt_jax as tbptt
from experiments import char_lm, trainer
from experiments.tasks import book
from experiments.technique import Recipe
from tests.command_line import run

NAME = "experiments.char_lm"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A finished run, and what it printed."""
    path = tmp_path_factory.mktemp("char_lm")
    done = run(NAME, "--fast", f"--output_dir={path}")
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def sampled(path, *arguments):
    """What a finished run writes after its prompt."""
    done = run(NAME, f"--output_dir={path}", "--prompt=And God", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("And God")
    assert done.stdout.endswith("\n")
    return done.stdout.removeprefix("And God")[:-1]


@pytest.mark.slow
def test_a_run_learns_more_than_how_often_characters_occur(folder):
    path, printed = folder
    result = json.loads((path / "result.json").read_text())
    counted = result["counted_bits"]
    # Better than counting single characters, and than counting them after the one before.
    assert 1.5 < result["test_bits"] < counted[0] - 1
    assert result["test_bits"] < counted[1]
    assert 4 < counted[0] < 5
    assert counted[2] < counted[1] < counted[0]
    assert f"test {result['test_bits']:.3f} bits per character" in printed
    assert "In the beginning" in printed
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert min(row["valid_score"] for row in rows) == result["valid_bits"]


@pytest.mark.slow
def test_samples_are_the_seeds_and_of_the_books_characters(folder):
    path, _ = folder
    first = sampled(path, "--sample=120", "--seed=1")
    assert len(first) == 120
    assert set(first) <= set(json.loads((path / "characters.json").read_text()))
    assert sampled(path, "--sample=120", "--seed=1") == first
    assert sampled(path, "--sample=120", "--seed=2") != first
    assert sampled(path, "--sample=120", "--seed=1", "--temperature=0.1") != first


@pytest.mark.slow
def test_a_prompt_of_unknown_characters_is_refused(folder):
    done = run(NAME, "--sample=5", "--prompt=In the {", f"--output_dir={folder[0]}")
    assert done.returncode == 1
    assert "error: --prompt: the book has no ['{']" in done.stderr
    assert "Traceback" not in done.stderr


def counts_by_hand(train, test, symbols):
    """As `counted_bits` says it, one character at a time."""
    bits = np.zeros(char_lm.ORDERS)
    for at in range(char_lm.ORDERS - 1, len(test)):
        p = 1 / symbols
        for order in range(char_lm.ORDERS):
            context = test[at - order : at]
            after = [train[i] for i in range(order, len(train)) if train[i - order : i] == context]
            p = (after.count(test[at]) + char_lm.PRIOR * p) / (len(after) + char_lm.PRIOR)
            bits[order] -= math.log2(p)
    return bits / (len(test) - char_lm.ORDERS + 1)


def test_counts_are_those_by_hand():
    rng = np.random.default_rng(0)
    # Many symbols, so that the code of a context is a large number.
    train, test = (rng.choice([0, 1, 2, 299], size) for size in (300, 40))
    found = char_lm.counted_bits(train.astype(np.int32), test.astype(np.int32), 300)
    np.testing.assert_allclose(found, counts_by_hand(train.tolist(), test.tolist(), 300))


def small():
    text = book.split("abcd" * 14_000)
    config = char_lm.Config(hidden=3, piece=20)
    return text, char_lm.make_task(config, text)


def test_some_lanes_restart_in_training_and_none_elsewhere():
    _, task = small()
    resets = np.stack([b.reset for b in task.batches("train", 5, np.random.default_rng(0))])
    assert resets[0, :, 0].all()
    assert not resets[:, :, 1:].any()
    later = resets[1:, :, 0].mean()
    assert 0 < later < 0.3
    for part in ("valid", "test"):
        first, *others = task.batches(part, 1, None)
        assert len(others) > 2
        assert first.reset[:, 0].all()
        assert not any(b.reset.any() for b in others)


def test_a_sample_continues_as_predict_would():
    text, task = small()
    state = trainer.make_state(task, Recipe(1, 1.0, 0.0))
    config = char_lm.Config(prompt="abca", temperature=1e-6)
    drawn = char_lm.sample(state, text, config, 12)
    assert len(drawn) == 12
    # So cold that the likeliest is drawn each time.
    ids = text.encode("abca" + drawn)[None]
    outputs = np.asarray(tbptt.predict(state, tbptt.Batch(ids, ids)))[0]
    np.testing.assert_array_equal(outputs[3:-1].argmax(-1), ids[0, 4:])


def test_warmer_samples_dare_more():
    _, task = small()
    state = trainer.make_state(task, Recipe(1, 1.0, 0.0))
    logits = jax.numpy.array([1.0, 0.0, 0.0, 0.0], jax.tree.leaves(state.params)[0].dtype)
    carry = state.functions.initialize_carry(state.params, (1, 32))

    def share(temperature):
        keys = jax.random.split(jax.random.key(0), 400)
        first = [
            char_lm.generate(state.functions, state.params, carry, logits, key, temperature, 1)
            for key in keys
        ]
        return np.mean(np.array(first) == 0)

    for temperature in (0.5, 2.0):
        expected = math.exp(1 / temperature) / (math.exp(1 / temperature) + 3)
        assert abs(share(temperature) - expected) < 0.08
