"""The fused recurrence is the plain scan of flax's own step, in value and in every derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.cells import dispatch, gated, scan
from tests.networks import F64, LearntLSTM, as_numpy, assert_close

B, FEATURES, HIDDEN = 2, 2, 3
CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "learnt lstm": LearntLSTM}


def make(kind: Any, **options: Any) -> tuple[Any, Any]:
    """A cell's graph and random parameters."""
    graph, params = nnx.split(
        kind(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **(F64 | options)), nnx.Param
    )
    return graph, normal(params, 1)


def normal(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def initial_carry(cell: Any) -> Any:
    return cell.initialize_carry((B, FEATURES), rngs=nnx.Rngs(0))


def both(graph: Any, length: int, marks: str) -> tuple[Any, Any]:
    """(params, carry, xs) to what the fused and the plain unroll return."""
    rng = np.random.default_rng(length)
    mask = jnp.asarray(rng.random((B, length)) > 0.3) if "m" in marks else None
    reset = jnp.asarray(rng.random((B, length)) < 0.3) if "r" in marks else None

    def quick(params, carry, xs):
        return dispatch.unroll(nnx.merge(graph, params), carry, xs, mask, reset)

    def plain(params, carry, xs):
        cell = nnx.merge(graph, params)
        return scan.unroll(cell, carry, xs, mask, reset, initial_carry(cell))

    return quick, plain


def arguments(graph: Any, params: Any, length: int) -> tuple[Any, Any, Any]:
    carry = normal(initial_carry(nnx.merge(graph, params)), 2)
    return params, carry, normal(jnp.zeros((B, length, FEATURES)), 3)


@pytest.fixture(autouse=True)
def fused_only(monkeypatch):
    """A cell that is not fused would agree with itself."""
    monkeypatch.setattr(scan, "unroll_existing", None)


@pytest.fixture
def short_chunks(monkeypatch):
    """Of 16 steps of the LSTM here and 21 of the GRU, or as many as divide a length near by."""
    monkeypatch.setattr(gated, "CHUNK_OF_SMALL", 16 * B * 4 * HIDDEN * 8)


# Of one step, of less than a chunk, of whole chunks, and of chunks with steps left over.
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(
    ("length", "marks"), [(1, "r"), (3, "m"), (32, ""), (37, "mr"), (37, "m"), (32, "r")]
)
@pytest.mark.parametrize("kind", CELLS)
def test_values_and_gradients_are_those_of_the_plain_scan(kind, length, marks):
    graph, params = make(CELLS[kind])
    quick, plain = both(graph, length, marks)
    given = arguments(graph, params, length)
    result, pull = jax.vjp(jax.jit(plain), *given)
    # A cotangent for everything that comes out reaches every path of the gradient.
    cotangent = normal(result, 4)
    expected = as_numpy((result, pull(cotangent)))
    result, pull = jax.vjp(jax.jit(quick), *given)
    assert_close(as_numpy((result, pull(cotangent))), expected, tolerance=1e-12)


@pytest.mark.usefixtures("short_chunks")
def test_large_steps_may_be_taken_two_at_a_time(monkeypatch):
    monkeypatch.setattr(gated, "LARGE_STEP_BYTES", 0)
    test_values_and_gradients_are_those_of_the_plain_scan("lstm", 37, "mr")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_so_are_those_of_what_an_accelerator_runs(kind, monkeypatch):
    monkeypatch.setattr(gated, "on_cpu", lambda: False)
    test_values_and_gradients_are_those_of_the_plain_scan(kind, 37, "mr")


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("output", ["end", "ys", "carries"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_each_output_alone_has_its_gradient(kind, output):
    graph, params = make(CELLS[kind])
    given = arguments(graph, params, 18)

    def loss(run, *given):
        outputs = dict(zip(("end", "ys", "carries"), run(*given), strict=True))[output]
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, run), argnums=(0, 1, 2)))(*given)
        for run in both(graph, 18, "m")
    )
    assert_close(as_numpy(found), as_numpy(expected), tolerance=1e-12)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_second_derivatives_and_batches_of_networks_are_there(kind):
    graph, params = make(CELLS[kind])
    params, carry, xs = arguments(graph, params, 18)
    direction = normal(params, 5)

    def derivatives(run):
        def loss(params):
            return jnp.sum(jnp.sin(run(params, carry, xs)[1]))

        def slope(params):
            return jnp.vdot(*(jnp.concatenate([a.ravel() for a in jax.tree.leaves(t)])
                              for t in (jax.grad(loss)(params), direction)))  # fmt: skip

        stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, direction)
        return {
            "reverse over reverse": jax.grad(slope)(params),
            "forward over reverse": jax.jvp(jax.grad(loss), (params,), (direction,))[1],
            "of two networks": jax.vmap(jax.grad(loss))(stacked),
        }

    found, expected = (jax.jit(lambda run=run: derivatives(run))() for run in both(graph, 18, ""))
    assert_close(as_numpy(found), as_numpy(expected), tolerance=1e-11)


def test_a_forward_pass_keeps_no_gates():
    graph, params = make(nnx.OptimizedLSTMCell)
    steps = 200_000  # many chunks
    quick, _ = both(graph, steps, "")
    given = arguments(graph, params, steps)
    gates = steps * B * 4 * HIDDEN * 8

    def temporary(function):
        analysis: Any = jax.jit(function).lower(*given).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    # Time is put first, in a copy of the inputs; a chunk's products, and its projections.
    inputs, chunk = steps * B * FEATURES * 8, gated.CHUNK_OF_LARGE
    assert temporary(lambda *given: quick(*given)[0]) < inputs + 2.1 * chunk
    assert temporary(jax.grad(lambda *given: quick(*given)[1].sum())) > gates


class Overruled(tbptt.LSTM):
    """An LSTM with a step of its own."""

    def __call__(self, carry, x):  # pyright: ignore
        carry, y = super().__call__(carry, x)
        return carry, 2 * y


UNUSUAL = {
    "another activation": lambda: make(nnx.OptimizedLSTMCell, activation_fn=nnx.relu),
    "another gate": lambda: make(nnx.GRUCell, gate_fn=nnx.hard_sigmoid),
    "a step of its own": lambda: make(Overruled),
    "mixed precision": lambda: make(nnx.GRUCell, dtype=jnp.bfloat16, param_dtype=jnp.float32),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_another_arithmetic_is_the_cells_own(kind, monkeypatch):
    monkeypatch.setattr(scan, "unroll_existing", scan.unroll)
    monkeypatch.setattr(gated, "unroll", None)
    graph, params = UNUSUAL[kind]()
    quick, plain = both(graph, 9, "mr")
    params, carry, xs = arguments(graph, params, 9)
    xs = xs.astype(jax.tree.leaves(params)[0].dtype)
    tolerance = 1e-2 if kind == "mixed precision" else 1e-12
    assert_close(
        as_numpy(jax.jit(quick)(params, carry, xs)),
        as_numpy(jax.jit(plain)(params, carry, xs)),
        tolerance=tolerance,
    )


def test_a_layer_put_in_the_place_of_another_is_used(monkeypatch):
    monkeypatch.setattr(scan, "unroll_existing", scan.unroll)
    cell = nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **F64)
    layered: Any = cell
    layered.dense_i = nnx.LoRA(
        FEATURES, 2, 4 * HIDDEN, base_module=cell.dense_i, rngs=nnx.Rngs(1), **F64
    )
    graph, params = nnx.split(layered, (nnx.Param, nnx.LoRAParam))
    quick, plain = both(graph, 5, "")
    given = arguments(graph, normal(params, 1), 5)
    assert_close(as_numpy(quick(*given)), as_numpy(plain(*given)), tolerance=1e-12)


# The bytes of a step's projections: of small, middle and large shapes.
@pytest.mark.parametrize(
    ("steps", "bytes_per_step", "size"),
    [
        *((1, 2**13, 1), (100, 2**13, 100), (1000, 2**13, 250)),
        *((30, 2**16, 30), (100, 2**16, 25), (128, 2**16, 32), (129, 2**16, 16)),
        *((31, 2**17, 16), (100, 2**17, 5), (1, 2**30, 1), (15, 2**30, 3), (100, 2**30, 4)),
    ],
)
def test_a_chunk_is_a_divisor_of_the_steps_where_one_is_near(steps, bytes_per_step, size):
    assert gated.chunk_steps(steps, bytes_per_step) == size
