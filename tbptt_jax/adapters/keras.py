"""Keras 3 models with recurrent layers, on Keras' JAX backend.

Keras' gates are in the order i, f, c, o (LSTM), as flax's are, and z, r, h (GRU), as they are not.
An LSTM has one bias, a GRU two. Dropout of a recurrent layer drops the same inputs at every step.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.adapters.parts import (
    Fused,
    Layer,
    Noise,
    Pointwise,
    Scanned,
    assemble,
    check_arrays,
    numbered,
    peer,
)
from tbptt_jax.cells import gru, lstm, simple
from tbptt_jax.cells.gated import Leaves, Weights
from tbptt_jax.types import Model, Params

Arrays = Mapping[str, jax.Array]


def from_keras(model: Any) -> tuple[Model, Params]:
    """A Keras model as a `Model` and its parameters.

    Args:
      model: a built `keras.Sequential` or functional `keras.Model`, a chain of layers of one input
        and one output, with one recurrent layer or more: `LSTM`, `GRU`, `SimpleRNN`. Layers before
        and behind them are those of one step: `Embedding`, `Dense`, `Dropout` and so on; between
        them `Dense`, `LayerNormalization`, activations and dropout. Where an `Embedding` or a
        `Masking` layer masks steps, the carry and the output are held there, as in Keras; the loss
        is masked by the mask of the `Batch` alone.

    Returns:
      The functions and copies of the trainable weights: {layer name: {weight name: array}}, in
      Keras' layout; other weights are constants. The outputs are those of every step, also where
      the last recurrent layer has `return_sequences=False`: give the last step the only weight.
      Make the pair once: another one compiles new programs.

    Raises:
      TypeError: a model, or a layer, that is not one of these, or one with running statistics.
      ValueError: Keras runs on another backend; or an option that is not supported:
        `go_backwards`, `recurrent_dropout`, regularizers and constraints.
    """
    keras = peer("keras")

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"from_keras: Keras must run on JAX, got the backend {keras.backend.backend()!r}; set "
            "KERAS_BACKEND=jax before keras is imported"
        )
    before, between, behind = _parts(model)
    constants = {one.name: _arrays(one, one.non_trainable_variables) for one in model.layers}
    params = {one.name: _arrays(one, one.trainable_variables) for one in model.layers}

    def arrays_of(params: Params, layer: Any) -> Arrays:
        return {**constants[layer.name], **params.get(layer.name, {})}

    def encode(params: Params, x: Any, rng: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        exists = None
        for number, layer in enumerate(before):
            mask = layer.compute_mask(x, exists) if layer.supports_masking else None
            x, exists = _call(layer, arrays_of(params, layer), x, numbered(rng, number)), mask
        return x, exists

    def readout(params: Params, y: jax.Array, rng: jax.Array | None) -> jax.Array:
        rows, steps = y.shape[:2]
        if flat:  # a layer may tell [B, features] from [B, T, features]
            y = y.reshape(rows * steps, *y.shape[2:])
        for number, layer in enumerate(behind):
            y = _call(layer, arrays_of(params, layer), y, numbered(rng, number))
        return y.reshape(rows, steps, *y.shape[1:]) if flat else y

    flat = not between[-1].return_sequences
    layers, noise = _layers(between, arrays_of)
    vocabulary = (
        before[0].input_dim if before and type(before[0]) is keras.layers.Embedding else None
    )
    functions = assemble(encode, layers, noise, readout, vocabulary)
    return functions, {name: arrays for name, arrays in params.items() if arrays}


def to_keras(params: Params, model: Any) -> None:
    """Write parameters into the model that `from_keras` took, or into another one of its layers.

    Args:
      params: of a state that trained the model of `from_keras`.
      model: the Keras model; changed.

    Raises:
      ValueError: the parameters are not those of such a model.
    """
    places = {
        f"{layer.name}: {_name(layer, variable)}": variable
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    given = {f"{part}: {name}": a for part, own in params.items() for name, a in own.items()}
    check_arrays("to_keras: params must be those of this model", given, places)
    for name, variable in places.items():
        variable.assign(given[name])


def _parts(model: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The layers before, from the first to the last, and behind the recurrent ones; checked."""
    keras = peer("keras")

    if not isinstance(model, keras.Model) or not model.built or not hasattr(model, "inputs"):
        raise TypeError(
            "from_keras: model must be a built Sequential or functional keras.Model, got "
            f"{type(model).__name__}; write keras.Model(inputs, outputs)"
        )
    layers = [one for one in model.layers if type(one) is not keras.layers.InputLayer]
    flow = model.inputs[0]
    for layer in layers:
        # Behind a layer that masks steps the mask is an input too.
        first, *masks = layer.input if isinstance(layer.input, list) else [layer.input]
        if len(model.inputs) > 1 or first is not flow or any(m.dtype != "bool" for m in masks):
            raise TypeError(
                "from_keras: model must be a chain of layers, each with the output of the one "
                f"before it as its only input, got another input at {layer.name!r}"
            )
        flow = layer.output
    recurrent = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    places = [i for i, layer in enumerate(layers) if type(layer) in recurrent]
    if not places:
        raise TypeError("from_keras: model must have an LSTM, GRU or SimpleRNN layer, got none")
    for layer in layers:
        _check(layer)
    first, last = places[0], places[-1] + 1
    return layers[:first], layers[first:last], layers[last:]


def _check(layer: Any) -> None:
    keras = peer("keras")

    where = f"from_keras: layer {layer.name!r}"
    kept = [v for v in layer.variables if v.regularizer is not None or v.constraint is not None]
    if kept or getattr(layer, "activity_regularizer", None) is not None:
        raise ValueError(
            f"{where} must have no regularizer and no constraint, which training here would leave "
            "out; write them into the loss or the optimizer"
        )
    statistics = (keras.layers.BatchNormalization, keras.layers.SpectralNormalization)
    if isinstance(layer, statistics):
        raise TypeError(
            f"{where} is a {type(layer).__name__}, whose running statistics training by windows "
            "cannot update; use LayerNormalization"
        )
    if layer.compute_dtype != layer.variable_dtype and layer.weights:
        raise ValueError(
            f"{where} must compute in the dtype of its weights, {layer.variable_dtype}, got "
            f"{layer.compute_dtype}; set its dtype"
        )
    for option in ("go_backwards", "recurrent_dropout", "return_state", "zero_output_for_mask"):
        if getattr(layer, option, None):
            raise ValueError(
                f"{where} must have {option}={type(getattr(layer, option))()}, got "
                f"{getattr(layer, option)}"
            )


def _arrays(layer: Any, variables: Sequence[Any]) -> dict[str, jax.Array]:
    """Weights of a layer by their names, without the seeds of its dropout."""
    return {_name(layer, v): jnp.array(np.asarray(v.value)) for v in variables if not _is_seed(v)}


def _name(layer: Any, variable: Any) -> str:
    """A weight's name within its layer."""
    return variable.path.split(f"{layer.name}/", 1)[-1]


def _is_seed(variable: Any) -> bool:
    return variable.name == "seed_generator_state"


def _call(layer: Any, arrays: Arrays, x: Any, rng: jax.Array | None) -> jax.Array:
    """A layer's own call with these arrays; random numbers only with a key."""

    def value(variable: Any) -> jax.Array:
        if not _is_seed(variable):
            return arrays[_name(layer, variable)]
        if rng is None:
            return jnp.zeros(variable.shape, variable.dtype)
        own = jax.random.fold_in(rng, [id(v) for v in layer.variables].index(id(variable)))
        return jax.random.bits(own, variable.shape, variable.dtype)

    options = {}
    if "training" in inspect.signature(layer.call).parameters:
        options["training"] = rng is not None
    outputs, _ = layer.stateless_call(
        [value(v) for v in layer.trainable_variables],
        [value(v) for v in layer.non_trainable_variables],
        x,
        **options,
    )
    return outputs


def _layers(
    between: Sequence[Any], arrays_of: Callable[[Params, Any], Arrays]
) -> tuple[list[Layer], list[list[Noise]]]:
    """The layers of the core, and the noise of the inputs of each."""
    layers, noise, waiting = [], [], []
    for layer in between:
        dropped = _noise(layer)
        if dropped is not None:
            waiting.append(dropped)
        if hasattr(layer, "cell"):
            layers.append(_recurrent(layer, lambda params, layer=layer: arrays_of(params, layer)))
        elif dropped is None:
            layers.append(_pointwise(layer, lambda params, layer=layer: arrays_of(params, layer)))
        else:
            continue
        noise.append([one for one in waiting if one.rate])
        waiting = []
    return layers, noise


def _noise(layer: Any) -> Noise | None:
    """The dropout that a layer is, or has of its inputs; None: neither."""
    keras = peer("keras")

    kinds = keras.layers
    if type(layer) is kinds.Dropout and layer.noise_shape is not None:
        raise ValueError(
            f"from_keras: layer {layer.name!r} must have noise_shape=None, got {layer.noise_shape}"
        )
    if type(layer) in (kinds.Dropout, kinds.SpatialDropout1D):
        return Noise(layer.rate, whole=type(layer) is kinds.SpatialDropout1D)
    return Noise(layer.dropout, whole=True) if hasattr(layer, "cell") else None


def _pointwise(layer: Any, own: Callable[[Params], Arrays]) -> Layer:
    keras = peer("keras")

    kinds = keras.layers
    known = (kinds.Dense, kinds.Activation, kinds.ReLU, kinds.LeakyReLU, kinds.ELU)
    last_axis = type(layer) is kinds.LayerNormalization and layer.axis in (-1, [-1], 2, [2])
    if type(layer) not in known and not last_axis:
        raise TypeError(
            f"from_keras: between recurrent layers a layer must be Dense, LayerNormalization, an "
            f"activation or dropout, got {type(layer).__name__} {layer.name!r}"
        )
    features: Any = layer.output
    return Pointwise(features.shape[-1], lambda params, x: _call(layer, own(params), x, None))


def _recurrent(layer: Any, own: Callable[[Params], Arrays]) -> Layer:
    known = _known(layer, own)
    if known is not None:
        return known
    cell = layer.cell
    names = [_name(layer, v) for v in cell.trainable_variables]
    others = cell.non_trainable_variables
    count = 2 if hasattr(cell, "unit_forget_bias") else 1

    def step(params: Params, carry: Leaves, x: jax.Array) -> tuple[Leaves, jax.Array]:
        arrays = own(params)
        rest = [arrays.get(_name(layer, v), v.value) for v in others]
        # Keras' states are (h, c).
        (y, states), _ = cell.stateless_call(
            [arrays[name] for name in names], rest, x, list(carry[::-1])
        )
        return tuple(states[::-1]), y

    return Scanned(layer.units, (layer.units,) * count, step)


def _known(layer: Any, own: Callable[[Params], Arrays]) -> Fused | None:
    """The layer by the fused scan; None: that has not its equations."""
    keras = peer("keras")

    activations, kinds = keras.activations, keras.layers
    gates = getattr(layer, "recurrent_activation", activations.sigmoid)
    if layer.activation is not activations.tanh or gates is not activations.sigmoid:
        return None
    prefix = f"{layer.cell.name}/"

    def get(params: Params) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        arrays = own(params)
        x, h = (arrays[f"{prefix}{kind}kernel"] for kind in ("", "recurrent_"))
        return x, h, arrays.get(f"{prefix}bias")

    def of_gru(params: Params) -> Weights:
        x, h, bias = get(params)
        x_bias, h_bias = (None, None) if bias is None else map(_reset_first, bias)
        return gru.CELL.folded(_reset_first(x), _reset_first(h), x_bias, h_bias)

    if type(layer) is kinds.LSTM:
        fold = lstm.CELL.folded
        return Fused(layer.units, 2, lstm.CELL.equations, lambda params: fold(*get(params), None))
    if type(layer) is kinds.SimpleRNN:
        return Fused(layer.units, 1, simple.TANH, lambda params: Weights(*get(params), None))
    return Fused(layer.units, 1, gru.CELL.equations, of_gru) if layer.reset_after else None


def _reset_first(columns: jax.Array) -> jax.Array:
    """The gates z, r, h of Keras' GRU as r, z, h."""
    z, r, h = jnp.split(columns, 3, axis=-1)
    return jnp.concatenate([r, z, h], axis=-1)
