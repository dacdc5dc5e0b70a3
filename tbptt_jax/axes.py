"""Meshes with explicit axes are not supported yet; they are refused before anything is traced."""

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, SingleDeviceSharding

from tbptt_jax.types import Tree


def check_axes(name: str, tree: Tree) -> None:
    """Raise if an array, or the mesh in use, has axes whose shardings are part of the types.

    Args:
      name: what messages call the tree, for instance "batch".
      tree: any pytree; its JAX arrays are checked, traced ones too.

    Raises:
      ValueError: an array is on a mesh with explicit axes, or `jax.set_mesh` put one into use.
    """
    _check_mesh("the mesh in use (jax.set_mesh)", jax.sharding.get_abstract_mesh())
    if not any(map(_may_be_on_a_mesh, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            _check_mesh(f"{name}{jax.tree_util.keystr(path)}", jax.typeof(leaf).sharding.mesh)


def _may_be_on_a_mesh(leaf: object) -> bool:
    """False for an array on one device, as most are; its type, which is slow, is not needed."""
    if isinstance(leaf, Tracer):
        return True
    return isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding)


def _check_mesh(name: str, mesh: Mesh | AbstractMesh) -> None:
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = [axis for axis, kind in types.items() if kind == AxisType.Explicit]
    if explicit:
        raise ValueError(
            f"{name} has explicit mesh axes ({', '.join(map(repr, explicit))}), which are not "
            f"supported; make the mesh with jax.make_mesh(..., axis_types="
            f"(jax.sharding.AxisType.Auto,) * {len(types)})"
        )
