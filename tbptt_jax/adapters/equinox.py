"""Cells and layers of Equinox, which have no batch: they are mapped over rows and steps."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt_jax.adapters.parts import Apply, peer, unroll_known
from tbptt_jax.cells import gru, lstm
from tbptt_jax.cells.flax_cell import FlaxCell
from tbptt_jax.cells.gated import Weights
from tbptt_jax.types import Carry, Model, Params, Tree


def from_equinox(
    cell: Any,
    *,
    encoder: Any = None,
    readout: Any = None,
    initial: Carry = None,
    output: Callable[[Carry], Tree] | None = None,
) -> tuple[Model, Params]:
    """A cell of Equinox, with an encoder and a readout, as a `Model` and its parameters.

    Args:
      cell: a module of one step of one sequence, `(x, carry) -> carry`, as `eqx.nn.LSTMCell` and
        `eqx.nn.GRUCell` are.
      encoder, readout: modules or functions of one step of one sequence, as `eqx.nn.Linear` is; or
        None. A call with an argument `key` gets one in training; what `eqx.nn.inference_mode`
        switches off (dropout) is off outside of training.
      initial: the carry of one sequence before its first step, a constant; None: zeros, for the two
        cells of Equinox.
      output: from the carry of one sequence to the cell's output; None: the hidden state of the
        two cells of Equinox, and otherwise the whole carry.

    Returns:
      The functions and the parameters: {"encoder": ..., "core": ..., "readout": ...}, each the
      module itself with None for all that is no floating-point array, as `eqx.partition(module,
      eqx.is_inexact_array)` makes it; `eqx.combine` puts them together again. Make the pair once:
      another one compiles new programs.

    Raises:
      TypeError: no `initial` for a cell that is not one of Equinox's two.
    """
    eqx = peer("equinox")

    known = _known(cell)
    if initial is None:
        initial = _zeros(cell, known)
    # The fused scan gives the hidden state at every step.
    fused = known if output is None else None
    if output is None:
        output = _hidden_state if known is lstm.CELL else _whole_carry
    parts = {"encoder": encoder, "core": cell, "readout": readout}
    arrays = {name: eqx.partition(part, eqx.is_inexact_array) for name, part in parts.items()}
    params = {name: own for name, (own, _) in arrays.items() if jax.tree.leaves(own)}

    def merge(params: Params, name: str, training: bool) -> Any:
        own = params.get(name, arrays[name][0])
        return eqx.nn.inference_mode(eqx.combine(own, arrays[name][1]), value=not training)

    def initialize_carry(params: Params, input_shape: tuple[int, ...]) -> Carry:
        rows = jax.tree.leaves(input_shape)[0]
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (rows, *jnp.shape(a))), initial)

    def step(params: Params, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        carry = jax.vmap(merge(params, "core", False))(x, carry)
        return carry, jax.vmap(output)(carry)

    def random_step(params: Params, carry: Carry, x: Tree, rng: jax.Array) -> tuple[Carry, Tree]:
        module = merge(params, "core", True)
        keys = jax.random.split(rng, jax.tree.leaves(x)[0].shape[0])
        carry = jax.vmap(lambda x, c, key: module(x, c, key=key))(x, carry, keys)
        return carry, jax.vmap(output)(carry)

    encode, read = (
        _layer(None if parts[name] is None else functools.partial(merge, name=name))
        for name in ("encoder", "readout")
    )
    model = Model(initialize_carry, encode, step, read)
    if fused is not None:
        weights = functools.partial(_weights, fused)
        model = model._replace(unroll=unroll_known(fused, weights, model, hidden_first=True))
    elif known is None and _takes_key(cell):
        model = model._replace(random_step=random_step)
    return model, params


def _layer(merge: Callable[..., Any] | None) -> Apply:
    """An encoder or a readout, mapped over rows and steps."""
    if merge is None:
        return lambda params, x, rng: x

    def apply(params: Params, x: Tree, rng: jax.Array | None) -> Tree:
        module = merge(params, training=rng is not None)
        if rng is None or not _takes_key(module):
            return jax.vmap(jax.vmap(module))(x)
        keys = jax.random.split(rng, jax.tree.leaves(x)[0].shape[:2])
        return jax.vmap(jax.vmap(lambda x, key: module(x, key=key)))(x, keys)

    return apply


def _zeros(cell: Any, known: FlaxCell | None) -> Carry:
    """The carry of one of Equinox's cells before the first step."""
    if known is None:
        raise TypeError(
            f"from_equinox: initial must be given for a {type(cell).__name__}: the carry of one "
            "sequence before its first step"
        )
    zero = jnp.zeros(cell.hidden_size, cell.weight_hh.dtype)
    return (zero, zero) if known is lstm.CELL else zero


def _hidden_state(carry: Carry) -> Tree:
    return carry[0]


def _whole_carry(carry: Carry) -> Tree:
    return carry


def _takes_key(module: Any) -> bool:
    return "key" in inspect.signature(module).parameters


def _known(cell: Any) -> FlaxCell | None:
    """The cell of flax with the same equations; None: there is none."""
    eqx = peer("equinox")

    return {eqx.nn.LSTMCell: lstm.CELL, eqx.nn.GRUCell: gru.CELL}.get(type(cell))


def _weights(same: FlaxCell, params: Params) -> Weights:
    own = params["core"]
    h_bias = getattr(own, "bias_n", None)
    if h_bias is not None:
        h_bias = jnp.concatenate([jnp.zeros(2 * h_bias.size, h_bias.dtype), h_bias])
    return same.folded(own.weight_ih.T, own.weight_hh.T, own.bias, h_bias)
