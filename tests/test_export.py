"""A training step for devices that are not here: it lowers for each, and is the same function."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import tbptt_jax as tbptt

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ROWS, STEPS, WORDS, CLASSES = 4, 12, 9, 3


def make_state(core):
    rngs = nnx.Rngs(0)
    cores = {
        "lstm": lambda: tbptt.LSTM(5, 6, rngs=rngs),
        "gru": lambda: nnx.GRUCell(5, 6, rngs=rngs),
        "plain": lambda: nnx.SimpleCell(5, 6, rngs=rngs),
        "bfloat16": lambda: tbptt.LSTM(5, 6, dtype=jax.numpy.bfloat16, rngs=rngs),
    }
    model = tbptt.SequenceModel(
        nnx.Embed(WORDS, 5, rngs=rngs), cores[core](), nnx.Linear(6, CLASSES, rngs=rngs)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optimizer, loss)


def make_batch():
    rng = np.random.default_rng(0)
    return tbptt.Batch(
        rng.integers(WORDS, size=(ROWS, STEPS), dtype=np.int32),
        rng.integers(CLASSES, size=(ROWS, STEPS), dtype=np.int32),
        mask=rng.random((ROWS, STEPS)) < 0.8,
        reset=rng.random((ROWS, STEPS)) < 0.2,
    )


@pytest.mark.parametrize(
    ("core", "plan"),
    [
        ("lstm", tbptt.Truncation(3, 5)),
        ("gru", tbptt.Truncation(4, 2)),
        ("plain", tbptt.Truncation(4, 4)),
        ("lstm", tbptt.Truncation(6, 3, anchor="loss", block=2)),
        ("bfloat16", tbptt.Truncation(4, 4)),
    ],
)
def test_a_training_step_lowers_for_every_platform(core, plan):
    state, batch = make_state(core), make_batch()
    leaves, structure = jax.tree.flatten((state, batch))

    def step(leaves):
        state, batch = jax.tree.unflatten(structure, leaves)
        state, metrics = tbptt.train_step(state, batch, plan)
        return jax.tree.leaves((state.params, metrics))

    exported = export.export(jax.jit(step), platforms=PLATFORMS)(leaves)
    assert exported.platforms == PLATFORMS
    after, metrics = tbptt.train_step(state.copy(), batch, plan)
    expected = jax.tree.leaves((after.params, metrics))
    for one, other in zip(exported.call(leaves), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    moved = zip(jax.tree.leaves(make_state(core).params), expected, strict=False)
    assert all(not np.allclose(before, now) for before, now in moved)
