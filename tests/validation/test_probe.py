"""What mixes steps is refused, with what to do instead; what does not is taken."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.validation import mixing, probe
from tests.networks import CLASSES, F64, FEATURES, HIDDEN, LOSSES, make_batch

B, T = 3, 8
XENT, MSE = LOSSES["xent"], LOSSES["mse"]
PLAN = tbptt.Truncation(4, 4)
RNGS = nnx.Rngs(0)
# What the messages name as the cause.
CHANGES, PLACE = "another step", "its place.* number of steps"


def core(features: int = FEATURES) -> nnx.GRUCell:
    return nnx.GRUCell(features, HIDDEN, rngs=nnx.Rngs(1), **F64)


def state(encoder: Any = None, readout: Any = None, loss: Any = MSE, features: int = FEATURES):
    readout = nnx.Linear(HIDDEN, CLASSES, rngs=nnx.Rngs(2), **F64) if readout is None else readout
    model = tbptt.SequenceModel(encoder, core(features), readout)
    return tbptt.TrainState.create(model, optax.sgd(0.1), loss)


class Convolution(nnx.Module):
    """Over time; `padding` as `nnx.Conv` has it."""

    def __init__(self, padding: str = "CAUSAL", zero: bool = False):
        init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
        self.conv = nnx.Conv(
            FEATURES, FEATURES, (3,), padding=padding, kernel_init=init, rngs=nnx.Rngs(3), **F64
        )

    def __call__(self, x):
        return self.conv(x)


class Gated(nnx.Module):
    """Attention that begins as nothing, by a gate of zero."""

    def __init__(self):
        self.gate = nnx.Param(jnp.zeros((), jnp.float64))

    def __call__(self, x):
        return x + self.gate[...] * jnp.cumsum(x, axis=1)


class Attention(nnx.Module):
    def __init__(self, features: int, causal: bool):
        self.attend = nnx.MultiHeadAttention(
            1, features, features, decode=False, rngs=nnx.Rngs(3), **F64
        )
        self.causal = causal

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0]) if self.causal else None
        return self.attend(x, mask=mask)


class Bidirectional(nnx.Module):
    def __init__(self):
        self.both = nnx.Bidirectional(
            nnx.RNN(core()),
            nnx.RNN(core()),
            merge_fn=lambda a, b: a + b,
        )

    def __call__(self, x):
        carry = jnp.zeros((x.shape[0], HIDDEN))
        return self.both(x, initial_carry=(carry, carry))


class Learned(nnx.Module):
    """Learned positions, small as they are when training begins."""

    def __init__(self):
        self.positions = nnx.Param(0.02 * jax.random.normal(jax.random.key(0), (512, FEATURES)))

    def __call__(self, x):
        return x + self.positions[...][None, : x.shape[1]]


def sines(x):
    return x + jnp.sin(jnp.arange(x.shape[1]) / 3)[None, :, None]


def over_time(x):
    return (x - x.mean(1, keepdims=True)) / (1e-3 + x.std(1, keepdims=True))


ENCODERS = {
    "causal convolution": (Convolution, CHANGES),
    "convolution": (lambda: Convolution("SAME"), CHANGES),
    "convolution of zeros": (lambda: Convolution(zero=True), CHANGES),
    "nnx.Conv": (lambda: nnx.Conv(FEATURES, FEATURES, (3,), rngs=RNGS, **F64), CHANGES),
    "in a Sequential": (lambda: nnx.Sequential(Convolution(), nnx.relu), CHANGES),
    "bidirectional": (Bidirectional, CHANGES),
    "attention": (lambda: Attention(FEATURES, False), CHANGES),
    "causal attention": (lambda: Attention(FEATURES, True), CHANGES),
    "a gate of zero": (Gated, CHANGES),
    "cumulative sum": (lambda: lambda x: jnp.cumsum(x, axis=1), CHANGES),
    "mean over time": (lambda: lambda x: x - x.mean(1, keepdims=True), CHANGES),
    "normalised over time": (lambda: over_time, CHANGES),
    "layer norm over time": (
        lambda: nnx.LayerNorm(T, reduction_axes=1, feature_axes=1, rngs=RNGS, **F64),
        CHANGES,
    ),
    "the step before": (lambda: lambda x: jnp.roll(x, 1, axis=1), CHANGES),
    "reversed": (lambda: lambda x: x[:, ::-1], CHANGES),
    "softmax over time": (lambda: lambda x: jax.nn.softmax(x, axis=1), CHANGES),
    "a linear layer over time": (
        lambda: nnx.Linear(FEATURES, FEATURES, rngs=RNGS, dot_general=summed, **F64),
        CHANGES,
    ),
    "positions": (lambda: sines, PLACE),
    "learned positions": (Learned, PLACE),
    "divided by the length": (lambda: lambda x: x / x.shape[1], PLACE),
}


def summed(x, kernel, dimensions, **options):
    return jax.lax.dot_general(jnp.cumsum(x, axis=1), kernel, dimensions, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_that_mixes_steps_is_refused(name):
    make, why = ENCODERS[name]
    message = rf"^the encoder must .* at step \d .*{why}"
    batch = make_batch(T, loss="mse", rows=B)
    with pytest.raises(ValueError, match=message):
        tbptt.train_step(state(make()), batch, PLAN)


class Pooled(nnx.Module):
    """Attention pooling: each output a mean of all, by learnt scores."""

    def __init__(self):
        self.score = nnx.Linear(HIDDEN, 1, rngs=nnx.Rngs(3), **F64)
        self.out = nnx.Linear(HIDDEN, CLASSES, rngs=nnx.Rngs(3), **F64)

    def __call__(self, h):
        share = jax.nn.softmax(self.score(h), axis=1)
        return self.out(h + (share * h).sum(1, keepdims=True))


@pytest.mark.parametrize("use", ["train_step", "gradient", "evaluate", "predict"])
def test_a_readout_that_mixes_steps_is_refused_wherever_it_is_used(use):
    batch = make_batch(T, loss="mse", rows=B)
    uses = {
        "train_step": lambda s: tbptt.train_step(s, batch, PLAN),
        "gradient": lambda s: tbptt.gradient(s, batch, PLAN),
        "evaluate": lambda s: tbptt.evaluate(s, [batch]),
        "predict": lambda s: tbptt.predict(s, batch),
    }
    message = f"^the readout must .* at step 0 .*{CHANGES}"
    with pytest.raises(ValueError, match=message):
        uses[use](state(readout=Pooled()))


def test_functions_of_a_model_are_tried_too():
    functions, params = tbptt.functional(tbptt.SequenceModel(None, core(), None))
    mixed = functions._replace(encode=lambda params, inputs, rng: jnp.cumsum(inputs, axis=1))
    model = tbptt.TrainState.create(mixed, optax.sgd(0.1), MSE, params=params)
    batch = make_batch(T, loss="mse", rows=B)
    with pytest.raises(ValueError, match=f"^the encoder must .* {CHANGES}"):
        tbptt.predict(model, batch)


def returns(y, t):
    """Two steps: the reward and what the next step promises."""
    ahead = jnp.concatenate([y[:, 1:], y[:, -1:]], axis=1)
    return ((t + 0.9 * ahead - y) ** 2).mean(-1)


def ctc(y, t):
    """The likelihood of a whole sequence, at each of its steps."""
    blank = jnp.zeros(y.shape[:2])
    loss = optax.losses.ctc_loss(y, blank, jnp.ones((len(y), 2), jnp.int32), jnp.zeros((len(y), 2)))
    return jnp.broadcast_to(loss[:, None], y.shape[:2])


MIXED_LOSSES = {
    "two-step return": (returns, CHANGES),
    "total variation": (
        lambda y, t: MSE(y, t).at[:, 1:].add(jnp.abs(y[:, 1:] - y[:, :-1]).sum(-1)),
        CHANGES,
    ),
    "diff": (lambda y, t: jnp.diff(MSE(y, t), axis=1, prepend=0.0), CHANGES),
    "mean over time": (
        lambda y, t: jnp.broadcast_to(MSE(y, t).mean(1, keepdims=True), t.shape[:2]),
        CHANGES,
    ),
    "ctc": (ctc, CHANGES),
    "normalised targets": (lambda y, t: MSE(y, t / jnp.abs(t).max(1, keepdims=True)), CHANGES),
    "of probabilities": (
        lambda y, t: -jnp.log(jnp.sqrt(y - 1e-9)).sum(-1).cumsum(1),
        CHANGES,
    ),
    "divided by the length": (lambda y, t: MSE(y, t) / t.shape[1], PLACE),
    "discounted by the place": (
        lambda y, t: MSE(y, t) * 0.9 ** jnp.arange(t.shape[1])[None],
        PLACE,
    ),
}


@pytest.mark.parametrize(
    ("name", "use"),
    [
        *((name, "loss") for name in MIXED_LOSSES),
        ("diff", "metric"),
        *(
            pytest.param(name, "metric", marks=pytest.mark.slow)
            for name in MIXED_LOSSES
            if name != "diff"
        ),
    ],
)
def test_a_loss_or_a_metric_that_mixes_steps_is_refused(name, use):
    loss, why = MIXED_LOSSES[name]
    batch = make_batch(T, "w", loss="mse", rows=B)
    who = "loss" if use == "loss" else "metric 'mine'"
    message = rf"^{who} must .* at step \d .*{why}"
    with pytest.raises(ValueError, match=message):
        _ = (
            tbptt.train_step(state(loss=loss), batch, PLAN)
            if use == "loss"
            else tbptt.evaluate(state(), [batch], {"mine": loss})
        )


# ------------------------------------------------------------------------------- what is taken


class Perceptron(nnx.Module):
    def __init__(self, features: int = FEATURES, outputs: int = FEATURES):
        self.norm = nnx.LayerNorm(features, rngs=nnx.Rngs(3), **F64)
        self.layers = nnx.Sequential(
            nnx.Linear(features, 16, rngs=nnx.Rngs(4), **F64),
            nnx.gelu,
            nnx.Dropout(0.5, rngs=nnx.Rngs(5)),
            nnx.Linear(16, outputs, rngs=nnx.Rngs(6), **F64),
        )

    def __call__(self, x):
        return self.layers(self.norm(x))


class Image(nnx.Module):
    """A convolution within each step."""

    def __init__(self):
        self.conv = nnx.Conv(1, 1, (2,), rngs=nnx.Rngs(4), **F64)

    def __call__(self, x):
        flat = x.reshape(-1, FEATURES, 1)
        return self.conv(flat).reshape(x.shape)


def of_rows(x):
    """Statistics of the rows, at each step."""
    return (x - x.mean(0, keepdims=True)) / (1e-3 + x.std(0, keepdims=True))


TAKEN = {
    "perceptron": Perceptron,
    "softmax": lambda: lambda x: jax.nn.softmax(x),
    "convolution within a step": Image,
    "statistics of rows": lambda: of_rows,
    "logarithm": lambda: jnp.log,
    "always infinite": lambda: lambda x: x / 0,
    "one row at a time": lambda: lambda x: jax.lax.map(jnp.tanh, x),
    "16 bits": lambda: (
        lambda x: (x.astype(jnp.bfloat16) @ jnp.ones((FEATURES, FEATURES), jnp.bfloat16)).astype(
            x.dtype
        )
    ),
    "a callback": lambda: (
        lambda x: jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    ),
    "a table": lambda: lambda x: jnp.linspace(0, 1, 10)[jnp.floor(jnp.abs(x)).astype(int)],
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_encoder_of_one_step_is_taken(name):
    probe.probed.clear()
    outputs = tbptt.predict(state(TAKEN[name]()), make_batch(T, "m", loss="mse", rows=B))
    assert outputs.shape == (B, T, CLASSES)
    assert list(probe.probed.values()) == [T]


def one_hot(ids):
    return jax.nn.one_hot(ids, FEATURES, dtype=jnp.float64)


def test_one_hot_ids_and_their_paddings_are_taken():
    batch = make_batch(T, "m", rows=B)
    for inputs in (np.zeros((B, T), np.int32), np.where(batch.mask, 2, -7), batch.targets):
        probe.probed.clear()
        data = batch._replace(inputs=inputs)
        assert tbptt.predict(state(one_hot, loss=XENT), data).shape == (B, T, CLASSES)
        assert len(probe.probed) == 1


TAKEN_LOSSES = {
    "closure over a constant": lambda y, t: MSE(y, t) * jnp.asarray([[2.0]]),
    "of rows": lambda y, t: MSE(y, t) - MSE(y, t).mean(0, keepdims=True),
    "of probabilities": lambda y, t: -jnp.log(y - 1e-9).sum(-1),
    "of legal targets": lambda y, t: (y + jnp.log(jnp.abs(t))).sum(-1),
    "clipped": lambda y, t: jnp.minimum(MSE(y, t), 1.0),
    "constant": lambda y, t: jnp.zeros(t.shape[:2]),
    "cosine": lambda y, t: optax.losses.cosine_distance(y, t),
    "float32": lambda y, t: MSE(y.astype(jnp.float32), t.astype(jnp.float32)),
    "float16": lambda y, t: MSE(y.astype(jnp.float16), t.astype(jnp.float16)),
}


@pytest.mark.parametrize("name", TAKEN_LOSSES)
def test_a_loss_of_one_step_is_taken(name):
    probe.probed.clear()
    loss = TAKEN_LOSSES[name]
    batch = make_batch(T, "mw", loss="mse", rows=B)
    tbptt.evaluate(state(loss=loss), [batch])
    assert probe.probed == {loss: T}


def test_pytrees_pass_through_all_parts():
    model = tbptt.SequenceModel(
        lambda x: x["a"] + x["b"][..., None],
        core(),
        lambda h: {"mean": h[..., 0], "all": h},
    )

    def loss(y, t):
        return (y["mean"] - t["x"]) ** 2 + jnp.where(t["flag"], y["all"].sum(-1), 0)

    rng = np.random.default_rng(0)
    batch = tbptt.Batch(
        {"a": rng.normal(size=(B, T, FEATURES)), "b": rng.integers(0, 3, (B, T))},
        {"x": rng.normal(size=(B, T)), "flag": rng.random((B, T)) < 0.5},
    )
    probe.probed.clear()
    good = tbptt.TrainState.create(model, optax.sgd(0.1), loss)
    tbptt.gradient(good, batch, PLAN)
    assert len(probe.probed) == 3
    bad = tbptt.TrainState.create(model, optax.sgd(0.1), lambda y, t: loss(y, t).cumsum(1))
    with pytest.raises(ValueError, match=f"^loss must .* {CHANGES}"):
        tbptt.gradient(bad, batch, PLAN)


# --------------------------------------------------------------------------------- when it is tried


def test_what_is_known_is_not_tried():
    probe.probed.clear()
    encoder = nnx.Sequential(
        nnx.Embed(10, FEATURES, rngs=RNGS, **F64),
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        nnx.LayerNorm(FEATURES, rngs=RNGS, **F64),
        nnx.RMSNorm(FEATURES, rngs=RNGS, **F64),
        jnp.tanh,
    )
    tbptt.gradient(
        state(encoder, loss=XENT), make_batch(T)._replace(inputs=np.ones((2, T), int)), PLAN
    )
    assert not probe.probed


def test_each_function_is_tried_once_and_again_where_steps_are_more(monkeypatch):
    probe.probed.clear()
    calls, real = [], mixing.compile_trial
    monkeypatch.setattr(mixing, "compile_trial", lambda *a: (calls.append(1), real(*a))[1])
    model = state(lambda x: jnp.tanh(x))
    for length, known in ((1, 0), (2, 2), (3, 2), (2, 2), (4, 4), (7, 4)):
        tbptt.predict(model, make_batch(length, loss="mse", rows=B))
        assert list(probe.probed.values()) == ([known] if known else [])
    assert len(calls) == 2


def test_a_dilated_convolution_is_found_once_a_batch_is_long_enough():
    model = state(lambda x: x + jnp.concatenate([0 * x[:, :5], x[:, :-5]], axis=1)[:, : x.shape[1]])
    tbptt.predict(model, make_batch(2, loss="mse", rows=B))
    with pytest.raises(ValueError, match=f"^the encoder must .* {CHANGES}"):
        tbptt.predict(model, make_batch(T, loss="mse", rows=B))


def test_a_step_that_takes_from_another_is_found_at_the_end_too():
    def encoder(x):
        alone = x.shape[1] == 1
        return x if alone else jnp.concatenate([x[:, :-1], x[:, -1:] + x[:, :1]], axis=1)

    with pytest.raises(ValueError, match=f"^the encoder must .* at step {T - 1} .*{CHANGES}"):
        tbptt.predict(state(encoder), make_batch(T, loss="mse", rows=B))


def test_what_was_tried_is_bounded(monkeypatch):
    monkeypatch.setattr(probe, "MOST_FUNCTIONS", 3)
    probe.probed.clear()
    tried = [object() for _ in range(5)]
    for key in tried:
        probe.probe(key, mixing.Function("f", lambda _, x: x, ""), (), [np.ones((1, 2))], 2)
    assert list(probe.probed) == tried[-3:]


@pytest.mark.parametrize("how", ["jit", "vmap", "eval_shape"])
def test_inside_a_transformation_it_is_tried_on_numbers_made_up(how):
    batch = jax.tree.map(jnp.asarray, make_batch(T, "mw", loss="mse", rows=B))
    wrapped = {
        "jit": lambda f: jax.jit(f),
        "vmap": lambda f: (
            lambda s, b: jax.vmap(f)(*jax.tree.map(lambda a: jnp.stack([a, a]), (s, b)))
        ),
        "eval_shape": lambda f: lambda s, b: jax.eval_shape(f, s, b),
    }[how]

    def mean(s, b):
        return tbptt.train_step(s, b, PLAN)[1].loss

    good, bad = state(lambda x: jnp.tanh(x)), state(lambda x: jnp.cumsum(x, axis=1))
    probe.probed.clear()
    assert wrapped(mean)(good, batch) is not None
    assert len(probe.probed) == 2
    with pytest.raises(ValueError, match=f"^the encoder must .* {CHANGES}"):
        wrapped(mean)(bad, batch)


def test_the_rule_is_where_users_read_it():
    for owner in (tbptt.SequenceModel, tbptt.Model, tbptt.Batch):
        assert re.search(r"of\s+one\s+step", owner.__doc__ or "")
