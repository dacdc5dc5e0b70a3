"""A network as a flax nnx module: an encoder, a recurrent core and a readout."""

import types
from collections.abc import Callable
from typing import Any, TypeAlias

from flax import nnx

from tbptt_jax.models.closed_over import check_module
from tbptt_jax.models.stack import check_core, what_is
from tbptt_jax.types import Cell, Tree

Layer: TypeAlias = Callable[[Any], Any]


class SequenceModel(nnx.Module):
    """An encoder, a recurrent core and a readout.

    Encoder and readout are called once for all steps of a window; only the core is sequential.
    Dropout and other random numbers are on in `train_step` and off elsewhere. A core that draws
    (recurrent dropout, zoneout) does so at each step of each window, from its own `nnx.Rngs`, and
    not where `self.deterministic` is True, as `nnx.Module.eval` sets it.

    Args:
      encoder: [B, T, ...] to [B, T, features], for example `nnx.Embed`; None: inputs as they are.
      core: `tbptt_jax.LSTM`, any flax nnx cell, `tbptt_jax.Stack`, or an nnx module of your own
        with `(carry, x) -> (carry, y)` and `initialize_carry(input_shape, rngs)`.
      readout: [B, T, features] to [B, T, ...], for example `nnx.Linear`; None: the core's outputs.

    Encoder and readout are functions of one step: their result at a step depends on that step
    alone, not on other steps and not on its place in the window. A window would cut what they read
    of other steps, so `train_step`, `evaluate` and the others refuse those that do (a ValueError).
    Convolutions over time, attention and bidirectional layers belong in the core, or are computed
    on whole sequences before the `Batch` is made.

    A layer used twice, and a layer with its bound method (`encoder=embed, readout=embed.attend`),
    is one set of parameters, with the sum of the gradients. The model trains what it holds: a
    function that reaches another module, whose parameters would be constants, is refused.

    Raises:
      TypeError: the core has no step or no `initialize_carry`, another part is no function, or a
        part reaches an nnx module that the model does not hold (a lambda that calls a layer).

    Examples:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = SequenceModel(nnx.Embed(100, 8, rngs=rngs), nnx.GRUCell(8, 16, rngs=rngs),
      ...                       nnx.Linear(16, 2, rngs=rngs))
    """

    def __init__(
        self,
        encoder: Layer | None = None,
        core: Cell | None = None,
        readout: Layer | None = None,
    ):
        cell = check_core("SequenceModel: core", core)
        for name, layer in (("encoder", encoder), ("readout", readout)):
            if layer is not None and (not callable(layer) or isinstance(layer, type)):
                raise TypeError(
                    f"SequenceModel: {name} must be an nnx layer or a function, or None, got "
                    f"{what_is(layer)}"
                )
        self.encoder = _trainable(encoder)
        self.core = cell
        self.readout = _trainable(readout)
        check_holds_its_layers(self)


class Method(nnx.Module):
    """A method of a module as a layer, with the module's parameters: `embed.attend`, say.

    A layer that is the encoder and, by a method, the readout is one set of parameters, whose
    gradient is the sum over both uses.
    """

    def __init__(self, method: types.MethodType):
        self.module = method.__self__
        self.function = method.__func__

    def __call__(self, x: Tree) -> Tree:
        """Call the method on x."""
        return self.function(self.module, x)


def _trainable(layer: Layer | None) -> Layer | None:
    """The layer; of a bound method of a module, a layer that holds the module."""
    if isinstance(layer, types.MethodType) and isinstance(layer.__self__, nnx.Module):
        return Method(layer)
    return layer


def check_holds_its_layers(model: SequenceModel) -> None:
    """Raise a TypeError if a part reaches an nnx module that the model does not hold."""
    check_module(
        "SequenceModel", model, "make it an nnx.Module that holds the layer as an attribute"
    )
