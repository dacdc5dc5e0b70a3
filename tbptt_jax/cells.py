"""flax's LSTM and GRU cells, unrolled by the fused recurrence.

sigmoid(z) = (1 + tanh(z / 2)) / 2, with the half folded into the weights, so that every gate is a
tanh of what the projections give.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax import fused
from tbptt_jax.arguments import check_count
from tbptt_jax.fused import Gates, Weights
from tbptt_jax.recurrence import step_shape
from tbptt_jax.recurrence import unroll as scan
from tbptt_jax.types import Array, Carry


class LSTM(nnx.OptimizedLSTMCell):
    """flax's `nnx.OptimizedLSTMCell`, same parameters and same step, with a faster unroll.

    The cell's arguments are flax's: `in_features`, `hidden_features`, `rngs`, and by keyword
    `dtype` (of the computation; `jnp.bfloat16` keeps the parameters and the carry in
    `param_dtype`), `param_dtype`, initializers and so on. The carry is the pair (c, h).

    In a `SequenceModel` flax's own `nnx.OptimizedLSTMCell` and `nnx.GRUCell` run as fast.

    Example:
      >>> from flax import nnx
      >>> LSTM(64, 128, rngs=nnx.Rngs(0)).dense_i.kernel.shape
      (64, 512)
    """

    def __init__(self, in_features: int, hidden_features: int, **options: Any):
        check_count("LSTM", "in_features", in_features)
        check_count("LSTM", "hidden_features", hidden_features)
        super().__init__(in_features, hidden_features, **options)

    def unroll(
        self, carry: Carry, xs: Any, mask: Array | None = None, reset: Array | None = None
    ) -> tuple[Carry, Any, Carry]:
        """Run over xs [B, T, in_features]; arguments and results as `recurrence.unroll`."""
        return unroll(self, carry, xs, mask, reset)


def unroll(
    cell: Any, carry: Carry, xs: Any, mask: Array | None, reset: Array | None
) -> tuple[Carry, Any, Carry]:
    """Run a cell over xs [B, T, features] by the fastest way that gives the numbers of its step.

    Where the step is flax's LSTM or GRU, with their own activations and in one dtype: fused. With
    others: the step as it is, given inputs that are all projected at once. Any other cell: its
    step, scanned. Arguments and results as `recurrence.unroll`.
    """
    initial = None if reset is None else cell_carry(cell, step_shape(xs), nnx.Rngs(0))
    kind = next((k for k in _KINDS if _has_step_of(cell, k.flax)), None)
    if kind is None:
        return scan(cell, carry, xs, mask, reset, initial)
    if _is_usual(cell, carry, xs):
        leaves, structure = jax.tree.flatten(carry)
        start = None if initial is None else tuple(jax.tree.leaves(initial))
        weights = kind.weights(cell)
        end, ys, carries = fused.unroll(kind.gates, weights, tuple(leaves), xs, mask, reset, start)
        return structure.unflatten(end), ys, structure.unflatten(carries)
    projected = SimpleNamespace(
        dense_i=lambda x: x,
        dense_h=cell.dense_h,
        gate_fn=cell.gate_fn,
        activation_fn=cell.activation_fn,
    )

    def step(carry: Any, x: Any) -> Any:
        return kind.flax.__call__(projected, carry, x)

    return scan(step, carry, cell.dense_i(xs), mask, reset, initial)


def cell_carry(cell: Any, input_shape: Any, rngs: nnx.Rngs) -> Carry:
    """The cell's initial carry; flax's cells want `rngs` even for zeros, others may not take it."""
    if "rngs" in inspect.signature(cell.initialize_carry).parameters:
        return cell.initialize_carry(input_shape, rngs=rngs)
    return cell.initialize_carry(input_shape)


class _Kind(NamedTuple):
    """One of flax's cells: its gates, and a cell's weights with the halves folded in."""

    flax: Any
    gates: Gates
    weights: Callable[[Any], Weights]


def _has_step_of(cell: Any, flax: Any) -> bool:
    """Whether a cell is one of flax's, or a subclass that leaves its step alone."""
    return isinstance(cell, flax) and type(cell).__call__ is flax.__call__


def _is_usual(cell: Any, carry: Carry, xs: Any) -> bool:
    """Whether the arithmetic is what the gates below do: plain layers, sigmoid, tanh, one dtype."""
    layers = (cell.dense_i, cell.dense_h)
    arrays = (xs, *jax.tree.leaves((carry, [nnx.state(layer, nnx.Param) for layer in layers])))
    dtypes = {a.dtype for a in arrays} | {jnp.dtype(cell.dtype or xs.dtype)}
    return (
        all(type(layer) is nnx.Linear for layer in layers)
        and cell.gate_fn is nnx.sigmoid
        and cell.activation_fn is nnx.tanh
        and dtypes in ({jnp.dtype("float32")}, {jnp.dtype("float64")})
    )


def _weights(cell: Any, bias: Any, *halved: bool) -> Weights:
    """The cell's weights, a half folded into the columns of the gates that are sigmoids."""
    x, h, bias = cell.dense_i.kernel[...], cell.dense_h.kernel[...], bias[...]
    factors = jnp.where(jnp.array(halved), 0.5, 1.0).astype(h.dtype)
    half = jnp.repeat(factors, cell.hidden_features)
    return Weights(x * half[None], h * half[None], bias * half)


def _sigmoid(t: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * t


def _lstm_weights(cell: Any) -> Weights:
    return _weights(cell, cell.dense_h.bias, True, True, False, True)


def _lstm_open(zx, zh):
    # Each gate an array of its own: on a CPU faster than one array and its slices.
    return tuple(map(jnp.tanh, jnp.split(zx + zh, 4, axis=-1)))


def _lstm_step(carry, saved):
    t_i, t_f, g, t_o = saved
    c = _sigmoid(t_f) * carry[0] + _sigmoid(t_i) * g
    return c, _sigmoid(t_o) * jnp.tanh(c)


def _lstm_pull(before, saved, d_after):
    c, (d_c, d_h) = before[0], d_after
    t_i, t_f, g, t_o = saved
    i, f, o = map(_sigmoid, (t_i, t_f, t_o))
    s = jnp.tanh(f * c + i * g)
    d_c = d_c + d_h * o * (1 - s * s)
    dz = (
        0.5 * d_c * g * (1 - t_i * t_i),
        0.5 * d_c * c * (1 - t_f * t_f),
        d_c * i * (1 - g * g),
        0.5 * d_h * s * (1 - t_o * t_o),
    )
    return (d_c * f, jnp.zeros_like(d_h)), jnp.concatenate(dz, axis=-1)


def _gru_weights(cell: Any) -> Weights:
    return _weights(cell, cell.dense_i.bias, True, True, False)


def _gru_open(zx, zh):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(z, 3, axis=-1) for z in (zx, zh))
    t_r, t_z = jnp.tanh(x_r + h_r), jnp.tanh(x_z + h_z)
    return t_r, t_z, jnp.tanh(x_n + _sigmoid(t_r) * h_n), h_n


def _gru_step(carry, saved):
    (h,), (_, t_z, n, _) = carry, saved
    z = _sigmoid(t_z)
    return ((1 - z) * n + z * h,)


def _gru_pull(before, saved, d_after):
    (h,), (d,) = before, d_after
    t_r, t_z, n, h_n = saved
    r, z = _sigmoid(t_r), _sigmoid(t_z)
    d_n = d * (1 - z) * (1 - n * n)
    d_r, d_z = 0.5 * d_n * h_n * (1 - t_r * t_r), 0.5 * d * (h - n) * (1 - t_z * t_z)
    return (d * z,), jnp.concatenate([d_r, d_z, d_n, d_n * r], axis=-1)


def _gru_to_h(dz):
    d_r, d_z, _, d_from_h = jnp.split(dz, 4, axis=-1)
    return jnp.concatenate([d_r, d_z, d_from_h], axis=-1)


def _gru_to_x(dz):
    return dz[..., : 3 * (dz.shape[-1] // 4)]


def _as_it_is(dz):
    return dz


_KINDS = (
    _Kind(
        nnx.OptimizedLSTMCell,
        Gates(_lstm_open, _lstm_step, _lstm_pull, _as_it_is, _as_it_is),
        _lstm_weights,
    ),
    _Kind(nnx.GRUCell, Gates(_gru_open, _gru_step, _gru_pull, _gru_to_x, _gru_to_h), _gru_weights),
)
