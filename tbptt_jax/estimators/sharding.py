"""Rows of a batch spread over devices: each device runs the core on its own rows.

XLA partitions everything else by itself, and adds up the gradient once. In the loop over the steps
it would do so at every step, or gather the activations of all rows on every device.
"""

import functools
import math
from typing import NamedTuple, TypeAlias, cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tbptt_jax.cells.scan import Unrolled
from tbptt_jax.estimators.window import Window, run
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
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    first = sharding.spec[0] if sharding.spec else None
    axes = (first,) if isinstance(first, str) else tuple(first or ())
    if math.prod(sharding.mesh.shape[axis] for axis in axes) == 1:
        return None
    return Rows(sharding.mesh, axes)


# Where each leaf of a pytree is, in order; None: all on one device, or traced.
Places: TypeAlias = tuple[NamedSharding, ...] | None


def places_of(tree: Tree) -> Places:
    """Where the arrays of a pytree are."""
    found = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    on_meshes = all(
        isinstance(one, NamedSharding) and isinstance(one.mesh, Mesh) and one.mesh.size > 1
        for one in found
    )
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
    """A model whose core runs on each device alone; its gradient is added up after the last step.

    A core that draws random numbers stays as it is: its numbers are those of one device then.
    """
    if rows is None:
        return model
    spread, steps_first = PartitionSpec(rows.axes), PartitionSpec(None, rows.axes)

    def local(
        params: Params, carry: Carry, xs: Tree, mask: Array | None, reset: Array | None
    ) -> Unrolled:
        return run(model, params, carry, xs, Window(xs, None, mask=mask, reset=reset))

    unroll = jax.shard_map(
        local,
        mesh=rows.mesh,
        in_specs=(PartitionSpec(), *(spread,) * 4),
        out_specs=(spread, spread, steps_first),
        axis_names=set(rows.axes),
        # A cell makes arrays of its own, zeros say, whose devices JAX would have to be told.
        check_vma=False,
    )
    return model._replace(unroll=unroll)
