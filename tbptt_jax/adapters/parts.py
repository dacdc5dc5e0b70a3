"""A network put together: an encoder, recurrent layers with dropout between them, a readout."""

import inspect
from collections.abc import Callable, Sequence
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
    """A recurrent layer over parameters of a peer's layout."""

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
        zx = gated.plus(x @ weights.x, weights.x_bias)
        zh = gated.plus(carry[-1] @ weights.h, weights.h_bias)
        new = equations.step(carry, equations.gates(zx, zh))
        return new, new[-1]

    def unroll(
        self, params: Params, carry: Leaves, xs: jax.Array, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        """As `Model.unroll`."""
        initial = None if reset is None else self.initial(params, xs.shape[0])
        return gated.unroll(self.equations, self.weights(params), carry, xs, mask, reset, initial)


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


class Noisy(NamedTuple):
    """Encoded inputs with what dropout multiplies the inputs of the later layers by.

    Attributes:
      x: [B, K, features].
      factors: one array [B, K, width] for each gap between layers; none: no dropout.
    """

    x: Any
    factors: tuple[Any, ...] = ()


def dropped(x: jax.Array, rate: float, rng: jax.Array) -> jax.Array:
    """x with each number dropped with this probability, the others scaled up."""
    return x * factors(rng, rate, x.shape, x.dtype)


def factors(rng: jax.Array, rate: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """0 with probability `rate`, 1 / (1 - rate) otherwise; all 0 at a rate of 1."""
    kept = jax.random.bernoulli(rng, 1 - rate, shape)
    return jnp.where(kept, 1 / max(1 - rate, 1e-30), 0).astype(dtype)


def assemble(
    encode: Apply,
    layers: Sequence[Layer],
    readout: Apply,
    dropout: float = 0,
    vocabulary: int | None = None,
) -> Model:
    """A model of these parts.

    Args:
      encode, readout: functions of the network's parameters; their rng is None outside of training.
      layers: at least one; functions of the network's parameters too.
      dropout: of the outputs of every layer but the last one, in training.
      vocabulary: as `Model.vocabulary`.
    """

    def encode_with_noise(params: Params, inputs: Tree, rng: jax.Array | None) -> Noisy:
        if rng is None or not dropout:
            return Noisy(encode(params, inputs, rng))
        own, *keys = jax.random.split(rng, len(layers))
        x = encode(params, inputs, own)
        return Noisy(
            x,
            tuple(
                factors(key, dropout, (*x.shape[:2], layer.width), x.dtype)
                for key, layer in zip(keys, layers[:-1], strict=True)
            ),
        )

    def initialize_carry(params: Params, input_shape: Any) -> Carry:
        rows = input_shape.x[0]
        return tuple(layer.initial(params, rows) for layer in layers)

    def step(params: Params, carry: Carry, inputs: Noisy) -> tuple[Carry, jax.Array]:
        new, x = [], inputs.x
        for i, (layer, c) in enumerate(zip(layers, carry, strict=True)):
            x = x if i == 0 or not inputs.factors else x * inputs.factors[i - 1]
            c, x = layer.step(params, c, x)
            new.append(c)
        return tuple(new), x

    def unroll(
        params: Params, carry: Carry, inputs: Noisy, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        ends, stacks, x = [], [], inputs.x
        for i, (layer, c) in enumerate(zip(layers, carry, strict=True)):
            x = x if i == 0 or not inputs.factors else x * inputs.factors[i - 1]
            end, x, stack = layer.unroll(params, c, x, mask, reset)
            ends.append(end)
            stacks.append(stack)
        return tuple(ends), x, tuple(stacks)

    return Model(initialize_carry, encode_with_noise, step, readout, unroll, vocabulary)


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
    """The arguments by which a function is told whether it trains, by the names in use."""
    names = inspect.signature(function).parameters
    on = {name: training for name in ("train", "training", "is_training") if name in names}
    off = {name: not training for name in ("deterministic", "inference") if name in names}
    return {**on, **off}
