"""Networks and batches of the cases, and functions that make calls which fail."""

# The cases are what the types forbid.
# pyright: reportArgumentType=false, reportCallIssue=false

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import data

B, T, WORDS, CLASSES, FEATURES = 2, 4, 10, 3, 2
PLAN = tbptt.Truncation(2, 2)
XENT = optax.losses.softmax_cross_entropy_with_integer_labels
IDS = np.arange(B * T).reshape(B, T)
LABELS = IDS % CLASSES
SERIES, GOAL = np.ones((B, T, FEATURES), np.float32), np.zeros((B, T, CLASSES), np.float32)
TEXT, NUMBERS = tbptt.Batch(IDS, LABELS), tbptt.Batch(SERIES, GOAL)
ONES, NONE, STREAM = np.ones((B, T)), np.zeros((B, T)), np.zeros((B, T), bool)
RAGGED = [np.arange(3), np.arange(5)]
MARKS = [np.array([False, True, False]), np.array([False] * 5)]
NOISE = np.random.default_rng(0).normal(size=50)


def mse(outputs, targets):
    return optax.losses.squared_error(outputs, targets).mean(-1)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def embed() -> nnx.Embed:
    return nnx.Embed(WORDS, 4, rngs=rngs())


def network(encoder: Any) -> tbptt.SequenceModel:
    core, readout = tbptt.LSTM(4, 4, rngs=rngs()), nnx.Linear(4, CLASSES, rngs=rngs())
    return tbptt.SequenceModel(encoder, core, readout)


def create(model: Any = None, optimizer: Any = None, loss: Any = XENT, **options: Any) -> Any:
    """A state for TEXT, with what is given in place of what is right."""
    model = network(embed()) if model is None else model
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return tbptt.TrainState.create(model, optimizer, loss, **options)


def for_numbers(loss: Any = mse) -> tbptt.TrainState:
    return create(network(nnx.Linear(FEATURES, 4, rngs=rngs())), loss=loss)


# They are given to train_step only where it refuses, which leaves them as they are.
STATE, STATE_FOR_NUMBERS = create(), for_numbers()
FUNCTIONS, PARAMS = tbptt.functional(network(embed()))


def put(value: Any, array: Any) -> Any:
    """A copy with another value in row 1 at step 2."""
    changed = np.array(array)
    changed[1, 2] = value
    return changed


def text(plan: tbptt.Truncation = PLAN, **fields: Any) -> Callable[[], Any]:
    """`train_step` on TEXT with other fields."""
    return lambda: tbptt.train_step(STATE, TEXT._replace(**fields), plan)


def numbers(**fields: Any) -> Callable[[], Any]:
    """`train_step` on NUMBERS with other fields."""
    return lambda: tbptt.train_step(STATE_FOR_NUMBERS, NUMBERS._replace(**fields), PLAN)


def wrong(function: Callable[..., Any], *args: Any, **fields: Any) -> Callable[[], Any]:
    """Another function on NUMBERS with other fields."""
    return lambda: function(STATE_FOR_NUMBERS, NUMBERS._replace(**fields), *args)


def misfit() -> Any:
    """A core that is not made for what the encoder gives."""
    state = create(tbptt.SequenceModel(embed(), tbptt.LSTM(5, 4, rngs=rngs())))
    return tbptt.train_step(state, TEXT, PLAN)


def donated() -> tbptt.TrainState:
    state = create()
    tbptt.train_step(state, TEXT, PLAN)
    return state


def stream_of_two_then_three() -> Any:
    batch = TEXT._replace(reset=STREAM)
    state, _ = tbptt.train_step(create(), batch, PLAN)
    return tbptt.train_step(state, jax.tree.map(lambda x: x[[0, 1, 1]], batch), PLAN)


def scored(metrics: Any) -> Callable[[], Any]:
    return lambda: tbptt.evaluate(STATE, TEXT, metrics)


def window(reach: Any = None, block: Any = None, carry: Any = None, **fields: Any) -> Any:
    """`window_value_and_grad` on the steps of TEXT with other fields."""
    given = tbptt.Window(IDS, LABELS)._replace(**fields)
    return lambda: tbptt.window_value_and_grad(
        FUNCTIONS, XENT, PARAMS, carry, given, reach=reach, block=block
    )


def buckets(sequences: Any = RAGGED, labels: Any = (0, 1), **options: Any) -> Callable[[], Any]:
    options = {"batch_size": 2, "multiple": 2, **options}
    return lambda: data.bucketed_batches(sequences, labels, **options)


def stretches(inputs: Any = IDS[0], **options: Any) -> Callable[[], Any]:
    return lambda: data.batchify(inputs, **{"batch_size": 1, "steps": 2, **options})


def checkpoints(use: Callable[[tbptt.Checkpoints], Any]) -> Callable[[pathlib.Path], Any]:
    """What is done with a folder of a checkpoint that holds three zeros as "a"."""

    def call(folder: pathlib.Path) -> Any:
        with tbptt.Checkpoints(folder) as kept:
            kept.save({"a": jnp.zeros(3)})
            kept.wait()
            use(kept)

    return call


def an_empty_file(folder: pathlib.Path) -> pathlib.Path:
    (folder / "file").touch()
    return folder / "file"


# A name; a call; the exception or warning that it raises, whose message is in messages.txt.
Case = tuple[str, Callable[..., Any], type[Exception]]
