"""The networks that the tests train, small, in float64, and random data for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.types import Cell

FEATURES, ENCODED, HIDDEN, CLASSES = 3, 2, 3, 2
F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
# The oracle's name for each core, and what the core is: flax's own cells are scanned step by step.
CORES = {
    "rnn": ("rnn", nnx.SimpleCell),
    "gru": ("gru", nnx.GRUCell),
    "lstm": ("lstm", tbptt.LSTM),
    "flax_lstm": ("lstm", nnx.OptimizedLSTMCell),
}
LOSSES = {
    "xent": optax.losses.softmax_cross_entropy_with_integer_labels,
    "mse": lambda y, t: optax.losses.squared_error(y, t).mean(-1),
}


class LearntRNN(nnx.SimpleCell):
    """A tanh cell with a learnt initial carry; the parameter bears the oracle's name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial = nnx.Param(jnp.zeros(HIDDEN, jnp.float64))

    def initialize_carry(self, input_shape, rngs=None):  # pyright: ignore
        return jnp.broadcast_to(self.initial[...], (input_shape[0], HIDDEN))


class LearntLSTM(tbptt.LSTM):
    """The same for the LSTM, which unrolls in its own way."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial_c = nnx.Param(jnp.zeros(HIDDEN, jnp.float64))
        self.initial_h = nnx.Param(jnp.zeros(HIDDEN, jnp.float64))

    def initialize_carry(self, input_shape, rngs=None):  # pyright: ignore
        shape = (input_shape[0], HIDDEN)
        return (
            jnp.broadcast_to(self.initial_c[...], shape),
            jnp.broadcast_to(self.initial_h[...], shape),
        )


CORES |= {"learnt_rnn": ("rnn", LearntRNN), "learnt_lstm": ("lstm", LearntLSTM)}


def make_model(core: str | Cell = "lstm") -> tbptt.SequenceModel:
    """Linear encoder, the named core (or one of FEATURES=ENCODED size given), linear readout."""
    rngs = nnx.Rngs(0)
    cell = CORES[core][1](ENCODED, HIDDEN, rngs=rngs, **F64) if isinstance(core, str) else core
    return tbptt.SequenceModel(
        nnx.Linear(FEATURES, ENCODED, rngs=rngs, **F64),
        cell,
        nnx.Linear(HIDDEN, CLASSES, rngs=rngs, **F64),
    )


def make_state(
    core: str | Cell = "lstm", loss: str = "xent", learning_rate: float = 0.3
) -> tbptt.TrainState:
    """A state with random parameters everywhere, biases and learnt carries included."""
    state = tbptt.TrainState.create(make_model(core), optax.sgd(learning_rate), LOSSES[loss])
    return randomize(state)


def randomize(state: tbptt.TrainState, seed: int = 1) -> tbptt.TrainState:
    """Replace the parameters: zeros would hide a gradient that goes wrong through them."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape)), state.params)
    return tbptt.TrainState.create(
        state.functions, state.optimizer, state.loss, params=params, seed=seed
    )


def make_batch(
    length: int, marks: str = "", loss: str = "xent", rows: int = 2, seed: int = 0
) -> tbptt.Batch:
    """Random data. `marks` holds m for a mask, r for resets, w for weights.

    The last step of the first row always counts: what no plan scores a step of is refused.
    """
    rng = np.random.default_rng(seed)
    shape = rows, length
    inputs = rng.normal(size=(*shape, FEATURES))
    targets: Any = rng.integers(0, CLASSES, shape)
    if loss == "mse":
        targets = rng.normal(size=(*shape, CLASSES))
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], shape, p=[0.4, 0.2, 0.2, 0.2])
    mask = rng.random(shape) > 0.3 if "m" in marks else None
    if mask is not None:
        mask[0, -1] = True
    if not weights[0, -1]:
        weights[0, -1] = 1.5
    return tbptt.Batch(
        inputs=inputs,
        targets=targets,
        mask=mask,
        reset=rng.random(shape) < 0.2 if "r" in marks else None,
        weights=weights if "w" in marks else None,
    )


def cut(batch: tbptt.Batch, start: int, stop: int) -> tbptt.Batch:
    """Steps start .. stop of a batch."""
    return jax.tree.map(lambda x: x[:, start:stop], batch)


def as_numpy(tree: Any) -> Any:
    """Arrays to NumPy, for the oracle."""
    return jax.tree.map(np.asarray, tree)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Two pytrees are equal to float64 rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, e, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


def carry_of(state: tbptt.TrainState) -> Any:
    """The newest carry of a state that has been trained."""
    assert state.stream is not None
    return state.stream.carry
