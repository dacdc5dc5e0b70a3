"""The README's table of peers, held to those that are installed: what they do and what they do not.

pip install "keras>=3.15" torch braintrace
"""

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

# What a stateful LSTM predicts for one input, three times: the same unless the carry runs on; and
# what training on it does.
KERAS = """
import json, numpy as np, keras
model = keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), keras.layers.LSTM(5, stateful=True)])
model.compile("sgd", "mse")
x, y = np.ones((2, 4, 3), "float32"), np.zeros((2, 5), "float32")
try:
    model.train_on_batch(x, y)
    error = None
except RuntimeError as caught:
    error = str(caught)
states = [float(keras.ops.convert_to_numpy(s.value).sum()) for s in model.layers[0].states]
print(json.dumps({"error": error, "states": states}))
"""


def keras_on(backend):
    if find_spec("keras") is None:  # not imported: it would choose its backend here
        pytest.skip("only with [bench]")
    done = subprocess.run(
        [sys.executable, "-c", KERAS],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_keras_drops_the_carry_on_jax():
    assert keras_on("jax") == {"error": None, "states": [0.0, 0.0]}


@pytest.mark.slow
def test_keras_cannot_train_with_a_carry_on_pytorch():
    pytest.importorskip("torch", reason="only with [bench]")
    assert "inplace operation" in keras_on("torch")["error"]


def test_nnx_rnn_takes_lengths_and_no_mask_reset_or_truncation():
    taken = set(inspect.signature(nnx.RNN.__call__).parameters)
    taken |= set(inspect.signature(nnx.RNN).parameters)
    assert {"seq_lengths", "initial_carry"} <= taken
    assert not {name for name in taken if any(w in name for w in ("mask", "reset", "trunc", "k1"))}


def test_nnx_rnn_passes_the_carry_on_by_hand():
    rnn = nnx.RNN(nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)), return_carry=True)
    x = jax.random.normal(jax.random.key(0), (2, 6, 3), jnp.float32)
    carry, first = rnn(x[:, :2])
    _, second = rnn(x[:, 2:], initial_carry=carry)
    found = np.concatenate([np.asarray(first), np.asarray(second)], 1)
    np.testing.assert_allclose(found, np.asarray(rnn(x)[1]), atol=1e-6)


@pytest.fixture
def braintrace():
    """With JAX's defaults, which it needs."""
    found = pytest.importorskip("braintrace")
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield found


@pytest.mark.filterwarnings("default")
def test_braintrace_keeps_carry_and_trace_and_leaves_update_and_mask_to_the_user(braintrace):
    brainstate = pytest.importorskip("brainstate")

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = braintrace.nn.GRUCell(3, 8), braintrace.nn.Linear(8, 1)

        def update(self, x):
            return self.out(self.rnn(x))

    rng = np.random.default_rng(0)
    xs, ys = (jnp.asarray(rng.normal(size=(12, 1, n)), jnp.float32) for n in (3, 1))

    def run(*pieces, **options):
        brainstate.random.seed(0)
        net = Net()
        learner = braintrace.compile(net, braintrace.D_RTRL, xs[0], batch_size=1)
        before = [np.asarray(p) for p in jax.tree.leaves(parameters(net))]
        gradients = [
            learner.etrace_grad(
                xs[p],
                ys[p],
                step_fn=lambda x, y: jnp.mean((learner(x) - y) ** 2),
                reduction="sum",
                **options,
            )
            for p in pieces
        ]
        for old, new in zip(before, jax.tree.leaves(parameters(net)), strict=True):
            np.testing.assert_array_equal(old, new)
        (hidden,) = (np.asarray(s.value) for s in net.states(brainstate.HiddenState).values())
        return jax.tree.map(lambda *parts: sum(parts), *gradients), hidden

    def parameters(net):
        return {name: s.value for name, s in net.states(brainstate.ParamState).items()}

    whole, end = run(slice(0, 12))
    pieces, end_of_pieces = run(slice(0, 5), slice(5, 12))
    np.testing.assert_allclose(end, end_of_pieces, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, pieces)

    _, masked = run(slice(0, 6), mask=jnp.array([1.0, 1, 1, 0, 0, 0]))
    _, short = run(slice(0, 3))
    assert np.abs(masked - short).max() > 1e-3
