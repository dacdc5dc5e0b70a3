"""Meshes with explicit axes: the library computes with automatic ones, and returns explicit ones.

An array on a mesh with explicit axes has its sharding in its type, and every operation must say
what becomes of it. The encoders, cells and losses of users do not. So arrays are put on a mesh of
the same devices whose axes are automatic, which copies nothing.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, SingleDeviceSharding

from tbptt_jax.types import Tree

_AUTO = "make the mesh with jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto, ...))"
P = ParamSpec("P")
R = TypeVar("R")


def automatic(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments may be on a mesh with explicit axes; its results are then too.

    Raises:
      ValueError: an argument is traced and its axes are explicit, or arguments are on two meshes.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        explicit = _explicit_mesh((args, kwargs))
        in_use = jax.sharding.get_abstract_mesh()
        if explicit is None and not _is_explicit(in_use):
            return function(*args, **kwargs)
        if explicit is None:  # jax.set_mesh alone
            with _within(AbstractMesh(in_use.axis_sizes, in_use.axis_names)):
                return function(*args, **kwargs)
        same = Mesh(explicit.devices, explicit.axis_names)  # automatic: no types are named
        args, kwargs = _move((args, kwargs), explicit, same)
        with _within(same.abstract_mesh):
            result = function(*args, **kwargs)
        return _move(result, same, explicit)

    return call


def _within(mesh: AbstractMesh) -> AbstractContextManager:
    """A context in which arrays are on this mesh."""
    use = getattr(jax.sharding, "use_abstract_mesh", None)
    if use is None:
        raise ValueError(
            f"tbptt_jax: meshes with explicit axes need a newer JAX than {jax.__version__}; {_AUTO}"
        )
    return use(mesh)


def mesh_sharding(leaf: Tree) -> NamedSharding | None:
    """How an array is spread over a mesh of devices; None: it is on none, or traced, or no array.

    A `jax.ShapeDtypeStruct` is spread as the array is that it stands for.
    """
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _explicit_mesh(tree: Tree) -> Mesh | None:
    """The mesh with explicit axes that arrays are on; None where none is."""
    found = set()
    for leaf in jax.tree.leaves(tree) if _may_be_on_a_mesh(tree) else ():
        if isinstance(leaf, Tracer) and _is_explicit(jax.typeof(leaf).sharding.mesh):
            raise ValueError(
                "tbptt_jax: an array that is traced has explicit mesh axes "
                f"({', '.join(map(repr, jax.typeof(leaf).sharding.mesh.axis_names))}); call "
                f"tbptt_jax outside of jit, or {_AUTO}"
            )
        sharding = mesh_sharding(leaf)
        if sharding is not None and _is_explicit(sharding.mesh):
            found.add(sharding.mesh)
    if len(found) > 1:
        raise ValueError(f"tbptt_jax: arrays must be on one mesh, got {list(found)}; use one")
    return next(iter(found), None)


def _may_be_on_a_mesh(tree: Tree) -> bool:
    """False where every array is on one device, as most are, which is quickly seen."""
    return any(
        isinstance(leaf, Tracer)
        or (isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding))
        for leaf in jax.tree.leaves(tree)
    )


def _is_explicit(mesh: Mesh | AbstractMesh) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _move(tree: Tree, source: Mesh, target: Mesh) -> Tree:
    """The arrays that are on one mesh, on another mesh of the same devices."""

    def move(leaf: Tree) -> Tree:
        sharding = mesh_sharding(leaf)
        if sharding is None or sharding.mesh != source:
            return leaf
        where = NamedSharding(target, sharding.spec)
        if leaf.is_fully_addressable:
            return jax.device_put(leaf, where)
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, parts)

    return jax.tree.map(move, tree)
