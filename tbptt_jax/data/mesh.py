"""Batches whose rows are spread over the devices of a mesh, and over processes."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tbptt_jax import processes
from tbptt_jax.arguments import check_batch
from tbptt_jax.types import Array, Batch, batch_shape


def spread(batch: Batch, mesh: Mesh, axes: str | Sequence[str]) -> Batch:
    """Spread the rows of a batch over the devices of a mesh.

    Where rows do not divide among the devices, rows of which no step exists are added at the end:
    they change no loss, no gradient and no metric. Each number of rows compiles a program.

    With several processes each passes rows of its own, of the same steps, and gets the batch of all
    of them, in the order of the devices. Processes may have different numbers of rows: the shorter
    ones are padded, which all must agree on, so that all must call it.

    Args:
      batch: B sequences of T steps.
      mesh: of devices; `jax.make_mesh` makes one.
      axes: the name of the axis, or of the axes, of the mesh that rows are spread over. Devices
        along others have the same rows.

    Returns:
      The batch, of arrays of JAX on the mesh. It has a mask if the batch has one, or if rows were
      added, in whichever process.

    Raises:
      TypeError: batch is not a Batch of arrays.
      ValueError: axes names no axis of the mesh, or an array does not lead with the inputs' [B, T].

    Examples:
      >>> batch = Batch(np.ones((3, 5, 1)), np.ones((3, 5)))
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",))
      >>> spread(batch, mesh, "rows").inputs.shape
      (3, 5, 1)
    """
    rows, _ = check_batch(batch, targets=batch.targets is not None)
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    if not axes or not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"spread: axes must name axes of the mesh, {', '.join(mesh.axis_names)}, got "
            f"{', '.join(axes) or 'none'}"
        )
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    count = math.prod(mesh.shape[axis] for axis in axes)
    places = sharding.addressable_devices_indices_map((count,)).values()
    own = len({str(place) for place in places})  # parts of the rows that this process holds
    asked = processes.gather({"rows": rows, "own": own, "mask": batch.mask is not None})
    each = max(-(-one["rows"] // one["own"]) for one in asked)  # rows of a device
    if batch.mask is None and any(one["mask"] or one["rows"] < each * one["own"] for one in asked):
        batch = batch._replace(mask=np.ones(batch_shape(batch), bool))

    def put(array: Array) -> jax.Array:
        more = [(0, each * own - rows), *[(0, 0)] * (array.ndim - 1)]
        local = np.pad(np.asarray(array), more)
        whole = (each * count, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, whole)

    return jax.tree.map(put, batch)
