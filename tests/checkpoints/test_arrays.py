"""Whatever a training can hold is restored as it was: kind, dtype, shape and bits."""

import contextlib
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tbptt_jax as tbptt
from tbptt_jax import Checkpoints
from tbptt_jax.checkpoints import arrays, store
from tests.checkpoints.test_manager import bits

DTYPES = [
    "bool", "int4", "int8", "int32", "int64", "uint4", "uint8", "uint64", "float8_e4m3fn",
    "float8_e5m2", "bfloat16", "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
SHAPES = [(), (0,), (1,), (3, 2), (2, 0, 3)]


@contextlib.contextmanager
def x64(on):
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def there_and_back(folder, tree, like=None) -> Any:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(tree)
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(tree if like is None else like)
    assert found is not None
    return found.tree


def kinds(tree):
    """What an array is beyond its bits."""
    return [
        (isinstance(leaf, jax.Array), type(leaf), getattr(leaf, "weak_type", None))
        for leaf in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize("on", [True, False], ids=["x64", "no x64"])
def test_every_dtype_and_shape_of_numpy_and_of_jax(on, tmp_path):
    rng = np.random.default_rng(0)
    tree = {}
    with x64(on):
        for dtype in DTYPES:
            for shape in SHAPES:
                array = np.asarray(rng.integers(0, 2, shape)).astype(np.dtype(dtype))
                tree[f"numpy {dtype} {shape}"] = array
                if on or array.itemsize < 8 or dtype == "complex64":
                    tree[f"jax {dtype} {shape}"] = jnp.asarray(array)
        found = there_and_back(tmp_path, tree)
    assert len(tree) >= 140
    for name, leaf in tree.items():
        assert bits(found[name]) == bits(leaf), name
        assert kinds(found[name]) == kinds(leaf), name


def test_what_numbers_have_beside_their_value(tmp_path):
    nan = np.array([0x7FC00001, 0xFFC00002, 0x7F800001], np.uint32).view(np.float32)
    tree = {
        "nan with a payload": nan,
        "in JAX": jnp.asarray(nan[:2]),
        "zeros": np.array([0.0, -0.0]),
        "subnormal": np.array([5e-324]),
        "big-endian": np.arange(3, dtype=">f4"),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "every second": np.arange(6)[::2],
        "scalar": np.float64(0.1),
        "bfloat16 scalar": ml_dtypes.bfloat16(0.1),
        "dates": np.array(["2026-11-27"], "datetime64[D]"),
        "weak": jnp.asarray(1.5),
        "weak integers": jnp.full((2, 2), 3),
        "weak, complex": jnp.asarray(1j),
        "keys": jax.random.split(jax.random.key(7), 3),
        "rbg": jax.random.key(7, impl="rbg"),
        "no keys": jax.random.split(jax.random.key(7), 3)[:0],
        "raw key": jax.random.PRNGKey(3),
    }
    found = there_and_back(tmp_path, tree)
    assert bits(found) == bits(tree)
    assert kinds(found) == kinds(tree)
    assert found["columns first"].tolist() == tree["columns first"].tolist()
    for name in ("keys", "rbg", "no keys"):
        assert found[name].dtype == tree[name].dtype


def test_an_array_may_be_changed_while_it_is_written(tmp_path, monkeypatch):
    changed, write = threading.Event(), store.write

    def late(*arguments):
        assert changed.wait(60)
        write(*arguments)

    monkeypatch.setattr(store, "write", late)
    array = np.arange(6.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"a": array})
        array[:] = -1
        changed.set()
        checkpoints.wait()
        found = checkpoints.restore({"a": array})
    assert found is not None
    np.testing.assert_array_equal(found.tree["a"], np.arange(6.0))


def test_a_tree_of_nothing_but_size_zero(tmp_path):
    tree = (jnp.zeros((2, 0)), np.zeros(0, np.float16))
    found = there_and_back(tmp_path, tree)
    assert bits(found) == bits(tree)
    assert kinds(found) == kinds(tree)


def test_what_jax_would_make_smaller_is_refused(tmp_path):
    there_and_back(tmp_path, {"a": jnp.ones(2, jnp.float64)})
    like = {"a": jax.ShapeDtypeStruct((2,), np.float64)}
    message = r"\['a'\] is float64, .* float32 .* jax\.config"
    with (
        x64(False),
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=message),
    ):
        checkpoints.restore(like)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0"]


# ------------------------------------------------------------------------------------ trainings


class Stream:
    """Training on a stream or on whole sequences, with a network of some dtype."""

    def __init__(self, core, dtype, plan, stream, optimizer):
        rngs = nnx.Rngs(0)
        options: Any = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        recurrent = nnx.initializers.lecun_normal()  # the default's QR has no 16 bits
        make: Any = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": tbptt.LSTM}[core]
        model = tbptt.SequenceModel(
            nnx.Sequential(nnx.Linear(2, 3, **options), nnx.Dropout(0.3, rngs=rngs)),
            make(3, 4, recurrent_kernel_init=recurrent, **options),
            nnx.Linear(4, 2, **options),
        )
        self.plan, self.stream = plan, stream

        def loss(y, t):
            return ((y - t.astype(y.dtype)) ** 2).mean(-1)

        self.state = tbptt.TrainState.create(model, optimizer, loss, seed=1)

    def batch(self, i):
        rng = np.random.default_rng(i)
        reset = np.zeros((2, 4), bool)
        reset[:, 0] = i == 0
        return tbptt.Batch(
            rng.normal(size=(2, 4, 2)).astype(np.float32),
            rng.normal(size=(2, 4, 2)).astype(np.float32),
            reset=reset if self.stream else None,
        )

    def step(self, state, i):
        return tbptt.train_step(state, self.batch(i), self.plan)

    def like(self):
        step = functools.partial(tbptt.train_step, truncation=self.plan)
        return jax.eval_shape(step, self.state, self.batch(0))[0]


@pytest.mark.slow
@given(
    k1=st.sampled_from([1, 2, 3, 5]),
    k2=st.sampled_from([1, 2, 4, 6]),
    anchor=st.sampled_from(["update", "loss", "block"]),
    core=st.sampled_from(["rnn", "gru", "lstm"]),
    dtype=st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]),
    stream=st.booleans(),
    optimizer=st.sampled_from(["sgd", "adam", "injected"]),
)
@settings(max_examples=16, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
def test_training_resumes_with_the_same_bits(
    k1, k2, anchor, core, dtype, stream, optimizer, tmp_path_factory
):
    by_loss = anchor != "update"
    plan = tbptt.Truncation(
        k1, k2, "loss" if by_loss else "update", block=2 if anchor == "block" else None
    )
    made = {
        "sgd": optax.sgd(0.1),
        "adam": optax.adam(0.1),
        "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    }[optimizer]
    training = Stream(core, dtype, plan, stream, made)
    like = training.like()
    state, _ = training.step(training.state, 0)
    found = there_and_back(tmp_path_factory.mktemp("run"), state, like)
    assert bits(found) == bits(state)
    assert kinds(found) == kinds(state)
    for i in (1, 2):
        state, expected = training.step(state, i)
        found, metrics = training.step(found, i)
        assert bits((found, metrics)) == bits((state, expected))


@pytest.mark.parametrize("plan", [(1, 1), (2, 1), (1, 1, "loss")], ids=str)
def test_a_stream_with_k2_of_1_is_saved(plan, tmp_path):
    training = Stream("lstm", jnp.float32, tbptt.Truncation(*plan), True, optax.sgd(0.1))
    like = training.like()
    state, _ = training.step(training.state, 0)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    found = there_and_back(tmp_path, state, like)
    assert bits(found) == bits(state)
    assert 0 in sizes or plan[0] > 1
    assert bits(training.step(found, 1)) == bits(training.step(state, 1))


# ------------------------------------------------------------------------ digests, config, progress


@pytest.mark.parametrize(
    "other",
    [
        lambda a: a.reshape(-1),
        lambda a: a.reshape(3, 2),
        lambda a: a.view(np.int32),
        lambda a: a.view(np.float16),
        lambda a: a.view(">f4"),
        lambda a: a[None],
    ],
)
def test_an_array_of_the_same_bytes_is_not_the_same(other):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    packed, metadata = arrays.pack("['w']", array)
    assert bits(arrays.unpack(packed, metadata)) == bits(array)
    changed = other(array)
    assert changed.tobytes() == array.tobytes()
    with pytest.raises(ValueError, match=r"\['w'\]"):
        arrays.unpack(changed, metadata)
    # Nor where its metadata are changed with it.
    lie: arrays.ArrayMetadata = {
        **metadata,
        "shape": list(changed.shape),
        "dtype": str(changed.dtype),
    }
    with pytest.raises(ValueError, match=r"\['w'\]"):
        arrays.unpack(changed, lie)


@pytest.mark.parametrize(
    "config",
    [
        {"x": float("nan")},
        {"x": [1.0, float("nan")], "y": {"z": float("inf"), "w": -float("inf")}},
        {1: "one", "t": (1, (2, 3)), None: True, 2.5: []},
        {"x": np.float64(0.1), "nan": np.float64("nan")},
        {"x": 1 << 80, "y": 5e-324, "z": -0.0, "é": "\udc80 \U0001f600"},
    ],
    ids=str,
)
def test_a_config_is_its_own(config, tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path, config) as checkpoints:
            checkpoints.save({"a": np.ones(2)}, config)
            checkpoints.wait()
            assert checkpoints.restore({"a": np.ones(2)}) is not None


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"x": float("nan")}, {"x": 1.0}, r"x: nan .* 1\.0 "),
        ({"x": float("inf")}, {"x": -float("inf")}, "x: inf .* -inf "),
        ({"x": [float("nan"), 1]}, {"x": [1, float("nan")]}, r"x: \[nan, 1\] .* \[1, nan\] "),
        ({"x": 1}, {"x": "1"}, "x: 1 .* '1' "),
        ({"x": "nothing"}, {}, "x: 'nothing' .* nothing "),
        ({}, {"x": None}, "x: nothing .* None "),
    ],
    ids=str,
)
def test_another_config_is_refused(before, now, line, tmp_path):
    with Checkpoints(tmp_path, before) as checkpoints:
        checkpoints.save({"a": np.ones(2)})
    with Checkpoints(tmp_path, now) as checkpoints, pytest.raises(ValueError, match=f"\n  {line}"):
        checkpoints.restore({"a": np.ones(2)})


def test_progress_that_is_not_finite_comes_back(tmp_path):
    progress = {"loss": float("nan"), "best": [float("inf"), -float("inf")], "row": (1, 2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"a": np.ones(2)}, progress)
        checkpoints.wait()
        found = checkpoints.restore({"a": np.ones(2)})
    assert found is not None
    assert str(found.progress) == "{'loss': nan, 'best': [inf, -inf], 'row': [1, 2]}"
