"""Models: from flax nnx modules to pure functions over a parameter pytree."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax import cells
from tbptt_jax.cells import cell_carry
from tbptt_jax.types import Array, Carry, Model, Params


class SequenceModel(nnx.Module):
    """An encoder, a recurrent core and a readout.

    Encoder and readout are called once for all steps of a window; only the core is sequential.
    Dropout belongs to the encoder and the readout; it is on in `train_step` and off elsewhere.

    Args:
      encoder: [B, T, ...] to [B, T, features], for example `nnx.Embed`; None: inputs as they are.
      core: `tbptt_jax.LSTM`, any flax nnx cell, `tbptt_jax.Stack`, or an nnx module of your own
        with `(carry, x) -> (carry, y)` and `initialize_carry(input_shape, rngs)`.
      readout: [B, T, features] to [B, T, ...], for example `nnx.Linear`; None: the core's outputs.

    Raises:
      TypeError: the core has no step or no `initialize_carry`, or another part is no function.

    Example:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = SequenceModel(nnx.Embed(100, 8, rngs=rngs), nnx.GRUCell(8, 16, rngs=rngs),
      ...                       nnx.Linear(16, 2, rngs=rngs))
    """

    def __init__(
        self,
        encoder: Callable[[Any], Any] | None = None,
        core: Any = None,
        readout: Callable[[Any], Any] | None = None,
    ):
        _check_core("SequenceModel: core", core)
        for name, layer in (("encoder", encoder), ("readout", readout)):
            if layer is not None and (not callable(layer) or isinstance(layer, type)):
                raise TypeError(
                    f"SequenceModel: {name} must be an nnx layer or a function, or None, got "
                    f"{_what(layer)}"
                )
        self.encoder = encoder
        self.core = core
        self.readout = readout


class Stack(nnx.Module):
    """Cells on top of each other: the output of one is the input of the next.

    The carry is the tuple of the cells' carries.

    Args:
      cells: at least one; anything that `SequenceModel` takes as a core.

    Example:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> core = Stack([nnx.GRUCell(8, 16, rngs=rngs), nnx.GRUCell(16, 16, rngs=rngs)])
    """

    def __init__(self, cells: Sequence[Any]):
        if not isinstance(cells, Sequence):
            raise TypeError(
                f"Stack: cells must be a list of cells, got {_what(cells)}; write Stack([cell])"
            )
        if not cells:
            raise ValueError("Stack: cells must hold at least one cell, got none")
        for i, cell in enumerate(cells):
            _check_core(f"Stack: cells[{i}]", cell)
        self.cells = nnx.List(cells)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> Carry:
        """The cells' initial carries; `input_shape` is one step's, (B, features)."""
        carries = []
        x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
        for cell in self.cells:
            carries.append(cell_carry(cell, x.shape, rngs))
            x = jax.eval_shape(lambda c, x, cell=cell: cell(c, x)[1], carries[-1], x)
        return tuple(carries)

    def __call__(self, carry: Carry, x: Any) -> tuple[Carry, Any]:
        """One step of every cell."""
        new = []
        for cell, c in zip(self.cells, carry, strict=True):
            c, x = cell(c, x)
            new.append(c)
        return tuple(new), x

    def unroll(
        self, carry: Carry, xs: Any, mask: Array | None = None, reset: Array | None = None
    ) -> tuple[Carry, Any, Carry]:
        """Run over xs [B, T, ...], one cell after the other, each by its own fastest way."""
        ends, stacks = [], []
        for cell, c in zip(self.cells, carry, strict=True):
            end, xs, stack = _unroll_cell(cell, c, xs, mask, reset)
            ends.append(end)
            stacks.append(stack)
        return tuple(ends), xs, tuple(stacks)


def _unroll_cell(cell, carry, xs, mask, reset):
    unroll = cell.unroll if hasattr(cell, "unroll") else functools.partial(cells.unroll, cell)
    return unroll(carry, xs, mask, reset)


def _what(given: Any) -> str:
    """A class is given where an instance of it was meant."""
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def _check_core(name, core):
    steps = callable(core) and hasattr(core, "initialize_carry")
    if not steps or isinstance(core, type):
        raise TypeError(
            f"{name} must be a recurrent cell with (carry, x) -> (carry, y) and "
            f"initialize_carry(input_shape, rngs), got {_what(core)}; use "
            "tbptt_jax.LSTM, a flax nnx cell or tbptt_jax.Stack"
        )
    if isinstance(core, nnx.Module) and any(
        isinstance(node, nnx.Dropout) for _, node in nnx.iter_graph(core)
    ):
        raise TypeError(
            f"{name} holds an nnx.Dropout, which a recurrent step has no random key for; put "
            "dropout into the encoder or the readout"
        )


def functional(module: SequenceModel) -> tuple[Model, Params]:
    """Split a `SequenceModel` into pure functions and their parameters.

    Args:
      module: the model; it is not changed, and the parameters are copies.

    Returns:
      The functions, and the parameters as nested dicts of arrays. Two modules built alike give the
      very same functions, so that what was compiled for one serves the other.

    Raises:
      TypeError: `module` is no SequenceModel, or holds variables that are neither parameters nor
        random streams (batch statistics, caches): a recurrence over windows has no place to update
        them.
    """
    parts = split(module)
    return parts.functions, parts.params


class Parts(NamedTuple):
    """What a `SequenceModel` consists of.

    Attributes:
      functions, params: as `functional` returns them.
      to_module: parameters to a module in evaluation mode; the same for modules built alike. None
        where there is no module.
      draws: whether the encoder or the readout draws random numbers while training.
    """

    functions: Model
    params: Params
    to_module: Callable[[Params], SequenceModel] | None
    draws: bool


def split(module: SequenceModel) -> Parts:
    """Take a `SequenceModel` apart; see `functional`."""
    if not isinstance(module, SequenceModel):
        raise TypeError(
            f"model must be a SequenceModel or a Model, got {_what(module)}; wrap the "
            "cell: SequenceModel(encoder, core, readout)"
        )
    module = nnx.clone(module)
    module.train()
    graph, params, random, other = nnx.split(module, nnx.Param, nnx.RngState, ...)
    if jax.tree.leaves(other):
        kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(other)})
        raise TypeError(
            f"model holds variables of type {', '.join(kinds)}, which training by windows cannot "
            "update; use layers without running statistics (nnx.LayerNorm for nnx.BatchNorm), and "
            "make frozen weights nnx.Param with optax.set_to_zero"
        )
    module.eval()
    streams, structure = jax.tree.flatten(nnx.to_pure_dict(random))
    is_key = tuple(jnp.issubdtype(s.dtype, jax.dtypes.prng_key) for s in streams)
    functions, to_module = _functions(
        graph, nnx.graphdef(module), structure, is_key, _vocabulary(module.encoder)
    )
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    return Parts(functions, params, to_module, draws=bool(streams))


@functools.cache
def _functions(
    train_graph: Any,
    eval_graph: Any,
    structure: Any,
    is_key: tuple[bool, ...],
    vocabulary: int | None,
) -> tuple[Model, Callable[[Params], SequenceModel]]:
    """The functions of a graph; cached, since compiled code is found by their identity."""

    def merge(params, rng=None) -> SequenceModel:
        # Without a key the graph is the deterministic one, and its streams are never drawn from.
        key = jax.random.key(0) if rng is None else rng
        streams = [
            jax.random.fold_in(key, i) if keyed else jnp.zeros((), jnp.uint32)
            for i, keyed in enumerate(is_key)
        ]
        graph = eval_graph if rng is None else train_graph
        return nnx.merge(graph, params, jax.tree.unflatten(structure, streams))

    def initialize_carry(params, input_shape):
        return cell_carry(merge(params).core, input_shape, nnx.Rngs(0))

    def encode(params, inputs, rng):
        encoder = merge(params, rng).encoder
        return inputs if encoder is None else encoder(inputs)

    def step(params, carry, x):
        return merge(params).core(carry, x)

    def readout(params, ys, rng):
        layer = merge(params, rng).readout
        return ys if layer is None else layer(ys)

    def unroll_core(params, carry, xs, mask, reset):
        return _unroll_cell(merge(params).core, carry, xs, mask, reset)

    def to_module(params):
        return merge(jax.tree.map(jnp.copy, params))

    functions = Model(initialize_carry, encode, step, readout, unroll_core, vocabulary)
    return functions, to_module


def _vocabulary(encoder: Any) -> int | None:
    """The number of ids that an encoder embeds, if the inputs go into an embedding."""
    if isinstance(encoder, nnx.Sequential):
        encoder = next(iter(encoder.layers), None)
    # A subclass with a call of its own may make ids of whatever it is given.
    embeds = isinstance(encoder, nnx.Embed) and type(encoder).__call__ is nnx.Embed.__call__
    return encoder.num_embeddings if embeds else None
