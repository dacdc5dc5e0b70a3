"""Cells and layers of `flax.linen`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tbptt_jax.adapters.parts import switches, unroll_known
from tbptt_jax.cells import gru, lstm
from tbptt_jax.cells.gated import Weights
from tbptt_jax.types import Carry, Model, Params, Tree


def from_linen(
    cell: Any,
    *,
    encoder: Any = None,
    readout: Any = None,
    params: Params = None,
    inputs: Tree = None,
    seed: int = 0,
) -> tuple[Model, Params]:
    """A cell of `flax.linen`, with an encoder and a readout, as a `Model` and its parameters.

    Args:
      cell: an `nn.RNNCellBase`: `(carry, x) -> (carry, y)` and `initialize_carry(rng, shape)`.
      encoder, readout: modules or functions of one step, [B, K, ...] to [B, K, ...]; or None. If
        a call takes `deterministic`, `train` or `training`, it is set; "dropout" numbers are drawn
        in training only.
      params: {"encoder": ..., "core": ..., "readout": ...}, each what the module's `init` returns
        under "params"; those without parameters may be missing. None: they are initialized.
      inputs: with params=None: the inputs of a batch, [B, T, ...], or their
        `jax.ShapeDtypeStruct`s.
      seed: of the initialization.

    Returns:
      The functions and the parameters. Make the pair once: another one compiles new programs.

    Raises:
      TypeError: neither `params` nor `inputs`; or a module with variables that are no parameters,
        such as running statistics, which training by windows cannot update.

    Examples:
      >>> import flax.linen as nn
      >>> model, params = from_linen(
      ...     nn.GRUCell(16), readout=nn.Dense(1), inputs=jnp.zeros((2, 5, 3)))
      >>> params["core"]["hn"]["kernel"].shape
      (16, 16)
    """
    parts = {"encoder": encoder, "core": cell, "readout": readout}
    if params is None:
        if inputs is None:
            raise TypeError("from_linen: params or inputs must be given, got neither")
        params = _initialize(parts, inputs, seed)
    model = Model(
        initialize_carry=lambda params, shape: _initial(cell, params, shape),
        encode=_layer("encoder", encoder),
        step=lambda params, carry, x: _apply(cell, _own(params, "core"), (carry, x), None),
        readout=_layer("readout", readout),
    )
    if switches(cell, True):
        model = model._replace(
            random_step=lambda params, carry, x, rng: _apply(
                cell, _own(params, "core"), (carry, x), rng
            )
        )
    elif (weights := _known(cell)) is not None:
        model = model._replace(unroll=unroll_known(*weights, model))
    return model, params


def _own(params: Params, part: str) -> Params:
    return params.get(part, {})


def _layer(part: str, module: Any) -> Callable[[Params, Tree, jax.Array | None], Tree]:
    if module is None:
        return lambda params, x, rng: x
    return lambda params, x, rng: _apply(module, _own(params, part), (x,), rng)


def _apply(module: Any, params: Params, arguments: tuple, rng: jax.Array | None) -> Tree:
    from flax import linen

    options = switches(module, rng is not None)
    if not isinstance(module, linen.Module):
        return module(*arguments, **options)
    rngs = {} if rng is None else {"dropout": rng}
    return module.apply({"params": params}, *arguments, rngs=rngs, **options)


def _initial(cell: Any, params: Params, shape: tuple[int, ...]) -> Carry:
    variables = {"params": _own(params, "core")}
    return cell.apply(variables, jax.random.key(0), shape, method="initialize_carry")


def _initialize(parts: Mapping[str, Any], inputs: Tree, seed: int) -> Params:
    from flax import linen

    params, key = {}, jax.random.key(seed)

    def init(number: int, part: str, *arguments: Tree) -> Tree:
        module = parts[part]
        if module is None:
            return arguments[0]
        if not isinstance(module, linen.Module):
            return jax.eval_shape(module, *arguments)
        options = switches(module, False)
        own = jax.random.fold_in(key, number)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments)
        variables = dict(
            jax.jit(lambda own, zeros: module.init(own, *zeros, **options))(own, zeros)
        )
        found = variables.pop("params", {})
        if variables:
            raise TypeError(
                f"from_linen: {part} holds variables of the collections "
                f"{', '.join(sorted(variables))}, which training by windows cannot update; use "
                "layers without running statistics (nn.LayerNorm for nn.BatchNorm)"
            )
        if found:
            params[part] = found
        return jax.eval_shape(lambda: _apply(module, found, zeros, None))

    xs = init(0, "encoder", inputs)
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), xs)
    shape = jax.tree.map(lambda x: x.shape, x)
    carry = parts["core"].initialize_carry(key, shape)
    _, y = init(1, "core", carry, x)
    steps = jax.tree.leaves(xs)[0].shape[1]
    ys = jax.tree.map(lambda y: jax.ShapeDtypeStruct((y.shape[0], steps, *y.shape[1:]), y.dtype), y)
    init(2, "readout", ys)
    return params


def _known(cell: Any) -> tuple[Any, Callable[[Params], Weights]] | None:
    """The cell of nnx with the same equations, and its weights; None: there is none."""
    from flax import linen

    kind: Any = type(cell)
    if kind not in (linen.LSTMCell, linen.OptimizedLSTMCell, linen.GRUCell):
        return None
    if cell.gate_fn is not linen.sigmoid or cell.activation_fn is not linen.tanh or cell.dtype:
        return None
    same, gates = (gru.CELL, "rzn") if kind is linen.GRUCell else (lstm.CELL, "ifgo")

    def weights(params: Params) -> Weights:
        own = params["core"]
        arrays = []
        for side in "ih":
            layers = [own[side + gate] for gate in gates]
            arrays.append(jnp.concatenate([layer["kernel"] for layer in layers], axis=1))
            some = next((layer["bias"] for layer in layers if "bias" in layer), None)
            bias = None
            if some is not None:
                bias = jnp.concatenate(
                    [layer.get("bias", jnp.zeros_like(some)) for layer in layers]
                )
            arrays.append(bias)
        x, x_bias, h, h_bias = arrays
        return same.folded(x, h, x_bias, h_bias)

    return same, weights
