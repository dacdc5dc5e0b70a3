"""What the adapters have in common: recurrent layers in a row, and cells that are known."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from tbptt_jax.cells import gated, scan
from tbptt_jax.cells.flax_cell import FlaxCell, is_of_one_dtype
from tbptt_jax.cells.gated import Equations, Leaves, Weights
from tbptt_jax.cells.scan import Unrolled
from tbptt_jax.types import Array, Carry, Model, Params, Tree, Unroll

# (params, x [B, K, ...], rng) to [B, K, ...].
Apply: TypeAlias = Callable[[Params, Tree, jax.Array | None], Tree]


class Layer(Protocol):
    """A layer over parameters of a peer's layout.

    Its carry is a tuple of arrays [B, ...], the last of which is its output; or it is empty.
    """

    @property
    def width(self) -> int:
        """Features of its output."""
        ...

    def initial(self, params: Params, rows: int) -> Carry:
        """The carry before the first step."""
        ...

    def step(self, params: Params, carry: Carry, x: jax.Array) -> tuple[Carry, jax.Array]:
        """As `Model.step`."""
        ...

    def unroll(
        self, params: Params, carry: Carry, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """As `Model.unroll`."""
        ...


class Fused(NamedTuple):
    """A layer that runs by the fused scan.

    Attributes:
      width: features of its output, and of each array of its carry.
      carries: how many arrays its carry has.
      equations: its arithmetic between the projections.
      weights: from the parameters, the weights of the equations.
    """

    width: int
    carries: int
    equations: Equations
    weights: Callable[[Params], Weights]

    def initial(self, params: Params, rows: int) -> Leaves:
        """Zeros [rows, width]."""
        zero = jnp.zeros((rows, self.width), self.weights(params).h.dtype)
        return (zero,) * self.carries

    def step(self, params: Params, carry: Leaves, x: jax.Array) -> tuple[Leaves, jax.Array]:
        """As `Model.step`."""
        weights, equations = self.weights(params), self.equations
        zx = gated.plus(x.astype(weights.x.dtype) @ weights.x, weights.x_bias)
        zh = gated.plus(carry[-1] @ weights.h, weights.h_bias)
        new = equations.step(carry, equations.gates(zx, zh))
        return new, new[-1]

    def unroll(
        self, params: Params, carry: Leaves, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """As `Model.unroll`."""
        weights = self.weights(params)
        initial = None if reset is None else self.initial(params, xs.shape[0])
        xs = xs.astype(weights.x.dtype)
        return gated.unroll(self.equations, weights, carry, xs, mask, reset, initial)


class Scanned(NamedTuple):
    """A layer that runs step by step.

    Attributes:
      width: features of its output.
      widths: features of each array of its carry.
      function: as `Model.step`, the carry a tuple.
    """

    width: int
    widths: tuple[int, ...]
    function: Callable[[Params, Leaves, jax.Array], tuple[Leaves, jax.Array]]

    def initial(self, params: Params, rows: int) -> Leaves:
        """Zeros [rows, width]."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return tuple(jnp.zeros((rows, width), dtype) for width in self.widths)

    def step(self, params: Params, carry: Leaves, x: jax.Array) -> tuple[Leaves, jax.Array]:
        """As `Model.step`."""
        return self.function(params, carry, x)

    def unroll(
        self, params: Params, carry: Leaves, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """As `Model.unroll`."""
        initial = None if reset is None else self.initial(params, xs.shape[0])
        step = lambda carry, x: self.function(params, carry, x)  # noqa: E731
        return scan.unroll_existing(step, carry, xs, mask, reset, initial)


class Pointwise(NamedTuple):
    """A layer of one step, between recurrent layers: its carry is empty.

    Attributes:
      width: features of its output.
      function: `(params, x) -> y`, of [B, features] and of [B, K, features].
    """

    width: int
    function: Callable[[Params, jax.Array], jax.Array]

    def initial(self, params: Params, rows: int) -> Leaves:
        """Nothing."""
        return ()

    def step(self, params: Params, carry: Leaves, x: jax.Array) -> tuple[Leaves, jax.Array]:
        """As `Model.step`."""
        return (), self.function(params, x)

    def unroll(
        self, params: Params, carry: Leaves, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """As `Model.unroll`."""
        return (), self.function(params, xs), ()


class Noise(NamedTuple):
    """Dropout of the inputs of a layer, in training.

    Attributes:
      rate: how probably a number is dropped.
      whole: the same numbers at every step of a window.
    """

    rate: float
    whole: bool = False


class Encoded(NamedTuple):
    """What the layers read of a window.

    Attributes:
      x: [B, K, features].
      exists: bool [B, K], of a network that masks steps by their inputs: elsewhere the carry and
        the output are held; None: it does not.
      factors: for each layer, what its inputs are multiplied by, [B, K, features]; None: nothing.
    """

    x: Any
    exists: Any
    factors: tuple[Any, ...]


def numbered(rng: jax.Array | None, number: int) -> jax.Array | None:
    """The key of one layer of several; None outside of training."""
    return None if rng is None else jax.random.fold_in(rng, number)


def dropped(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """x with each number dropped with this probability, the others scaled up."""
    return x * _factors(rng, rate, x.shape, x.dtype)


def _factors(rng: jax.Array, rate: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """0 with probability `rate`, 1 / (1 - rate) otherwise."""
    kept = jax.random.bernoulli(rng, 1 - rate, shape)
    return jnp.where(kept, 1 / (1 - rate) if rate < 1 else 0, 0).astype(dtype)


def _product(rng: jax.Array, noise: Sequence[Noise], x: jax.Array, width: int) -> jax.Array | None:
    """What the inputs of a layer are multiplied by, [B, K, width]; x is [B, K, ...]."""
    product = None
    for number, (rate, whole) in enumerate(noise):
        shape = x.shape[0], 1 if whole else x.shape[1], width
        one = _factors(jax.random.fold_in(rng, number), rate, shape, x.dtype)
        one = jnp.broadcast_to(one, (*x.shape[:2], width))
        product = one if product is None else product * one
    return product


def _products(
    rng: jax.Array, noise: Sequence[Sequence[Noise]], layers: Sequence[Layer], x: jax.Array
) -> tuple[jax.Array | None, ...]:
    """`Encoded.factors`, for the encoded inputs x."""
    widths = [x.shape[-1], *(layer.width for layer in layers[:-1])]
    return tuple(
        _product(jax.random.fold_in(rng, number), own, x, width)
        for number, (own, width) in enumerate(zip(noise, widths, strict=True))
    )


def assemble(
    encode: Callable[[Params, Tree, jax.Array | None], tuple[jax.Array, jax.Array | None]],
    layers: Sequence[Layer],
    noise: Sequence[Sequence[Noise]],
    readout: Apply,
    vocabulary: int | None = None,
) -> Model:
    """A model of these parts.

    Args:
      encode: from the inputs to `Encoded.x` and `Encoded.exists`.
      layers: at least one.
      noise: of the inputs of each layer.
      readout: as `Model.readout`.
      vocabulary: as `Model.vocabulary`.
    """

    def encode_all(params: Params, inputs: Tree, rng: jax.Array | None) -> Encoded:
        if rng is None:
            return Encoded(*encode(params, inputs, None), (None,) * len(layers))
        own, drawn = jax.random.split(rng)
        x, exists = encode(params, inputs, own)
        return Encoded(x, exists, _products(drawn, noise, layers, x))

    def initialize_carry(params: Params, input_shape: Any) -> Carry:
        rows = input_shape.x[0]
        return tuple(layer.initial(params, rows) for layer in layers)

    def step(params: Params, carry: Carry, inputs: Encoded) -> tuple[Carry, jax.Array]:
        x, exists, factors = inputs
        carries = []
        for layer, before, factor in zip(layers, carry, factors, strict=True):
            after, x = layer.step(params, before, x if factor is None else x * factor)
            if exists is not None and after:
                after = scan.select(exists, after, before)
                x = after[-1]
            carries.append(after)
        return tuple(carries), x

    def unroll(
        params: Params, carry: Carry, inputs: Encoded, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        x, exists, factors = inputs
        if exists is not None:
            mask = exists if mask is None else exists & mask
        ends, carries = [], []
        for layer, before, factor in zip(layers, carry, factors, strict=True):
            x = x if factor is None else x * factor
            end, x, after = layer.unroll(params, before, x, mask, reset)
            if exists is not None and after:
                x = jnp.swapaxes(after[-1], 0, 1)
            ends.append(end)
            carries.append(after)
        return tuple(ends), x, tuple(carries)

    return Model(initialize_carry, encode_all, step, readout, unroll, vocabulary)


def unroll_known(
    cell: FlaxCell,
    weights: Callable[[Params], Weights],
    model: Model,
    hidden_first: bool = False,
) -> Unroll:
    """The unroll of a peer's cell with the equations of one of flax's.

    Args:
      cell: the one of flax's.
      weights: from the parameters, the weights of the equations.
      model: its step runs where the dtypes are mixed.
      hidden_first: the peer's carry is (h, c).
    """

    def unroll(
        params: Params, carry: Carry, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        initial = None
        if reset is not None:
            initial = model.initialize_carry(params, scan.step_shape(xs))
        own = weights(params)
        if is_of_one_dtype((xs, *jax.tree.leaves((carry, own)))):
            return cell.fused(own, carry, xs, mask, reset, initial, hidden_first)
        step = lambda carry, x: model.step(params, carry, x)  # noqa: E731
        return scan.unroll_existing(step, carry, xs, mask, reset, initial)

    return unroll


def switches(function: Callable[..., Any], training: bool) -> dict[str, Any]:
    """The mode arguments that a function takes, by the names in use, set for training or not."""
    names = inspect.signature(function).parameters
    on = {name: training for name in ("train", "training", "is_training") if name in names}
    off = {name: not training for name in ("deterministic", "inference") if name in names}
    return {**on, **off}


def peer(name: str) -> Any:
    """Another library, imported when it is needed; an `ImportError` says that it is missing."""
    return importlib.import_module(name)


def check_arrays(claim: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise a ValueError unless arrays have the same names and shapes as others."""
    shapes, others = ({n: list(a.shape) for n, a in of.items()} for of in (found, expected))
    if shapes != others:
        name = min(n for n in {*shapes, *others} if shapes.get(n) != others.get(n))
        raise ValueError(
            f"{claim}, with {name} of shape {others.get(name, '(none)')}, got "
            f"{shapes.get(name, '(none)')}"
        )
