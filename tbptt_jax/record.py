"""What stands beside the arrays of a checkpoint: what they are, of what training, and digests."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def versions() -> dict[str, str]:
    """Of the libraries whose change may change bits, and the kind of device."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "device": jax.devices()[0].device_kind}


def take(leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """A copy of an array in host memory, and what is said of it."""
    about: dict[str, Any] = {"dtype": str(leaf.dtype)}
    if _is_key(leaf):
        about["impl"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    array = np.array(leaf)
    return array, {**about, "shape": list(array.shape), "sha256": _sha256(array.tobytes())}


def give(array: np.ndarray, about: Mapping[str, Any]) -> jax.Array:
    """The array that `take` was given.

    Raises:
      ValueError: it is not, to the bit.
    """
    if _sha256(array.tobytes()) != about["sha256"]:
        raise ValueError(f"the array {about['name']} is not what was written")
    if "impl" in about:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=about["impl"])
    return jnp.asarray(array)


def kind(leaf: Any) -> str:
    """dtype[shape] of an array or a ShapeDtypeStruct."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def digest(record: Mapping[str, Any]) -> str:
    """Of JSON, whatever the order of its names."""
    return _sha256(json.dumps(record, sort_keys=True).encode())


def as_json(name: str, value: Any) -> Any:
    """The value as it comes back from a file.

    Raises:
      TypeError: it is not JSON.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Checkpoints: {name} must be JSON (numbers, strings, lists, dicts), got {error}; "
            "arrays belong into the tree"
        ) from None


def differences(there: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two pieces of JSON, a line for each."""
    if isinstance(there, dict) and isinstance(now, dict):
        lines = []
        for key in {**there, **now}:
            path = f"{name}.{key}" if name else key
            lines += differences(there.get(key, "nothing"), now.get(key, "nothing"), path)
        return lines
    return [] if there == now else [f"{name}: {there} in the checkpoint, {now} now"]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
