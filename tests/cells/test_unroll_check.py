"""`check_unroll` takes unrolls that are their step, and names what is wrong with others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.cells import scan
from tests.networks import HIDDEN, LearntLSTM

B, T, FEATURES = 3, 8, 2
INPUTS = np.random.default_rng(0).normal(size=(B, T, FEATURES))


def functions(unroll: Any = None) -> tuple[tbptt.Model, Any]:
    """A network with a learnt initial carry and a counter; `unroll` gets its step and start."""

    def initialize_carry(params, shape):
        h = jnp.broadcast_to(params["start"][None], (shape[0], HIDDEN))
        return {"h": h, "n": jnp.zeros(shape[:1], jnp.int32)}

    def step(params, carry, x):
        h = jnp.tanh(x @ params["in"] + carry["h"] @ params["rec"])
        return {"h": h, "n": carry["n"] + 1}, h * 2

    def call(params, carry, xs, mask, reset):
        initial = initialize_carry(params, (xs.shape[0], FEATURES))
        return unroll(lambda c, x: step(params, c, x), carry, xs, mask, reset, initial)

    rng = np.random.default_rng(1)
    shapes = {"in": (FEATURES, HIDDEN), "rec": (HIDDEN, HIDDEN), "start": (HIDDEN,)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    model = tbptt.Model(
        initialize_carry,
        lambda params, inputs, rng: inputs,
        step,
        lambda params, ys, rng: ys,
        call if unroll else None,
    )
    return model, params


def own_loop(step, carry, xs, mask, reset, initial, order="reset first"):
    """An unroll by hand, in a Python loop."""
    ys, carries = [], []
    for t in range(xs.shape[1]):
        held = carry
        if reset is not None:
            flags = reset[:, t]
            if order == "masked steps do not reset" and mask is not None:
                flags &= mask[:, t]
            carry = scan.select(flags, initial, carry)
            if order != "hold first":
                held = carry
        carry, y = step(carry, xs[:, t])
        if mask is not None:
            carry = scan.select(mask[:, t], carry, held)
            if order == "nan":
                y = jnp.where(mask[:, t, None], y, jnp.nan)
            else:
                y = jnp.where(mask[:, t, None], y, 7.0)
        ys.append(y)
        carries.append(carry)
    return carry, jnp.stack(ys, 1), jax.tree.map(lambda *c: jnp.stack(c), *carries)


@pytest.mark.parametrize("unroll", [scan.unroll, own_loop])
def test_an_unroll_that_is_its_step_is_taken(unroll):
    assert tbptt.check_unroll(*functions(unroll), INPUTS) is None


@pytest.mark.parametrize(
    "core",
    [
        lambda: nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)),
        lambda: LearntLSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0)),
        lambda: tbptt.Stack(
            [
                nnx.GRUCell(FEATURES, HIDDEN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
                nnx.SimpleCell(HIDDEN, HIDDEN, rngs=nnx.Rngs(0)),
            ]
        ),
    ],
)
def test_so_are_those_of_this_library(core):
    inputs = INPUTS.astype(np.float32)
    tbptt.check_unroll(*tbptt.functional(tbptt.SequenceModel(core=core())), inputs)


def changed(**change: Any) -> Any:
    """A right unroll whose results are changed by name."""

    def unroll(step, carry, xs, mask, reset, initial):
        names, results = (
            ("end", "ys", "carries"),
            [*scan.unroll(step, carry, xs, mask, reset, initial)],
        )
        for name, function in change.items():
            results[names.index(name)] = function(results[names.index(name)])
        return tuple(results)

    return unroll


def ordered(order: str) -> Any:
    return lambda *given: own_loop(*given, order=order)


def without_gradient(step, carry, xs, mask, reset, initial):
    return scan.unroll(step, jax.lax.stop_gradient(carry), xs, mask, reset, initial)


def without_gradient_to_the_start(step, carry, xs, mask, reset, initial):
    initial = jax.lax.stop_gradient(initial)
    return scan.unroll(step, carry, xs, mask, reset, initial)


def cut_inside(step, carry, xs, mask, reset, initial):
    def cut(c, x):
        return step({"h": jax.lax.stop_gradient(c["h"]), "n": c["n"]}, x)

    return scan.unroll(cut, carry, xs, mask, reset, initial)


def ignores(name: str) -> Any:
    def unroll(step, carry, xs, mask, reset, initial):
        mask, reset = (None if name == k else v for k, v in (("mask", mask), ("reset", reset)))
        return scan.unroll(step, carry, xs, mask, reset, initial)

    return unroll


WRONG = {
    "drops a reset on a masked step": (
        ordered("masked steps do not reset"),
        r"the end carry of unroll\['h'\] differs .* with a mask and resets",
    ),
    "holds before it resets": (
        ordered("hold first"),
        r"the end carry of unroll\['h'\] differs .* with a mask and resets",
    ),
    "carries batch first": (
        changed(carries=lambda c: jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), c)),
        r"the carries of unroll\['h'\] must .*\[8, 3, 3\].* got .*\[3, 8, 3\] with neither",
    ),
    "no gradient to the carry": (
        without_gradient,
        r"the gradient of unroll for the carry\['h'\] differs .* with neither mask nor reset",
    ),
    "no gradient inside": (cut_inside, r"the gradient of unroll for params\['in'\] differs"),
    "no gradient to the initial carry": (
        without_gradient_to_the_start,
        r"the gradient of unroll for params\['start'\] differs .* with resets",
    ),
    "starts from the initial carry": (
        lambda step, carry, xs, mask, reset, initial: scan.unroll(
            step, {**initial, "n": carry["n"]}, xs, mask, reset, initial
        ),
        r"the end carry of unroll\['h'\] differs .* with neither mask nor reset",
    ),
    "no mask": (ignores("mask"), r"the end carry of unroll\['h'\] differs .* with a mask;"),
    "no reset": (ignores("reset"), r"the end carry of unroll\['h'\] differs .* with resets;"),
    "another output": (
        changed(ys=lambda y: y + 1e-3),
        r"ys of unroll differs .* up to 0\.001 with",
    ),
    "a counter that is not there": (
        changed(end=lambda c: c | {"n": c["n"] + 1}),
        r"the end carry of unroll\['n'\] differs .* up to 1 with neither",
    ),
    "nan where masked": (
        ordered("nan"),
        "ys of unroll must be finite.* with a mask",
    ),
    "another structure": (
        changed(carries=lambda c: c["h"]),
        r"the carries of unroll must .* got PyTreeDef\(\*\)",
    ),
    "two results": (
        lambda *given: scan.unroll(*given)[:2],
        "unroll must .* got tuple with neither",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_unroll_is_named(name):
    unroll, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^check_unroll: {message}"):
        tbptt.check_unroll(*functions(unroll), INPUTS)


def test_what_has_no_unroll_to_check_is_refused():
    with pytest.raises(TypeError, match="^check_unroll: model has no unroll"):
        tbptt.check_unroll(*functions(), INPUTS)
    module: Any = tbptt.SequenceModel(core=nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)))
    message = "^check_unroll: model must .* got SequenceModel"
    with pytest.raises(TypeError, match=message):
        tbptt.check_unroll(module, {}, INPUTS)
