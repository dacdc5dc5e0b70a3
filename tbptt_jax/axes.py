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


def _explicit_mesh(tree: Tree) -> Mesh | None:
    """The mesh with explicit axes that arrays are on; None where none is."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree) if _may_be_on_a_mesh(tree) else ():
        if isinstance(leaf, Tracer) and _is_explicit(jax.typeof(leaf).sharding.mesh):
            raise ValueError(
                "tbptt_jax: an array that is traced has explicit mesh axes "
                f"({', '.join(map(repr, jax.typeof(leaf).sharding.mesh.axis_names))}); call "
                f"tbptt_jax outside of jit, or {_AUTO}"
            )
        sharding = _sharding(leaf)
        if sharding is not None and _is_explicit(sharding.mesh):
            found[sharding.mesh] = jax.tree_util.keystr(path)
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


def _sharding(leaf: Tree) -> NamedSharding | None:
    """How an array is spread over a mesh; None: it is on none, or traced, or no array."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def _move(tree: Tree, source: Mesh, target: Mesh) -> Tree:
    """The arrays that are on one mesh, on another mesh of the same devices."""

    def move(leaf: Tree) -> Tree:
        sharding = _sharding(leaf)
        if sharding is None or sharding.mesh != source:
            return leaf
        return jax.device_put(leaf, NamedSharding(target, sharding.spec))

    return jax.tree.map(move, tree)
