"""TBPTT(k, k) written by hand around a peer's own functions, one step after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt_jax as tbptt

B, T, FEATURES, HIDDEN, CLASSES = 3, 6, 4, 5, 6
LOSS = optax.losses.softmax_cross_entropy_with_integer_labels
ATOL32 = 1e-5
MARKS = [(), ("mask", "reset", "weights")]


class Peer(NamedTuple):
    """A network by its library's own functions of one step; x is [B, ...].

    Attributes:
      initial: `params -> carry`.
      step: `(params, carry, x) -> (carry, outputs)`, with encoder and readout.
    """

    initial: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


def batch(marks: tuple[str, ...] = (), dtype: Any = np.float64) -> tbptt.Batch:
    rng = np.random.default_rng(0)
    arrays = {
        "mask": rng.random((B, T)) < 0.7,
        "reset": rng.random((B, T)) < 0.3,
        "weights": rng.random((B, T)).astype(dtype),
    }
    inputs = rng.normal(size=(B, T, FEATURES)).astype(dtype)
    return tbptt.Batch(
        inputs, rng.integers(0, CLASSES, (B, T)), **{name: arrays[name] for name in marks}
    )


def marks_of(b: tbptt.Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mask, reset and weights, as arrays."""
    mask = np.ones((B, T), bool) if b.mask is None else b.mask
    reset = np.zeros((B, T), bool) if b.reset is None else b.reset
    return mask, reset, mask * (np.float32(1) if b.weights is None else b.weights)


def select(flags: np.ndarray, a: Any, b: Any) -> Any:
    return jax.tree.map(
        lambda a, b: jnp.where(np.expand_dims(flags, tuple(range(1, a.ndim))), a, b), a, b
    )


def outputs(peer: Peer, params: Any, carry: Any, b: tbptt.Batch, start: int, stop: int) -> Any:
    """The last carry and the outputs [B, N, ...] of some steps."""
    mask, reset, _ = marks_of(b)
    found = []
    for t in range(start, stop):
        carry = select(reset[:, t], peer.initial(params), carry)
        new, y = peer.step(params, carry, jnp.asarray(b.inputs[:, t]))
        carry = select(mask[:, t], new, carry)
        found.append(y)
    return carry, jnp.stack(found, axis=1)


def updates(peer: Peer, params: Any, b: tbptt.Batch, k: int, rate: float) -> tuple[Any, list]:
    """The parameters after plain gradient descent with an update every k steps, and the losses."""
    weights, carry, losses = marks_of(b)[2], None, []
    for start in range(0, T, k):

        def loss(params: Any, carry: Any = carry, start: int = start) -> tuple[Any, Any]:
            carry = peer.initial(params) if carry is None else carry  # a learnt one is trained
            carry, found = outputs(peer, params, carry, b, start, start + k)
            w = weights[:, start : start + k]
            return (LOSS(found, b.targets[:, start : start + k]) * w).sum() / w.sum(), carry

        (value, carry), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        carry = jax.lax.stop_gradient(carry)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        losses.append(value)
    return params, losses


def check(
    model: tbptt.Model, params: Any, peer: Peer, marks: tuple[str, ...], dtype: Any = np.float64
) -> None:
    """Values, the gradient of full BPTT and an update of every three steps are the peer's own."""
    b, atol = batch(marks, dtype), 1e-12 if dtype == np.float64 else ATOL32
    state = tbptt.TrainState.create(model, optax.sgd(0.5), LOSS, params=params)
    _, expected = outputs(peer, params, peer.initial(params), b, 0, T)
    mask = marks_of(b)[0]
    found = tbptt.predict(state, b)
    np.testing.assert_allclose(np.asarray(found)[mask], np.asarray(expected)[mask], atol=atol)
    whole, _ = updates(peer, params, b, T, 1.0)
    gradient = tbptt.gradient(state, b, tbptt.Truncation(T, T))
    for g, before, after in zip(*map(jax.tree.leaves, (gradient, params, whole)), strict=True):
        assert np.abs(before - after).max() > 1e-6
        np.testing.assert_allclose(g, before - after, atol=atol)
    expected, losses = updates(peer, params, b, 3, 0.5)
    state, metrics = tbptt.train_step(state, b, tbptt.Truncation(3, 3))
    np.testing.assert_allclose(metrics.loss, losses, rtol=10 * atol)
    assert jax.tree.structure(state.params) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (state.params, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)
