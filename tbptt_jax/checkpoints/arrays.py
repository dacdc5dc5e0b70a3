"""Arrays as the bytes that are saved, and back: the same kind, dtype, shape and bits."""

import hashlib
from typing import NotRequired, TypeAlias, TypedDict, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from tbptt_jax.types import Array, Tree

Leaf: TypeAlias = Array | np.generic


class Damaged(ValueError):
    """What was read is not what was written."""


class ArrayMetadata(TypedDict):
    """What is saved of an array beside its bytes, as JSON.

    Attributes:
      name: its place in the tree, as `jax.tree_util.keystr` writes it.
      kind: dtype and shape in one text, which restoring compares.
      dtype: its dtype; a typed key's names its generator.
      stored: dtype of the bytes, and shape: the shape.
      sha256: digest of stored, shape and bytes.
      of: "jax", "numpy" or "numpy scalar"; missing means "jax".
      impl: generator of a typed key.
      weak: true where JAX types it weakly, which decides the dtype of results.
      spread: true where each process wrote the parts that it had, the array itself and not its
        bytes, and `sha256` is empty: the digests of the files stand for it.
    """

    name: str
    kind: str
    dtype: str
    stored: str
    shape: list[int]
    sha256: str
    of: NotRequired[str]
    impl: NotRequired[str]
    weak: NotRequired[bool]
    spread: NotRequired[bool]


def pack(name: str, leaf: Leaf) -> tuple[Array, ArrayMetadata]:
    """A copy of an array in host memory, and its metadata.

    An array of which this process has only a part is returned as it is.
    """
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    spread = _is_spread(data)
    array: Array = data if spread else np.array(data, order="C")  # pyright: ignore
    metadata: ArrayMetadata = {
        "name": name,
        "kind": kind(leaf),
        "dtype": str(leaf.dtype),
        "stored": str(array.dtype),
        "shape": list(array.shape),
        "sha256": "" if spread else _digest(np.asarray(array)),
        "of": _library(leaf),
    }
    if spread:
        metadata["spread"] = True
    if _is_key(leaf):
        metadata["impl"] = str(jax.random.key_impl(leaf))
    elif getattr(leaf, "weak_type", False):
        metadata["weak"] = True
    return array, metadata


def unpack(array: Array, metadata: ArrayMetadata, sharding: NamedSharding | None = None) -> Leaf:
    """The array that `pack` was called with: JAX's or NumPy's, as it was.

    Args:
      array: what was stored, in host memory or where it is to be.
      metadata: of the array.
      sharding: where an array of JAX is to be; None: on JAX's default device.

    Raises:
      Damaged: dtype, shape or bytes are not those that were saved.
      ValueError: JAX would change its dtype.
    """
    if isinstance(array, np.ndarray):
        if not metadata.get("spread") and not _is_as_saved(array, metadata):
            raise Damaged(f"the array {metadata['name']} is not what was written")
        library = metadata.get("of", "jax")
        if library != "jax":
            return array if library == "numpy" else array[()]
    if sharding is None:
        made = jnp.asarray(array)
    elif isinstance(array, np.ndarray):
        made = jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    else:
        made = array
    if made.dtype != array.dtype:
        raise ValueError(
            f"the array {metadata['name']} is {array.dtype}, and JAX makes {made.dtype} of it "
            'here; set jax.config.update("jax_enable_x64", True), as it was when it was saved'
        )
    if "impl" in metadata:
        return jax.random.wrap_key_data(made, impl=metadata["impl"])
    if metadata.get("weak"):
        # A Python number makes an array weakly typed, and what is set into it does not change that.
        weak = jnp.full(array.shape, {"i": 0, "c": 0j}.get(array.dtype.kind, 0.0)).at[...].set(made)
        return weak if weak.dtype == made.dtype else made
    return made


def check_tree(name: str, tree: Tree) -> None:
    """Raise unless every leaf of a tree is an array that can be saved, and there is one.

    Raises:
      TypeError: a leaf is no array, or an array of Python objects.
      ValueError: there is no leaf.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"Checkpoints: {name} must hold at least one array, got none")
    for path, leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"Checkpoints: {name} must hold arrays, got {type(leaf).__name__} at "
                f"{name}{jax.tree_util.keystr(path)}; put numbers into progress"
            )
        if not _can_be_saved(leaf.dtype):
            raise TypeError(
                f"Checkpoints: {name} must hold arrays of numbers, got {leaf.dtype} at "
                f"{name}{jax.tree_util.keystr(path)}"
            )


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, uint8[nbytes]; shared where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def from_bytes(content: np.ndarray, metadata: ArrayMetadata) -> np.ndarray:
    """The array of bytes that `as_bytes` made."""
    return content.view(np.dtype(metadata["stored"])).reshape(metadata["shape"])


def kind(leaf: Leaf | jax.ShapeDtypeStruct) -> str:
    """dtype[shape]."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def _is_as_saved(array: np.ndarray, metadata: ArrayMetadata) -> bool:
    if _digest(array) == metadata["sha256"]:
        return True
    # The first version's digest was of the bytes alone.
    return (
        hashlib.sha256(array.tobytes()).hexdigest() == metadata["sha256"]
        and list(array.shape) == metadata["shape"]
        and ("impl" in metadata or str(array.dtype) == metadata["dtype"])
    )


def _is_spread(leaf: Leaf) -> bool:
    """Whether this process has only a part of an array."""
    return isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    )


def _digest(array: np.ndarray) -> str:
    found = hashlib.sha256(kind(array).encode())
    found.update(as_bytes(array).data)
    return found.hexdigest()


def _library(leaf: Leaf) -> str:
    if isinstance(leaf, np.generic):
        return "numpy scalar"
    return "numpy" if isinstance(leaf, np.ndarray) else "jax"


def _can_be_saved(dtype: DTypeLike) -> bool:
    """Whether arrays of this dtype are their bytes, and its name says which it is."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    try:
        named = np.dtype(str(dtype))
    except TypeError:
        return False
    return named == dtype and not named.hasobject


def _is_key(leaf: Leaf) -> TypeGuard[jax.Array]:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
