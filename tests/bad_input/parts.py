"""Bad input: parts of a network, losses and optimizers that truncation cannot train."""

# The cases are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalCall=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tbptt_jax as tbptt
from tests.bad_input.calls import (
    CLASSES,
    FEATURES,
    FUNCTIONS,
    IDS,
    LABELS,
    NUMBERS,
    PARAMS,
    PLAN,
    SERIES,
    STATE,
    STREAM,
    TEXT,
    B,
    Case,
    T,
    create,
    embed,
    for_numbers,
    mse,
    network,
    numbers,
    rngs,
    text,
)

LAYER = nnx.Linear(4, 4, rngs=rngs())


class HidesItsCell:
    """A core whose cell is no module of the model."""

    def __init__(self):
        self.cell = nnx.GRUCell(4, 4, rngs=rngs())

    def __call__(self, carry, x):
        return self.cell(carry, x)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape, rngs)


def model(encoder=None, core=None, readout=None) -> tbptt.SequenceModel:
    """For SERIES."""
    core = core or tbptt.LSTM(FEATURES, 4, rngs=rngs())
    return tbptt.SequenceModel(encoder, core, readout or nnx.Linear(4, CLASSES, rngs=rngs()))


def predict(**parts):
    return lambda: tbptt.predict(create(model(**parts), loss=mse), NUMBERS)


def trained(loss):
    return lambda: tbptt.train_step(for_numbers(loss), NUMBERS, PLAN)


def unrolled(change):
    """`check_unroll` of the network's own unroll, with its results changed."""

    def unroll(*arguments):
        return change(FUNCTIONS.unroll(*arguments))

    return lambda: tbptt.check_unroll(FUNCTIONS._replace(unroll=unroll), PARAMS, IDS)


def explicit_axes():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,))
    put = jax.device_put(IDS, NamedSharding(mesh, PartitionSpec("rows")))
    train = jax.jit(lambda inputs: tbptt.train_step(STATE, TEXT._replace(inputs=inputs), PLAN))
    return train(put)


def carry_of_16_bits():
    window = tbptt.Window(IDS, LABELS)
    carry = (np.zeros((B, 4), np.float16),) * 2
    return tbptt.window_value_and_grad(FUNCTIONS, STATE.loss, PARAMS, carry, window)


PARTS: list[Case] = [
    ("encoder mixes steps", predict(encoder=lambda x: jnp.cumsum(x, axis=1)), ValueError),
    ("encoder counts steps", predict(encoder=lambda x: x / x.shape[1]), ValueError),
    ("readout mixes steps", predict(readout=lambda y: y - y.mean(1, keepdims=True)), ValueError),
    ("loss mixes steps", trained(lambda y, t: jnp.cumsum(mse(y, t), 1)), ValueError),
    (
        "metric mixes steps",
        lambda: tbptt.evaluate(
            for_numbers(), NUMBERS, {"total": lambda y, t: jnp.cumsum(mse(y, t), 1)}
        ),
        ValueError,
    ),
    ("readout uses a layer", lambda: model(readout=lambda y: LAYER(y)), TypeError),
    ("loss uses a layer", lambda: create(loss=lambda y, t: mse(LAYER(y), t)), TypeError),
    ("loss a layer", lambda: create(loss=LAYER), TypeError),
    (
        "function of a model uses a layer",
        lambda: create(
            FUNCTIONS._replace(readout=lambda params, ys, rng: LAYER(ys)), params=PARAMS
        ),
        TypeError,
    ),
    ("core hides its cell", lambda: model(core=HidesItsCell()), TypeError),
    (
        "batch statistics",
        lambda: create(network(nnx.Sequential(embed(), nnx.BatchNorm(4, rngs=rngs())))),
        TypeError,
    ),
    (
        "optimizer of two arguments more",
        lambda: create(optimizer=optax.lookahead(optax.sgd(0.1), 5, 0.5)),
        ValueError,
    ),
    ("unroll of other outputs", unrolled(lambda r: (r[0], r[1] + 1, r[2])), ValueError),
    ("unroll of two results", unrolled(lambda r: r[:2]), ValueError),
    (
        "unroll with carries of rows first",
        unrolled(lambda r: (*r[:2], jax.tree.map(lambda c: jnp.swapaxes(c, 0, 1), r[2]))),
        ValueError,
    ),
    (
        "no unroll to check",
        lambda: tbptt.check_unroll(FUNCTIONS._replace(unroll=None), PARAMS, IDS),
        TypeError,
    ),
    ("unroll of a module", lambda: tbptt.check_unroll(network(embed()), PARAMS, IDS), TypeError),
    ("explicit axes", explicit_axes, ValueError),
    ("carry of another dtype", carry_of_16_bits, TypeError),
    (
        "a short last interval",
        lambda: tbptt.gradient(STATE, TEXT._replace(reset=STREAM), tbptt.Truncation(3, 3)),
        UserWarning,
    ),
    ("loss of integers", trained(lambda y, t: y.argmax(-1) - t.argmax(-1)), TypeError),
    ("loss of two results", trained(lambda y, t: (mse(y, t), 1.0)), TypeError),
    ("inputs a list", numbers(inputs=SERIES.tolist()), TypeError),
    ("inputs of one row", numbers(inputs=SERIES[0, :, 0]), ValueError),
    ("targets of a row each", text(targets=LABELS[:, 0]), ValueError),
    ("targets of classes", text(targets=np.zeros((B, CLASSES))), ValueError),
    ("no targets", text(targets=None), TypeError),
    ("mask of integers", text(mask=np.ones((B, T), np.int32)), TypeError),
    ("mask too short", text(mask=~STREAM[:, 1:]), ValueError),
    ("weights of integers", text(weights=np.ones((B, T), np.int32)), TypeError),
    ("weights of features", text(weights=np.ones((B, T, 1))), ValueError),
]
