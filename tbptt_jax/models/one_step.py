"""Layers and functions that are known to be of one step, so that no probe runs them.

Their result at a step depends on that step alone.
"""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tbptt_jax.cells.layers import is_plain

# Functions of each number, or of the last axis alone.
_ACTIVATIONS = (
    *(nnx.relu, nnx.relu6, nnx.elu, nnx.celu, nnx.selu, nnx.gelu, nnx.silu, nnx.sigmoid, nnx.tanh),
    *(nnx.leaky_relu, nnx.hard_tanh, nnx.hard_sigmoid, nnx.hard_silu, nnx.softplus, nnx.soft_sign),
    *(nnx.log_sigmoid, nnx.softmax, nnx.log_softmax, nnx.standardize),
    *(jnp.tanh, jnp.exp, jnp.square, jnp.abs, jax.nn.relu, jax.nn.sigmoid),
)
_losses = optax.losses
_declared: weakref.WeakSet[Any] = weakref.WeakSet(
    (
        *(_losses.softmax_cross_entropy_with_integer_labels, _losses.softmax_cross_entropy),
        *(_losses.squared_error, _losses.l2_loss, _losses.sigmoid_binary_cross_entropy),
        *(_losses.huber_loss, _losses.log_cosh),
    )
)


def is_layer_of_one_step(layer: object) -> bool:
    """Whether an encoder or a readout, or None for the identity, is known to be of one step."""
    if type(layer) is nnx.Sequential:
        return all(map(is_layer_of_one_step, layer.layers))
    if layer is None or type(layer) is nnx.Dropout:
        return True
    return is_plain(layer) or any(layer is function for function in _ACTIVATIONS)


def declare_of_one_step(function: Callable[..., Any]) -> None:
    """Declare that a function's result at a step depends on that step alone."""
    _declared.add(function)


def is_declared_of_one_step(function: Callable[..., Any]) -> bool:
    """Whether a function was declared so, as some of optax's losses are."""
    return function in _declared
