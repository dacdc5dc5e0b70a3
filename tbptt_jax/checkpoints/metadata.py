"""Checkpoint metadata, JSON: what the arrays are, which training they are of, what saved them."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

import jax

from tbptt_jax.checkpoints.arrays import ArrayMetadata, kind
from tbptt_jax.types import Tree
from tbptt_jax.version import __version__

Json: TypeAlias = Any

# The library was not among the versions that it saved.
FIRST_VERSION = "0.1.0"
# A commit of each earlier version: what to check out to resume what that version saved.
COMMITS = {FIRST_VERSION: "cc1657e"}


class Metadata(TypedDict):
    """What is saved beside the arrays.

    Attributes:
      progress: the caller's, of this checkpoint.
      config: the caller's, of the training.
      versions: of the libraries that may change bits, and the kind of device.
      arrays: of each array, in the order of the tree.
    """

    progress: Json
    config: dict[str, Json]
    versions: dict[str, str]
    arrays: dict[str, ArrayMetadata]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that may change bits, and the kind of device."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"tbptt_jax": __version__, **found, "device": jax.devices()[0].device_kind}


def saved_versions(metadata: Metadata) -> dict[str, str]:
    """The versions that saved a checkpoint."""
    return {"tbptt_jax": FIRST_VERSION, **metadata["versions"]}


def digest(metadata: Mapping[str, Json]) -> str:
    """SHA-256 of JSON, in hexadecimal; the order of its names does not matter."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def as_json(name: str, value: Json) -> Json:
    """The value as it will be read from a file: tuples are lists, names are strings.

    Raises:
      TypeError: it is not JSON, or two of its names become one.
    """
    try:
        return json.loads(json.dumps(value), object_pairs_hook=_without_doubles)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Checkpoints: {name} must be JSON (numbers, strings, lists, dicts), got {error}; "
            "put arrays into the tree"
        ) from None


def check_same_training(
    checkpoint: str, saved: Metadata, config: Mapping[str, Json], like: Tree
) -> None:
    """Raise if a checkpoint has another config, or other arrays than `like`.

    Args:
      checkpoint: what the message calls it.
      saved: its metadata.
      config: of the training that would resume.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: they differ; the message lists how. Where another version of the library saved
        it under other names, it says which, and how to resume with that one.
    """
    there = {array["name"]: array["kind"] for array in saved["arrays"].values()}
    here = {
        jax.tree_util.keystr(path): kind(leaf) for path, leaf in jax.tree.leaves_with_path(like)
    }
    found = [*differences(saved["config"], config), *differences(there, here)]
    if not found:
        return
    listed = "".join(f"\n  {line}" for line in found)
    saved_by = saved_versions(saved)["tbptt_jax"]
    if there.keys() != here.keys() and saved_by != __version__:
        commit = COMMITS.get(saved_by)
        how = f" (in a clone: git checkout {commit})" if commit else ""
        raise ValueError(
            f"{checkpoint} was saved by tbptt_jax {saved_by}, and this is {__version__}, which "
            f"names the arrays of a training differently:{listed}\n"
            f"Resume with tbptt_jax {saved_by}{how}, or give another folder to start over"
        )
    raise ValueError(
        f"{checkpoint} belongs to another training:{listed}\n"
        "Resume with the settings it was saved with, or give another folder to start over"
    )


def differences(saved: Json, now: Json, name: str = "") -> list[str]:
    """What differs between two pieces of JSON, a line for each; NaN is NaN."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in {**saved, **now}:
            path = f"{name}.{key}" if name else key
            lines += differences(saved.get(key, _NOTHING), now.get(key, _NOTHING), path)
        return lines
    if saved == now or _same_text(saved, now):
        return []
    show = repr if str(saved) == str(now) else str
    return [f"{name}: {show(saved)} in the checkpoint, {show(now)} now"]


class _Nothing:
    """Stands where one of the two has no value; equal to none, not even to a word."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _same_text(saved: Json, now: Json) -> bool:
    if _NOTHING in (saved, now):
        return False
    return json.dumps(saved, sort_keys=True) == json.dumps(now, sort_keys=True)


def _without_doubles(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two names that both become {double!r}")
    return found
