"""A command in several processes that train together: `--distributed`."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import tbptt_jax as tbptt
from experiments.files import stop
from tbptt_jax import processes
from tbptt_jax.types import batch_shape

ROWS = "rows"
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Find the other processes; within it only the first one says anything but errors."""
    try:
        if all(name in os.environ for name in _BY_HAND):
            address, count, number = (os.environ[name] for name in _BY_HAND)
            jax.distributed.initialize(address, int(count), int(number))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        stop(
            f"--distributed: the other processes were not found ({error}); start the command with "
            f"srun or mpirun, or set {', '.join(_BY_HAND)} in each"
        )
    _mesh.cache_clear()
    if processes.is_first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@functools.cache
def _mesh() -> Mesh:
    return jax.make_mesh((jax.device_count(),), (ROWS,), axis_types=(AxisType.Auto,))


def place(tree: Any) -> Any:
    """Arrays that every process has, on every device of all processes; with one process as is."""
    if not processes.several():
        return tree
    everywhere = NamedSharding(_mesh(), PartitionSpec())

    def put(leaf: jax.Array) -> jax.Array:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        made = jax.make_array_from_callback(data.shape, everywhere, data.__getitem__)
        return jax.random.wrap_key_data(made, impl=jax.random.key_impl(leaf)) if is_key else made

    return jax.tree.map(put, tree)


def share(batch: tbptt.Batch) -> tbptt.Batch:
    """A batch that every process has, its rows spread over the devices; with one process as is."""
    if not processes.several():
        return batch
    rows, count = batch_shape(batch)[0], jax.process_count()
    if rows < count:
        stop(
            f"--distributed: expected batches of at least {count} rows, one for each process, got "
            f"one of {rows}; start fewer processes"
        )
    own = np.array_split(np.arange(rows), count)[jax.process_index()]
    return tbptt.data.spread(jax.tree.map(lambda x: x[own], batch), _mesh(), ROWS)


def fetch(tree: Any) -> Any:
    """Arrays that are everywhere, as arrays of this process alone; with one process as is."""
    if not processes.several():
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
