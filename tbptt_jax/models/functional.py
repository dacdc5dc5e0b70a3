"""Models as pure functions: a `SequenceModel` split into functions and parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tbptt_jax.cells import dispatch
from tbptt_jax.cells.scan import Unrolled, cell_carry
from tbptt_jax.models.closed_over import check_closed_over
from tbptt_jax.models.one_step import declare_of_one_step, is_layer_of_one_step
from tbptt_jax.models.sequence_model import SequenceModel, check_holds_its_layers
from tbptt_jax.models.stack import what_is
from tbptt_jax.types import Array, Carry, Cell, Model, Params, Tree


def check_functions(model: Model) -> None:
    """Raise a TypeError if a function of a `Model` reaches an nnx layer that is not in `params`."""
    for name, function in model._asdict().items():
        if callable(function):
            check_closed_over(f"Model: {name}", function, "take it from `params`, with nnx.merge")


def functional(module: SequenceModel) -> tuple[Model, Params]:
    """Split a `SequenceModel` into pure functions and their parameters.

    Args:
      module: the model; it is not changed, and the parameters are copies.

    Returns:
      The functions, and the parameters as nested dicts of arrays. Modules of the same structure
      have the very same functions, so code compiled for one serves the other.

    Raises:
      TypeError: `module` is no SequenceModel, or holds variables that are neither parameters nor
        random streams (batch statistics, caches): training by windows cannot update them.
    """
    parts = split(module)
    return parts.functions, parts.params


class Parts(NamedTuple):
    """What a `SequenceModel` consists of.

    Attributes:
      functions, params: as `functional` returns them.
      to_module: from parameters to a module in evaluation mode; the same function for modules of
        the same structure. None where there is no module.
      draws: whether a part draws random numbers while training.
    """

    functions: Model
    params: Params
    to_module: Callable[[Params], SequenceModel] | None
    draws: bool


def split(module: SequenceModel) -> Parts:
    """Split a `SequenceModel`; arguments and errors as `functional`."""
    if not isinstance(module, SequenceModel):
        raise TypeError(
            f"model must be a SequenceModel or a Model, got {what_is(module)}; wrap the "
            "cell: SequenceModel(encoder, core, readout)"
        )
    check_holds_its_layers(module)
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
    graphs = _Graphs(graph, nnx.graphdef(module), structure, is_key)
    functions, to_module = _functions(
        graphs,
        _vocabulary(module.encoder),
        is_layer_of_one_step(module.encoder),
        is_layer_of_one_step(module.readout),
        isinstance(module.core, nnx.Module) and bool(_counts(module.core)),
    )
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    return Parts(functions, params, to_module, draws=bool(streams))


class _Graphs(NamedTuple):
    """What a module is but for its parameters, hashable.

    Attributes:
      train, evaluate: the graph in either mode.
      streams: the structure of the states of its random streams.
      is_key: for each of these, whether it is a key; the others are counts.
    """

    train: nnx.GraphDef[SequenceModel]
    evaluate: nnx.GraphDef[SequenceModel]
    streams: Any
    is_key: tuple[bool, ...]

    def merge(self, params: Params, rng: jax.Array | None = None) -> SequenceModel:
        """The module with these parameters; in training mode if there is a key."""
        # Without a key the graph is the deterministic one, and its streams are never drawn from.
        key = jax.random.key(0) if rng is None else rng
        states = [
            jax.random.fold_in(key, i) if keyed else jnp.zeros((), jnp.uint32)
            for i, keyed in enumerate(self.is_key)
        ]
        graph = self.evaluate if rng is None else self.train
        return nnx.merge(graph, params, jax.tree.unflatten(self.streams, states))


@functools.cache
def _functions(
    graphs: _Graphs,
    vocabulary: int | None,
    encoder_of_one_step: bool,
    readout_of_one_step: bool,
    core_draws: bool,
) -> tuple[Model, Callable[[Params], SequenceModel]]:
    """The functions of a graph; cached, since compiled code is found by their identity."""
    merge = graphs.merge

    def initialize_carry(params: Params, input_shape: tuple[int, ...]) -> Carry:
        return cell_carry(merge(params).core, input_shape, nnx.Rngs(0))

    def encode(params: Params, inputs: Tree, rng: jax.Array | None) -> Tree:
        encoder = merge(params, rng).encoder
        return inputs if encoder is None else encoder(inputs)

    def step(params: Params, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
        return _step_without_draws(merge(params).core, carry, x)

    def random_step(params: Params, carry: Carry, x: Tree, rng: jax.Array) -> tuple[Carry, Tree]:
        return merge(params, rng).core(carry, x)

    def readout(params: Params, ys: Tree, rng: jax.Array | None) -> Tree:
        layer = merge(params, rng).readout
        return ys if layer is None else layer(ys)

    def unroll(
        params: Params, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        return dispatch.unroll(merge(params).core, carry, xs, mask, reset)

    def to_module(params: Params) -> SequenceModel:
        return merge(jax.tree.map(jnp.copy, params))

    if encoder_of_one_step:
        declare_of_one_step(encode)
    if readout_of_one_step:
        declare_of_one_step(readout)
    functions = Model(initialize_carry, encode, step, readout, unroll, vocabulary)
    if core_draws:
        # An unroll would draw once for all steps.
        functions = functions._replace(unroll=None, random_step=random_step)
    return functions, to_module


def _step_without_draws(core: Cell, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
    """One step in evaluation mode.

    Raises:
      ValueError: the core draws random numbers all the same.
    """
    before = _counts(core)
    after = core(carry, x)
    if any(new is not old for new, old in zip(_counts(core), before, strict=True)):
        raise ValueError(
            "SequenceModel: core draws random numbers in evaluation; draw only where "
            "self.deterministic is False: nnx.Module.train and eval set it, as for nnx.Dropout"
        )
    return after


def _counts(core: Cell) -> list[jax.Array]:
    """How often each random stream of a module was drawn from."""
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(core, nnx.RngCount)))


def _vocabulary(encoder: object) -> int | None:
    """The number of ids, where the encoder begins with an embedding; otherwise None."""
    if isinstance(encoder, nnx.Sequential):
        encoder = next(iter(encoder.layers), None)
    # A subclass with a call of its own may compute ids from other inputs.
    if isinstance(encoder, nnx.Embed) and type(encoder).__call__ is nnx.Embed.__call__:
        # Not `num_embeddings`: the table may have been replaced.
        return encoder.embedding.shape[0]
    return None
