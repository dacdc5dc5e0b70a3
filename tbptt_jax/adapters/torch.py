"""PyTorch's recurrent layers: `nn.LSTM`, `nn.GRU` and `nn.RNN`, with an encoder and a readout.

PyTorch's gates are in the order i, f, g, o (LSTM) and r, z, n (GRU), as flax's are. Each gate has
two biases, of equal gradients: an optimizer moves their sum twice as far as one bias. Only in the
GRU's n, where the second bias stands inside the reset gate, are they no sum.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.adapters.parts import (
    Fused,
    Layer,
    Noise,
    Scanned,
    assemble,
    check_arrays,
    dropped,
    numbered,
    peer,
)
from tbptt_jax.cells import gru, lstm, simple
from tbptt_jax.cells.gated import Leaves, Weights, plus
from tbptt_jax.types import Model, Params, Tree

# The arrays of a module by their names in its state_dict.
Arrays: TypeAlias = Mapping[str, jax.Array]
# (arrays, x, rng) to the outputs of a module.
Function: TypeAlias = Callable[[Arrays, Tree, jax.Array | None], Tree]
Biases: TypeAlias = tuple[jax.Array | None, jax.Array | None]


def from_torch(
    rnn: Any, *, encoder: Any = None, readout: Any = None, fold_biases: bool = False
) -> tuple[Model, Params]:
    """A PyTorch network as a `Model` and its parameters.

    Args:
      rnn: an `nn.LSTM`, `nn.GRU` or `nn.RNN` of one direction and any number of layers; their
        dropout is on in training. `batch_first` does not matter: a `Batch` is [B, T, ...].
      encoder, readout: the modules before and behind it, or None: `nn.Linear`, `nn.Embedding`,
        `nn.LayerNorm`, `nn.Dropout`, `nn.Identity`, the common activations, and `nn.Sequential` of
        these. A weight that both use is one parameter, with the sum of the gradients.
      fold_biases: one bias for each gate in place of PyTorch's two. The outputs are the same; an
        optimizer no longer moves the sum twice, and clipping counts it once.

    Returns:
      The functions and copies of the parameters: a dict with "rnn" and, where they have any,
      "encoder" and "readout"; each with the names and shapes of its `state_dict`, but for folded
      biases: "bias_l0" for the first layer and, in a GRU, "bias_hn_l0". Parameters with
      `requires_grad=False` are constants of the functions. Make the pair once: another one compiles
      new programs.

    Raises:
      TypeError: a module or a dtype that is not one of these.
      ValueError: a layer of two directions, which reads the future; or an option that is not
        supported.
    """
    modules = _modules(rnn, encoder, readout)
    read, encode = _function("readout", readout), _function("encoder", encoder)
    places = _places(modules, fold_biases)

    model = assemble(
        lambda params, x, rng: (encode(places.arrays(params, "encoder"), x, rng), None),
        [
            _layer(rnn, number, functools.partial(places.arrays, part="rnn"))
            for number in range(rnn.num_layers)
        ],
        [()] + [(Noise(rnn.dropout),) if rnn.dropout else ()] * (rnn.num_layers - 1),
        lambda params, y, rng: read(places.arrays(params, "readout"), y, rng),
        _vocabulary(encoder),
    )
    return model, places.params


def to_torch(params: Params, rnn: Any, *, encoder: Any = None, readout: Any = None) -> None:
    """Write parameters into the modules that `from_torch` took, or into others of their shapes.

    Args:
      params: of a state that trained the model of `from_torch`. A folded bias becomes the first of
        the two, and the second is 0.
      rnn, encoder, readout: the modules, which are changed.

    Raises:
      TypeError: as `from_torch`.
      ValueError: the parameters are not those of such modules.
    """
    torch = peer("torch")

    modules = _modules(rnn, encoder, readout)
    fold = any(name.startswith("bias_l") for name in params.get("rnn", ()))
    check_arrays(
        "to_torch: params must be those of these modules",
        _flat(params),
        _flat(_places(modules, fold).params),
    )
    if fold:
        params = {**params, "rnn": _unfolded(rnn, params["rnn"])}
    with torch.no_grad():
        for part, arrays in params.items():
            tensors = dict(modules[part].named_parameters())
            for name, array in arrays.items():
                tensors[name].copy_(torch.from_numpy(np.array(array)))


def _flat(params: Params) -> dict[str, jax.Array]:
    return {f"{part}.{name}": a for part, own in params.items() for name, a in own.items()}


def _modules(rnn: Any, encoder: Any, readout: Any) -> dict[str, Any]:
    """The modules by the names of their parts, those that are None left out; checked."""
    torch = peer("torch")

    if type(rnn) not in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN):
        raise TypeError(
            f"from_torch: rnn must be an nn.LSTM, nn.GRU or nn.RNN, got {type(rnn).__name__}; pass "
            "the modules before and behind it as encoder and readout"
        )
    if rnn.bidirectional:
        raise ValueError(
            "from_torch: rnn must have one direction, got bidirectional=True, which reads the "
            "future; a window would cut it"
        )
    parts = {"encoder": encoder, "rnn": rnn, "readout": readout}
    return {name: module for name, module in parts.items() if module is not None}


class _Places(NamedTuple):
    """Where the arrays of the modules are.

    Attributes:
      params: what is trained, by part and name.
      owners: by part and name, where in `params` an array is; a tied one in the first part.
      constants: what is not trained, by part and name.
    """

    params: dict[str, dict[str, jax.Array]]
    owners: dict[str, dict[str, tuple[str, str]]]
    constants: dict[str, dict[str, jax.Array]]

    def arrays(self, params: Params, part: str) -> Arrays:
        """The arrays of a part."""
        trained = {name: params[p][n] for name, (p, n) in self.owners.get(part, {}).items()}
        return {**self.constants.get(part, {}), **trained}


def _places(modules: Mapping[str, Any], fold_biases: bool) -> _Places:
    params, owners, constants = {}, {}, {}
    seen: dict[int, tuple[str, str]] = {}
    for part, module in modules.items():
        for name, tensor in module.named_parameters(remove_duplicate=False):
            if not tensor.requires_grad:
                constants.setdefault(part, {})[name] = _array(part, name, tensor)
                continue
            owner = seen.setdefault(id(tensor), (part, name))
            owners.setdefault(part, {})[name] = owner
            if owner == (part, name):
                params.setdefault(part, {})[name] = _array(part, name, tensor)
    if fold_biases and modules["rnn"].bias:
        if any(name.startswith("bias") for name in constants.get("rnn", {})):
            raise ValueError(
                "from_torch: with fold_biases every bias must be trained, got one with "
                "requires_grad=False"
            )
        params["rnn"] = _folded(modules["rnn"], params["rnn"])
        owners["rnn"] = {name: ("rnn", name) for name in params["rnn"]}
    return _Places(params, owners, constants)


def _array(part: str, name: str, tensor: Any) -> jax.Array:
    torch = peer("torch")

    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"from_torch: {part}.{name} must be float32 or float64, got {tensor.dtype}; convert it "
            "with module.float()"
        )
    array = jnp.array(tensor.detach().cpu().numpy())
    if array.dtype.itemsize != tensor.element_size():
        raise TypeError(
            f"from_torch: {part}.{name} is float64, which JAX rounds to float32; convert it with "
            'module.float(), or set jax.config.update("jax_enable_x64", True)'
        )
    return array


# ------------------------------------------------------------------------------------------ biases


def _bias_names(number: int) -> list[str]:
    """PyTorch's two of a layer; folded: the one of every gate, and the second one of a GRU's n."""
    return [f"{name}_l{number}" for name in ("bias_ih", "bias_hh", "bias", "bias_hn")]


def _folded(rnn: Any, arrays: Arrays) -> dict[str, jax.Array]:
    folded, gates = dict(arrays), _gates_in_sum(rnn)
    for number in range(rnn.num_layers):
        first, second, one, rest = _bias_names(number)
        in_sum, other = jnp.split(folded.pop(second), [gates * rnn.hidden_size])
        folded[one] = folded.pop(first).at[: in_sum.size].add(in_sum)
        if other.size:
            folded[rest] = other
    return folded


def _unfolded(rnn: Any, arrays: Arrays) -> dict[str, jax.Array]:
    unfolded = dict(arrays)
    for number in range(rnn.num_layers):
        first, second, one, rest = _bias_names(number)
        unfolded[first] = unfolded.pop(one)
        unfolded[second] = jnp.zeros_like(unfolded[first])
        if rest in unfolded:
            other = unfolded.pop(rest)
            unfolded[second] = unfolded[second].at[-other.size :].set(other)
    return unfolded


def _gates_in_sum(rnn: Any) -> int:
    """For how many gates the two biases are a sum."""
    return {"LSTM": 4, "GRU": 2}.get(rnn.mode, 1)


def _biases(arrays: Arrays, number: int) -> Biases:
    """The biases of the projections of the input and of the hidden state; None: none."""
    first, second, one, rest = (arrays.get(name) for name in _bias_names(number))
    if one is None:
        return first, second
    if rest is not None:
        rest = jnp.concatenate([jnp.zeros(one.size - rest.size, one.dtype), rest])
    return one, rest


# ------------------------------------------------------------------------------------------ layers


def _layer(rnn: Any, number: int, arrays_of: Callable[[Params], Arrays]) -> Layer:
    def get(params: Params) -> tuple[jax.Array, jax.Array, *Biases]:
        arrays = arrays_of(params)
        x, h = (arrays[f"weight_{name}_l{number}"].T for name in ("ih", "hh"))
        return x, h, *_biases(arrays, number)

    if rnn.mode == "LSTM" and rnn.proj_size:

        def step(params: Params, carry: Leaves, x: jax.Array) -> tuple[Leaves, jax.Array]:
            (c, h), (w_x, w_h, b_x, b_h) = carry, get(params)
            i, f, g, o = jnp.split(plus(plus(x @ w_x + h @ w_h, b_x), b_h), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = (jax.nn.sigmoid(o) * jnp.tanh(c)) @ arrays_of(params)[f"weight_hr_l{number}"].T
            return (c, h), h

        return Scanned(rnn.proj_size, (rnn.hidden_size, rnn.proj_size), step)
    if rnn.mode in ("LSTM", "GRU"):
        cell = lstm.CELL if rnn.mode == "LSTM" else gru.CELL
        return Fused(
            rnn.hidden_size, cell.carries, cell.equations, lambda params: cell.folded(*get(params))
        )
    equations = simple.TANH if rnn.nonlinearity == "tanh" else simple.RELU
    return Fused(rnn.hidden_size, 1, equations, lambda params: Weights(*get(params)))


# --------------------------------------------------------------------------- encoders and readouts


def _vocabulary(encoder: Any) -> int | None:
    torch = peer("torch")

    while type(encoder) is torch.nn.Sequential and len(encoder):
        encoder = encoder[0]
    return encoder.num_embeddings if type(encoder) is torch.nn.Embedding else None


def _function(where: str, module: Any, prefix: str = "") -> Function:
    """A module as a function of its arrays, whose names begin with `prefix` in `state_dict`."""
    torch = peer("torch")

    nn = torch.nn
    kind: Any = type(module)
    if module is None or kind is nn.Identity:
        return lambda arrays, x, rng: x
    if kind is nn.Sequential:
        parts = [_function(f"{where}[{n}]", m, f"{prefix}{n}.") for n, m in module.named_children()]
        return functools.partial(_in_turn, parts)
    if kind is nn.Linear:
        return lambda arrays, x, rng: plus(
            x @ arrays[f"{prefix}weight"].T, arrays.get(f"{prefix}bias")
        )
    if kind is nn.Embedding:
        _refuse(where, module, max_norm=None, scale_grad_by_freq=False)
        return functools.partial(_embed, f"{prefix}weight", module.padding_idx)
    if kind is nn.LayerNorm:
        if len(module.normalized_shape) != 1:
            raise ValueError(
                f"from_torch: {where}: nn.LayerNorm must normalize the last axis alone, got "
                f"normalized_shape={list(module.normalized_shape)}"
            )
        return functools.partial(_normalize, prefix, module.eps)
    if kind is nn.Dropout:
        return lambda arrays, x, rng: x if rng is None else dropped(x, module.p, rng)
    if kind in (nn.Softmax, nn.LogSoftmax):
        _refuse(where, module, dim=-1)
    for known, function in _activations(nn).items():
        if kind is known:
            activation = function(module)
            return lambda arrays, x, rng: activation(x)
    raise TypeError(
        f"from_torch: {where} must be made of nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout, "
        f"nn.Identity, activations and nn.Sequential, got {kind.__name__}; leave it out, and write "
        "its function and parameters into the Model and params"
    )


def _activations(nn: Any) -> dict[type, Callable[[Any], Callable[[jax.Array], jax.Array]]]:
    """From a module of a class to its function."""
    return {
        nn.ReLU: lambda m: jax.nn.relu,
        nn.Tanh: lambda m: jnp.tanh,
        nn.Sigmoid: lambda m: jax.nn.sigmoid,
        nn.SiLU: lambda m: jax.nn.silu,
        nn.GELU: lambda m: functools.partial(jax.nn.gelu, approximate=m.approximate == "tanh"),
        nn.ELU: lambda m: functools.partial(jax.nn.elu, alpha=m.alpha),
        nn.LeakyReLU: lambda m: functools.partial(
            jax.nn.leaky_relu, negative_slope=m.negative_slope
        ),
        nn.Softmax: lambda m: jax.nn.softmax,
        nn.LogSoftmax: lambda m: jax.nn.log_softmax,
    }


def _refuse(where: str, module: Any, **only: Any) -> None:
    """Raise a ValueError for an option with another value than the only one there is."""
    for name, value in only.items():
        if (found := getattr(module, name)) != value:
            raise ValueError(
                f"from_torch: {where}: {type(module).__name__} must have {name}={value}, got "
                f"{found}"
            )


def _in_turn(parts: list[Function], arrays: Arrays, x: Tree, rng: jax.Array | None) -> Tree:
    for number, part in enumerate(parts):
        x = part(arrays, x, numbered(rng, number))
    return x


def _embed(
    name: str, padding: int | None, arrays: Arrays, ids: jax.Array, rng: jax.Array | None
) -> jax.Array:
    table = arrays[name]
    if padding is not None:  # this row is not trained
        table = table.at[padding].set(jax.lax.stop_gradient(table[padding]))
    return jnp.take(table, ids, axis=0)


def _normalize(
    prefix: str, epsilon: float, arrays: Arrays, x: jax.Array, rng: jax.Array | None
) -> jax.Array:
    x = jax.nn.standardize(x, axis=-1, epsilon=epsilon)
    scale, bias = (arrays.get(prefix + name) for name in ("weight", "bias"))
    return plus(x if scale is None else x * jnp.expand_dims(scale, range(x.ndim - 1)), bias)
