"""Encoder, readout and loss are functions of one step; one that mixes steps is found and refused.

A window would cut what such a function takes from the steps outside, and the gradient would not be
that of the credit matrix. Each function is run once, on one or two rows of the first batch: every
step but one is changed, and the result of that one must stay; then it is computed alone, and must
be the same again. Functions that are known to be of one step are not run, nor is a batch of a
single step.
"""

import collections
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tbptt_jax.models.one_step import is_declared_of_one_step
from tbptt_jax.types import Array, Batch, LossFn, Model, Params, Tree
from tbptt_jax.validation.mixing import Function, check_steps
from tbptt_jax.validation.shapes import with_leading

MOST_STEPS, MOST_ROWS, MOST_FUNCTIONS = 256, 2, 256
PART_ADVICE = (
    "move it into the core, or compute it on whole sequences before the Batch is made and pass the "
    "result as inputs"
)
LOSS_ADVICE = (
    "write it with one step's outputs and targets, and put what it needs of other steps (returns, "
    "differences, smoothed targets) into the targets before the Batch is made"
)
# How many steps each function was run on, the latest last.
probed: collections.OrderedDict[Hashable, int] = collections.OrderedDict()


def check_parts(model: Model, params: Params, batch: Batch, ys: Tree) -> None:
    """Raise if the encoder or the readout mixes steps.

    Args:
      model, params: the network; traced parameters are replaced by zeros.
      batch: [B, T, ...]; traced arrays are replaced by random numbers.
      ys: the core's outputs [B, T, ...], as shapes.

    Raises:
      ValueError: a step's result changes with other steps, or with its place.
    """
    shape = _batch_shape(batch.inputs)
    encode_due, readout_due = (_is_due(f, shape[1]) for f in (model.encode, model.readout))
    if not (encode_due or readout_due):
        return
    steps = _choose_steps(_values(batch.mask), shape)
    params = jax.tree.map(_untraced, params)
    if encode_due:
        encode = Function("the encoder", lambda p, x: model.encode(p, x, None), PART_ADVICE)
        probe(model.encode, encode, params, [_take(batch.inputs, steps)], steps.shape[1])
    if readout_due:
        random = _random(with_leading(steps.shape, ys), seed=3)
        readout = Function("the readout", lambda p, y: model.readout(p, y, None), PART_ADVICE)
        probe(model.readout, readout, params, [random], steps.shape[1])


def check_loss(name: str, loss: LossFn, outputs: Tree, batch: Batch) -> None:
    """Raise if a loss, or a metric, mixes steps.

    Args:
      name: what the message calls the function.
      loss: `(outputs, targets) -> losses [B, T]`.
      outputs: the model's, [B, T, ...], as shapes.
      batch: its targets are used, at scored steps.

    Raises:
      ValueError: as `check_parts`.
    """
    shape = _batch_shape(batch.targets)
    if not _is_due(loss, shape[1]):
        return
    counts, weights = _values(batch.mask), _values(batch.weights)
    if weights is not None:
        counts = weights != 0 if counts is None else (weights != 0) & counts
    steps = _choose_steps(counts, shape)
    random, targets = (
        _random(with_leading(steps.shape, outputs), seed=4),
        _take(batch.targets, steps),
    )
    # Numbers of any size first; where those have no loss, probabilities.
    candidates = [(random, targets), (jax.tree.map(_probabilities, random), targets)]
    function = Function(name, lambda _, pair: loss(*pair), LOSS_ADVICE)
    probe(loss, function, (), candidates, steps.shape[1])


def probe(
    key: Hashable, function: Function, params: Params, candidates: Sequence[Tree], steps: int
) -> None:
    """Check a function as `check_steps` does, and remember that it passed."""
    check_steps(function, params, candidates, steps)
    probed[key] = steps
    probed.move_to_end(key)
    if len(probed) > MOST_FUNCTIONS:
        probed.popitem(last=False)


def _is_due(function: Callable, length: int) -> bool:
    if length < 2 or is_declared_of_one_step(function):
        return False
    return probed.get(function, 0) < _probed_steps(length)


def _probed_steps(length: int) -> int:
    """How many steps are used: a power of 2, so that few lengths are compiled."""
    return min(MOST_STEPS, 2 ** (length.bit_length() - 1))


def _batch_shape(tree: Tree) -> tuple[int, int]:
    """B and T."""
    return jax.tree.leaves(tree)[0].shape[:2]


# -------------------------------------------------------------------------- what functions run on


def _values(array: Array | None) -> np.ndarray | None:
    """The values; None where there are none yet, or not all of them are here."""
    if array is None or isinstance(array, Tracer):
        return None
    return np.asarray(array) if getattr(array, "is_fully_addressable", True) else None


def _untraced(leaf: Array) -> Array:
    return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, Tracer) else leaf


def _choose_steps(counts: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """Steps that count, repeated, as indices into [B * T]: int [rows, steps]."""
    if counts is None or not counts.any():
        counts = np.ones(shape, bool)
    fullest = np.argsort(-counts.sum(axis=1), kind="stable")[:MOST_ROWS]
    chosen = [row * shape[1] + np.flatnonzero(counts[row]) for row in fullest if counts[row].any()]
    return np.stack([np.resize(row, _probed_steps(shape[1])) for row in chosen])


def _take(tree: Tree, steps: np.ndarray) -> Tree:
    """Those steps of every array; random numbers for arrays that cannot be read."""

    def take(leaf: Array) -> np.ndarray:
        values = _values(leaf)
        if values is None:
            return _random(with_leading(steps.shape, leaf), seed=2)
        # Not the whole array, which may be large, but for a view of it.
        return values.reshape(-1, *values.shape[2:])[steps]

    return jax.tree.map(take, tree)


def _random(shapes: Tree, seed: int) -> Tree:
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, np.inexact):
            return rng.normal(size=leaf.shape).astype(leaf.dtype)
        return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


def _probabilities(array: np.ndarray) -> np.ndarray:
    """Positive numbers that sum to 1 along the last axis; below 1 where there is none."""
    if not jnp.issubdtype(array.dtype, np.inexact):
        return array
    odds = np.exp(array.astype(np.float64))
    total = odds.sum(axis=-1, keepdims=True) if array.ndim > 2 else 1 + odds
    return (odds / total).astype(array.dtype)
