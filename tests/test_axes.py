"""Meshes: automatic axes give the same numbers, explicit ones are refused by name."""

import os
import subprocess
import sys
import textwrap

from tests.command_line import ROOT

PRELUDE = """
import jax, numpy as np, optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import tbptt_jax as tbptt

def mesh(kind, *sizes):
    names = ("rows", "other")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))

def on(mesh, tree):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("rows")))

def state():
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(nnx.Linear(2, 4, rngs=rngs), tbptt.LSTM(4, 4, rngs=rngs),
                                nnx.Linear(4, 2, rngs=rngs))
    loss = lambda y, t: optax.losses.squared_error(y, t).mean(-1)
    return tbptt.TrainState.create(model, optax.adam(0.1), loss)

rng = np.random.default_rng(0)
batch = tbptt.Batch(*rng.normal(size=(2, 4, 6, 2)).astype(np.float32))
plan = tbptt.Truncation(2, 3)
uses = {
    "train_step": lambda state, batch: tbptt.train_step(state, batch, plan),
    "gradient": lambda state, batch: tbptt.gradient(state, batch, plan),
    "evaluate": lambda state, batch: tbptt.evaluate(state, [batch]),
    "predict": lambda state, batch: tbptt.predict(state, batch),
}

def message(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was raised")
"""


def run(code: str) -> list[str]:
    """The lines that a program on four devices prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_explicit_axes_are_refused_by_name():
    lines = run("""
        given, explicit = state(), mesh(AxisType.Explicit, 4)
        for use in uses.values():
            print(message(use, given, on(explicit, batch)))
        replicated = NamedSharding(mesh(AxisType.Explicit, 2, 2), PartitionSpec())
        for use in uses.values():
            print(message(use, jax.device_put(given, replicated), batch))
        with jax.set_mesh(explicit):
            for use in uses.values():
                print(message(use, given, batch))
        print(message(jax.jit(uses["train_step"]), given, on(explicit, batch)))
    """)
    on_batch = "batch.inputs", "('rows')"
    params = "params['core']['dense_h']['bias']", "('rows', 'other')"
    in_use = "the mesh in use (jax.set_mesh)", "('rows')"
    named = [on_batch] * 4 + [params] * 4 + [in_use] * 4 + [on_batch]
    for line, (array, axes) in zip(lines, named, strict=True):
        assert line.startswith(f"{array} "), line
        assert axes in line


def test_automatic_axes_give_the_numbers_of_one_device():
    lines = run("""
        auto, whole = mesh(AxisType.Auto, 4), state()
        shared = jax.device_put(state(), NamedSharding(auto, PartitionSpec()))
        for name in ("gradient", "predict", "train_step"):
            found, expected = uses[name](shared, on(auto, batch)), uses[name](whole, batch)
            if name == "train_step":
                found, expected = (
                    (s.params, s.stream.carry, m._asdict()) for s, m in (found, expected)
                )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
            print(name, len(jax.tree.leaves(found)[0].sharding.device_set))
    """)
    assert lines == ["gradient 4", "predict 4", "train_step 4"]
