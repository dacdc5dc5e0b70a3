"""All devices of all processes for one training: `--distributed`.

A batch of one network is spread over them by its rows, many networks by their number. Without the
flag every function here returns what it gets.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import tbptt_jax as tbptt
from experiments.files import stop
from tbptt_jax import processes
from tbptt_jax.types import batch_shape

AXIS = "devices"
EVERYWHERE, SPREAD = PartitionSpec(), PartitionSpec(AXIS)
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_joined: list[Mesh] = []


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Use all devices; of several processes only the first one says anything but errors."""
    _find_processes()
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    _joined.append(mesh)
    try:
        if processes.is_first():
            yield
            return
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        _joined.clear()


def _find_processes() -> None:
    """Find the other processes; there may be none where this one has several devices."""
    try:
        if all(name in os.environ for name in _BY_HAND):
            address, count, number = (os.environ[name] for name in _BY_HAND)
            jax.distributed.initialize(address, int(count), int(number))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        if jax.device_count() > 1:
            return
        stop(
            f"--distributed: the other processes were not found ({error}), and this one has one "
            "device; start the command with srun or mpirun, or set "
            f"{', '.join(_BY_HAND)} in each process"
        )


def mesh() -> Mesh | None:
    """The mesh of all devices; None without the flag."""
    return _joined[0] if _joined else None


def place(tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Arrays that every process has, on the devices."""
    over = mesh()
    if over is None:
        return tree
    where = NamedSharding(over, spec)

    def put(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        made = jax.make_array_from_callback(data.shape, where, data.__getitem__)
        return jax.random.wrap_key_data(made, impl=jax.random.key_impl(leaf)) if is_key else made

    return jax.tree.map(put, tree)


def placed(tree: Any, spec: PartitionSpec) -> Any:
    """`jax.ShapeDtypeStruct`s of arrays that are placed so."""
    over = mesh()
    if over is None:
        return tree
    where = NamedSharding(over, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where, weak_type=leaf.weak_type
        ),
        tree,
    )


def rounded_up(count: int) -> int:
    """The least number, at least `count`, that the devices divide."""
    over = mesh()
    return count if over is None else -(-count // over.size) * over.size


def share(batch: tbptt.Batch) -> tbptt.Batch:
    """A batch that every process has, its rows spread over the devices."""
    over = mesh()
    if over is None:
        return batch
    rows, length = batch_shape(batch)
    count = jax.process_count()
    if rows < count:  # further rows, of which no step exists
        mask = np.ones((rows, length), bool) if batch.mask is None else batch.mask
        more = [(0, count - rows)]
        batch = jax.tree.map(
            lambda x: np.pad(x, more + [(0, 0)] * (x.ndim - 1), mode="edge"), batch
        )
        batch = batch._replace(mask=np.pad(mask, [*more, (0, 0)]))
    own = np.array_split(np.arange(max(rows, count)), count)[jax.process_index()]
    return tbptt.data.spread(jax.tree.map(lambda x: x[own], batch), over, AXIS)


def fetch(tree: Any) -> Any:
    """Arrays on the devices, wherever they are, as arrays of this process alone."""
    over = mesh()
    if over is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _to_everywhere(over)(tree))


@functools.cache
def _to_everywhere(over: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(over, EVERYWHERE))
