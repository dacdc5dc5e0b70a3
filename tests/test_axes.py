"""Meshes: rows spread over devices give the numbers of one device, and one sum of the gradient.

Each program runs in a process of its own, which has several CPU devices.
"""

import json
import os
import subprocess
import sys
import textwrap

import jax
import pytest

from tests.command_line import ROOT

PRELUDE = """
import collections, dataclasses, json, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import tbptt_jax as tbptt

ROWS, STEPS, WORDS, HIDDEN = 8, 6, 12, 6

def mesh(kind, *sizes):
    names = ("rows", "other")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))

def on(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))

def cores(rngs):
    return {
        "lstm": lambda: tbptt.LSTM(4, HIDDEN, rngs=rngs),
        "gru": lambda: nnx.GRUCell(4, HIDDEN, rngs=rngs),
        "plain": lambda: nnx.SimpleCell(4, HIDDEN, rngs=rngs),
        "stack": lambda: tbptt.Stack(
            [tbptt.LSTM(4, HIDDEN, rngs=rngs), nnx.GRUCell(HIDDEN, HIDDEN, rngs=rngs)]
        ),
    }

optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))

def state(core="lstm", dropout=0.0):
    rngs = nnx.Rngs(0)
    encoder = nnx.Embed(WORDS, 4, rngs=rngs)
    if dropout:
        encoder = nnx.Sequential(encoder, nnx.Dropout(dropout, rngs=rngs))
    model = tbptt.SequenceModel(encoder, cores(rngs)[core](), nnx.Linear(HIDDEN, 3, rngs=rngs))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optimizer, loss)

def batch(marks=(), rows=ROWS):
    rng = np.random.default_rng(len(marks))
    words, labels = rng.integers(0, WORDS, (rows, STEPS)), rng.integers(0, 3, (rows, STEPS))
    made = {
        "mask": rng.random((rows, STEPS)) < 0.7,
        "reset": rng.random((rows, STEPS)) < 0.2,
        "weights": rng.random((rows, STEPS)).astype(np.float32),
    }
    if "mask" in marks:
        made["mask"][-1] = False  # a device whose row does not exist
        words[~made["mask"]] = 10**6
    return tbptt.Batch(words, labels, **{mark: made[mark] for mark in marks})

uses = {
    "train_step": tbptt.train_step,
    "gradient": tbptt.gradient,
    "evaluate": lambda state, batch, plan: tbptt.evaluate(state, [batch]),
    "predict": lambda state, batch, plan: tbptt.predict(state, batch),
    "credit_by_lag": lambda state, batch, plan: tbptt.credit_by_lag(state, batch, 3),
}

def numbers(found):
    leaves = jax.tree.leaves_with_path(found)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    }

def assert_same(found, expected):
    found, expected = numbers(found), numbers(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)

def collectives(compiled):
    '''What devices send each other: the kind, the numbers sent, and whether in a loop.'''
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\\(", compiled.as_text())
    return [(kind, [
        int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
        for shape in re.findall(r"\\[([\\d,]*)\\]", shapes)
    ]) for shapes, kind in found]
"""


EXPLICIT = pytest.mark.skipif(
    not hasattr(jax.sharding, "use_abstract_mesh"), reason="needs a newer JAX"
)


def run(code: str, devices: int = 4) -> list[str]:
    """The lines that a program on so many devices prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SAME_NUMBERS = """
    plan = tbptt.Truncation(2, 3)
    for name, use in uses.items():
        for marks in ((), ("reset",), ("mask", "reset", "weights")):
            expected = use(state(), batch(marks), plan)
            shared = mesh(AxisType.{kind}, {sizes})
            found = use(on(shared, state()), on(shared, batch(marks), "rows"), plan)
            assert_same(found, expected)
            arrays = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)]
            assert all(leaf.sharding.mesh == shared for leaf in arrays)
            assert all(len(leaf.devices()) == {devices} for leaf in arrays)
        print(name)
"""


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("Auto", (4,)),
        pytest.param("Explicit", (4,), marks=EXPLICIT),
        pytest.param("Auto", (2,), marks=pytest.mark.slow),
        pytest.param("Explicit", (2, 2), marks=[EXPLICIT, pytest.mark.slow]),
        pytest.param("Auto", (8,), marks=pytest.mark.slow),
    ],
)
def test_rows_on_several_devices_give_the_numbers_of_one(kind, sizes):
    devices = 1
    for size in sizes:
        devices *= size
    code = SAME_NUMBERS.format(kind=kind, sizes=", ".join(map(str, sizes)), devices=devices)
    assert run(code, devices) == [
        "train_step", "gradient", "evaluate", "predict", "credit_by_lag"
    ]  # fmt: skip


@pytest.mark.parametrize("core", ["lstm", pytest.param("plain", marks=pytest.mark.slow)])
def test_dropout_and_streams_go_on_as_on_one_device(core):
    lines = run(f"""
        plan, made = tbptt.Truncation(2, 5), batch(("mask", "reset"))
        shared = mesh(AxisType.Auto, 4)
        one, many = state("{core}", dropout=0.5), on(shared, state("{core}", dropout=0.5))
        plain, metrics = tbptt.train_step(state("{core}"), made, plan)
        for i in range(3):
            one, expected = tbptt.train_step(one, made, plan)
            many, found = tbptt.train_step(many, on(shared, made, "rows"), plan)
            assert_same((many, found), (one, expected))
            assert i or not np.allclose(metrics.loss, expected.loss)  # dropout changes it
            print(many.stream.carry[0].sharding.spec if "{core}" == "lstm" else "")
    """)
    assert len(lines) == 3


@pytest.mark.parametrize(
    "kind", ["Auto", pytest.param("Explicit", marks=[EXPLICIT, pytest.mark.slow])]
)
def test_large_tables_are_spread_over_a_second_axis_and_stay_there(kind):
    lines = run(f"""
        shared, plan, made = mesh(AxisType.{kind}, 2, 2), tbptt.Truncation(2, 3), batch(("mask",))

        def put(leaf):
            large = leaf.shape[:1] == (WORDS,) or leaf.shape == (HIDDEN, 3)
            return on(shared, leaf, *["other"] * large)

        one, many = state(), jax.tree.map(put, state())
        before = [leaf.sharding for leaf in jax.tree.leaves(many)]
        assert sum(not s.is_fully_replicated for s in before) == 6  # with both moments
        for _ in range(2):
            one, expected = tbptt.train_step(one, made, plan)
            many, found = tbptt.train_step(many, on(shared, made, "rows"), plan)
            assert_same((many.params, found), (one.params, expected))
        after = jax.tree.leaves(many.restart())
        print(all(a.sharding.is_equivalent_to(b, a.ndim) for a, b in zip(after, before)))
    """)
    assert lines == ["True"]


@pytest.mark.slow
def test_rows_that_the_devices_do_not_divide_are_filled_up():
    lines = run("""
        plan, shared = tbptt.Truncation(2, 3), mesh(AxisType.Auto, 4)
        for marks in ((), ("mask", "reset", "weights")):
            made = jax.tree.map(lambda x: x[:6], batch(marks))
            spread = tbptt.data.spread(made, shared, "rows")
            print(spread.inputs.shape[0], spread.mask[6:].any())
            one, expected = tbptt.train_step(state(), made, plan)
            many, found = tbptt.train_step(on(shared, state()), spread, plan)
            assert_same((many.params, found), (one.params, expected))
            assert_same(tbptt.evaluate(many, spread), tbptt.evaluate(one, made))
        whole = tbptt.data.spread(batch(), shared, ["rows"])
        print(whole.inputs.shape[0], whole.mask)
        try:
            tbptt.data.spread(batch(), shared, "columns")
        except ValueError as error:
            print(error)
    """)
    assert lines == [
        *["8 False"] * 2,
        "8 None",
        "spread: axes must name axes of the mesh, rows, got columns",
    ]


@EXPLICIT
def test_a_mesh_in_use_whose_axes_are_explicit():
    lines = run("""
        plan, shared = tbptt.Truncation(2, 3), mesh(AxisType.Explicit, 4)
        expected = tbptt.train_step(state(), batch(), plan)
        with jax.set_mesh(shared):
            assert_same(tbptt.train_step(state(), batch(), plan), expected)
            whole = on(shared, state())
            assert_same(tbptt.train_step(whole, on(shared, batch(), "rows"), plan), expected)
        print("same")
    """)
    assert lines == ["same"]


@pytest.mark.parametrize("kind", ["Auto", pytest.param("Explicit", marks=EXPLICIT)])
def test_a_state_on_a_mesh_is_donated_and_a_user_s_array_is_not(kind):
    lines = run(f"""
        shared = mesh(AxisType.{kind}, 4)
        first = on(shared, state())
        second, _ = tbptt.train_step(first, on(shared, batch(), "rows"), tbptt.Truncation(2, 3))
        third, _ = tbptt.train_step(second, on(shared, batch(), "rows"), tbptt.Truncation(2, 3))
        for one in (first, second, third):
            print(*{{leaf.is_deleted() for leaf in jax.tree.leaves(one.params)}})
    """)
    assert lines == ["False", "True", "False"]


def test_a_traced_array_with_explicit_axes_is_refused_by_name():
    lines = run("""
        shared = mesh(AxisType.Explicit, 4)
        step = jax.jit(lambda state, batch: tbptt.train_step(state, batch, tbptt.Truncation(2, 3)))
        try:
            step(on(shared, state()), on(shared, batch(), "rows"))
        except ValueError as error:
            print(error)
    """)
    assert len(lines) == 1
    assert "explicit mesh axes ('rows'); call tbptt_jax outside of jit" in lines[0]


TRAVELS = """
    shared = mesh(AxisType.Auto, 4)
    for core, plan, marks in {cases}:
        plan = tbptt.Truncation(**plan)
        on_devices = on(shared, state(core, dropout={dropout})), on(shared, batch(marks), "rows")
        size = sum(leaf.size for leaf in jax.tree.leaves(on_devices[0].params))
        compiled = tbptt.lower(*on_devices, plan).compile()
        print(json.dumps([size, collectives(compiled)]))
"""


def test_of_an_update_the_gradient_travels_once_and_nothing_else():
    cases = [
        *((core, {"k1": 2, "k2": 2}, ()) for core in ("lstm", "gru", "plain")),
        ("stack", {"k1": 3, "k2": 3}, ()),
        ("lstm", {"k1": 2, "k2": 2}, ("reset",)),
        ("lstm", {"k1": 2, "k2": 5}, ("reset",)),
        ("plain", {"k1": 2, "k2": 5}, ("reset",)),
        ("lstm", {"k1": 6, "k2": 3, "anchor": "loss"}, ()),
        ("gru", {"k1": 6, "k2": 3, "anchor": "loss"}, ("reset",)),
        ("lstm", {"k1": 6, "k2": 3, "anchor": "loss", "block": 2}, ()),
        ("stack", {"k1": 2, "k2": 4, "anchor": "loss"}, ("reset",)),
    ]
    lines = run(TRAVELS.format(cases=cases, dropout=0))
    for case, (size, found) in zip(cases, map(json.loads, lines), strict=True):
        assert {kind for kind, _ in found} == {"all-reduce"}, case
        # The gradient and the loss.
        assert sum(sum(shapes) for _, shapes in found) == size + 1, case


@pytest.mark.slow
@pytest.mark.parametrize("marks", [("mask",), ("weights",), ("mask", "reset", "weights")])
def test_with_masks_and_weights_their_sums_travel_too(marks):
    plans = [
        ("lstm", {"k1": 2, "k2": 5}),
        ("gru", {"k1": 2, "k2": 2}),
        ("plain", {"k1": 3, "k2": 3}),
        ("stack", {"k1": 6, "k2": 3, "anchor": "loss"}),
        ("lstm", {"k1": 6, "k2": 2, "anchor": "loss", "block": 2}),
    ]
    cases = [(core, plan, marks) for core, plan in plans]
    lines = run(TRAVELS.format(cases=cases, dropout=0))
    for case, (size, found) in zip(cases, map(json.loads, lines), strict=True):
        assert {kind for kind, _ in found} == {"all-reduce"}, case
        numbers = sum(sum(shapes) for _, shapes in found)
        # The sum of a window's weights; where they are no mask, in units of the largest one too.
        assert numbers - (size + 1) == (3 if "weights" in marks else 1), case


def test_with_random_numbers_and_a_mask_the_values_of_one_step_travel_too():
    cases = [("lstm", {"k1": 2, "k2": 5}, ("mask", "reset", "weights"))]
    ((size, found),) = map(json.loads, run(TRAVELS.format(cases=cases, dropout=0.5)))
    assert {kind for kind, _ in found} == {"all-reduce"}
    numbers = sum(sum(shapes) for _, shapes in found)
    assert 0 < numbers - (size + 1) < 100
