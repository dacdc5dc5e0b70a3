"""Rows of a batch spread over devices: each device estimates the gradient of its own rows.

The parts are added up once, behind the last step. XLA, which partitions everything else by itself,
would add them up at every step, or gather the activations of all rows on every device.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tbptt_jax.axes import mesh_sharding
from tbptt_jax.cells.scan import Unrolled
from tbptt_jax.estimators.estimator import Estimator, WindowGradient, WindowLoss
from tbptt_jax.estimators.window import Window, run
from tbptt_jax.sums import wide
from tbptt_jax.types import Array, Carry, Model, Params, Tree


class Rows(NamedTuple):
    """Where the rows of a batch are: static and hashable.

    Attributes:
      mesh: the mesh of devices.
      axes: the names of its axes that the rows are spread over.
    """

    mesh: Mesh
    axes: tuple[str, ...]


def rows_of(inputs: Tree) -> Rows | None:
    """Where the rows of inputs [B, ...] are; None: on one device, or whole on each, or traced."""
    return next(filter(None, map(_rows, jax.tree.leaves(inputs))), None)


def _rows(leaf: Array) -> Rows | None:
    sharding = mesh_sharding(leaf)
    if sharding is None:
        return None
    first = sharding.spec[0] if sharding.spec else None
    axes = (first,) if isinstance(first, str) else tuple(first or ())
    if math.prod(sharding.mesh.shape[axis] for axis in axes) == 1:
        return None
    return Rows(cast(Mesh, sharding.mesh), axes)


# Where each leaf of a pytree is, in order; None: all on one device, or traced.
Places: TypeAlias = tuple[NamedSharding, ...] | None


def places_of(tree: Tree) -> Places:
    """Where the arrays of a pytree are."""
    found = tuple(map(mesh_sharding, jax.tree.leaves(tree)))
    on_meshes = all(one is not None and one.mesh.size > 1 for one in found)
    return cast(Places, found) if on_meshes else None


def keep(tree: Tree, places: Places) -> Tree:
    """The arrays of a pytree where they were: XLA would spread them as it likes."""
    if places is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    put = map(jax.lax.with_sharding_constraint, leaves, places)
    return jax.tree.unflatten(structure, put)


@functools.lru_cache(maxsize=64)
def by_rows(model: Model, rows: Rows | None) -> Model:
    """A model whose core runs on each device alone.

    A core that draws random numbers stays as it is: its numbers are those of one device then.
    """
    if rows is None:
        return model
    spread, steps_first = _specs(rows)

    def local(
        params: Params, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        return run(model, params, carry, xs, Window(xs, None, mask=mask, reset=reset))

    unroll = _on_each(rows)(
        local,
        in_specs=(PartitionSpec(), *(spread,) * 4),
        out_specs=(spread, spread, steps_first),
    )
    return model._replace(unroll=unroll)


def estimate_by_rows(estimator: Estimator, model: Model, rows: Rows | None) -> Estimator:
    """An estimator that each device runs on its own rows alone; the gradient is added up once.

    With random numbers only the core runs so: those of a device's rows are part of those of all.
    """
    if rows is None:
        return estimator
    core = by_rows(model, rows)
    everywhere: Any = PartitionSpec()
    spread, steps_first = _specs(rows)
    of_window: Any = Window(*(spread,) * 5, first=everywhere, fresh=everywhere)
    of_gradient: Any = WindowGradient(everywhere, spread, steps_first, everywhere, spread)

    def value_and_grad(losses: WindowLoss, params: Params, aux: Tree) -> WindowGradient:
        if losses.rng is not None:
            return estimator.value_and_grad(losses._replace(model=core), params, aux)
        weights = None if isinstance(losses.weights, int | float) else losses.weights

        def local(
            params: Params, carry: Carry | None, window: Window, weights: Array | None, aux: Tree
        ) -> WindowGradient:
            own = losses._replace(model=model, carry=carry, window=window)
            own = own if weights is None else own._replace(weights=weights)
            return _add_up(_own_gradient(estimator, own, params, aux), rows)

        return _on_each(rows)(
            local,
            in_specs=(everywhere, spread, of_window, spread, spread),
            out_specs=of_gradient,
        )(params, losses.carry, _traced(losses.window), weights, aux)

    def advance(
        _: Model, params: Params, carry: Carry, window: Window, rng: jax.Array | None, aux: Tree
    ) -> tuple[Carry, Carry, Tree]:
        if rng is not None:
            return estimator.advance(core, params, carry, window, rng, aux)

        def local(params: Params, carry: Carry, window: Window, aux: Tree) -> tuple:
            return estimator.advance(model, params, carry, window, None, aux)

        return _on_each(rows)(
            local,
            in_specs=(everywhere, spread, of_window, spread),
            out_specs=(spread, steps_first, spread),
        )(params, carry, _traced(window), aux)

    return estimator._replace(value_and_grad=value_and_grad, advance=advance)


def _on_each(rows: Rows) -> Callable[..., Callable[..., Any]]:
    """`jax.shard_map` over the devices that hold the rows."""
    # Unchecked: a cell makes arrays of its own, zeros say, whose devices JAX would have to be told.
    return functools.partial(
        jax.shard_map, mesh=rows.mesh, axis_names=set(rows.axes), check_vma=False
    )


def _specs(rows: Rows) -> tuple[Any, Any]:
    """The specs of arrays that lead with the rows, and of those with steps before the rows."""
    return PartitionSpec(rows.axes), PartitionSpec(None, rows.axes)


def _traced(window: Window) -> Window:
    return window._replace(first=jnp.asarray(window.first, jnp.int32))


def _own_gradient(
    estimator: Estimator, losses: WindowLoss, params: Params, aux: Tree
) -> WindowGradient:
    """The gradient of a device's rows: nothing where none of their losses has a weight.

    There nothing could stand for the steps that do not count, and the derivative at those might be
    NaN.
    """

    def score() -> WindowGradient:
        return estimator.value_and_grad(losses, params, aux)

    def skip() -> WindowGradient:
        model, _, carry, window, _, _ = losses
        end, carries, after = estimator.advance(model, params, carry, window, None, aux)
        total, grads = jax.tree.map(jnp.zeros_like, (scored.total, scored.grads))
        return WindowGradient(total, end, carries, grads, after)

    if isinstance(losses.weights, int | float):
        return score()
    scored = jax.eval_shape(score)
    return jax.lax.cond(jnp.any(losses.weights != 0), score, skip)


def _add_up(own: WindowGradient, rows: Rows) -> WindowGradient:
    """The total and the gradient of all devices, added in float32 at least."""
    parts, structure = jax.tree.flatten((own.total, own.grads))
    sums = jax.lax.psum([part.astype(wide(part.dtype)) for part in parts], rows.axes)
    sums = [whole.astype(part.dtype) for whole, part in zip(sums, parts, strict=True)]
    total, grads = jax.tree.unflatten(structure, sums)
    return own._replace(total=total, grads=grads)
