"""The mean decides: what it can express is trained on, however large, small or many the numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import sums
from tests.networks import as_numpy

SGD = optax.sgd(1.0)
PLANS = [
    tbptt.Truncation(6, 6),
    tbptt.Truncation(2, 2),
    tbptt.Truncation(3, 2, "loss"),
    tbptt.Truncation(6, 2, "loss", block=2),
]


def mean_square(outputs: Any, targets: Any) -> Any:
    return jnp.square(outputs - targets).mean(-1)


def make(dtype: Any = jnp.float32, loss: Any = mean_square) -> tbptt.TrainState:
    rngs, form = nnx.Rngs(0), {"dtype": dtype, "param_dtype": dtype}
    model = tbptt.SequenceModel(
        nnx.Linear(3, 4, rngs=rngs, **form),
        # LAPACK, which the usual initializer calls, has no float16.
        nnx.SimpleCell(
            4, 4, rngs=rngs, recurrent_kernel_init=nnx.initializers.lecun_normal(), **form
        ),
        nnx.Linear(4, 2, rngs=rngs, **form),
    )
    return tbptt.TrainState.create(model, SGD, loss)


def make_batch(rows: int = 3, length: int = 6, dtype: Any = np.float32) -> tbptt.Batch:
    rng = np.random.default_rng(0)
    return tbptt.Batch(
        rng.normal(size=(rows, length, 3)).astype(dtype),
        rng.normal(size=(rows, length, 2)).astype(dtype),
        weights=rng.uniform(0.5, 2, (rows, length)).astype(np.float32),
    )


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-20, 1e-30])
@pytest.mark.parametrize("plan", PLANS[:3])
def test_weights_of_any_size_train_alike(plan, scale):
    batch = make_batch()
    expected, usual = tbptt.train_step(make(), batch, plan)
    scaled = batch._replace(weights=batch.weights * np.float32(scale))
    found, metrics = tbptt.train_step(make(), scaled, plan)
    assert metrics.finite.all()
    for name in ("loss", "grad_norm", "scored"):
        np.testing.assert_allclose(getattr(metrics, name), getattr(usual, name), rtol=1e-5)
    np.testing.assert_allclose(metrics.weight, usual.weight * scale, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    both = [tbptt.gradient(make(), b, plan) for b in (scaled, batch)]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    means = [tbptt.evaluate(make(), b)["loss"] for b in (scaled, batch)]
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    lags = [tbptt.credit_by_lag(make(), b, 3) for b in (scaled, batch)]
    np.testing.assert_allclose(*lags, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e20, 1e36, 1e-25])
def test_a_loss_of_any_size_that_its_mean_can_express_is_trained_on(scale):
    """1e36 times some hundred losses is beyond float32; their mean is not."""
    scale = jnp.float32(scale)
    state = make(loss=lambda y, t: mean_square(y, t) * scale)
    batch = make_batch(rows=20, length=30)
    usual = tbptt.gradient(make(), batch, tbptt.Truncation(30, 30))
    found, metrics = tbptt.train_step(state, batch, tbptt.Truncation(30, 30))
    assert metrics.finite.all()
    assert int(found.step) == 1
    norm = float(optax.tree.norm(jax.tree.map(np.float64, usual)))
    np.testing.assert_allclose(metrics.grad_norm / scale, [norm], rtol=1e-4)


@pytest.mark.parametrize("values", [[3e20, 4e20], [3e-30, 4e-30], [3.0, 4.0], [0.0, 0.0], [3e38]])
def test_the_norm_is_right_wherever_it_can_be_written(values):
    tree = {"a": jnp.float32(values[:1]), "b": jnp.float32(values[1:])}
    norm, finite = jax.jit(sums.norm)(tree)
    np.testing.assert_allclose(norm, np.linalg.norm(np.float32(values).astype(np.float64)), 1e-6)
    assert finite


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_the_norm_tells_what_is_not_finite(wrong):
    _, finite = sums.norm([jnp.ones(3), jnp.float32([1, wrong])])
    assert not finite


def test_numbers_that_are_finite_count_as_such_where_their_norm_is_not():
    norm, finite = sums.norm([jnp.full(4, 3e38, jnp.float32)])
    assert np.isinf(norm)
    assert finite


def test_a_float16_network_trains_on_many_losses():
    """Batch 32, 400 steps: the squares of the undivided sum are beyond float16."""
    batch = make_batch(32, 400, np.float16)._replace(weights=None)
    plan = tbptt.Truncation(400, 400)
    wide = jax.tree.map(np.float32, batch)
    narrow = make(jnp.float16)
    same = jax.tree.map(lambda p: p.astype(jnp.float32), narrow.params)
    expected = tbptt.gradient(dataclasses.replace(make(), params=same), wide, plan)
    found = tbptt.gradient(narrow, batch, plan)
    state, metrics = tbptt.train_step(narrow, batch, plan)
    assert metrics.finite.all()
    assert int(state.step) == 1
    norm = float(optax.tree.norm(expected))
    difference = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b, found, expected)
    assert float(optax.tree.norm(difference)) < 0.02 * norm
    np.testing.assert_allclose(metrics.grad_norm, [norm], rtol=0.02)


# A model whose loss at each step is its parameter times the input.
LINEAR = tbptt.Model(
    initialize_carry=lambda params, shape: jnp.zeros(shape[:1], params.dtype),
    encode=lambda params, inputs, rng: inputs,
    step=lambda params, carry, x: (carry, params * x),
    readout=lambda params, ys, rng: ys,
)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "plan",
    [
        tbptt.Truncation(1, 1),  # the sum over windows
        tbptt.Truncation(4096, 4096),  # over the steps of one
        tbptt.Truncation(4096, 2, "loss"),  # over the steps of all windows at once
        tbptt.Truncation(4096, 2, "loss", block=64),  # over those of a block
        tbptt.Truncation(4096, 2, "loss", block=1),  # over more blocks than 16 bits count
    ],
)
def test_the_gradient_of_16_bit_parameters_is_summed_in_32(plan, dtype):
    inputs = jnp.ones((1, 4096), dtype)
    state = tbptt.TrainState.create(LINEAR, SGD, lambda y, t: y, params=jnp.ones((), dtype))
    batch = tbptt.Batch(inputs, inputs)
    assert float(tbptt.gradient(state, batch, plan)) == 1.0
    if plan.k1 > 1:
        _, metrics = tbptt.train_step(state, batch, plan)
        np.testing.assert_allclose(metrics.grad_norm, [1.0], rtol=1e-3)


def test_some_parameters_of_16_bits_are_enough_for_wide_sums():
    model = LINEAR._replace(
        initialize_carry=lambda params, shape: jnp.zeros(shape[:1]),
        step=lambda params, carry, x: (carry, params["narrow"] * x + params["wide"]),
    )
    params = {"narrow": jnp.ones((), jnp.bfloat16), "wide": jnp.ones(())}
    inputs = jnp.ones((1, 4096), jnp.bfloat16)
    state = tbptt.TrainState.create(model, SGD, lambda y, t: y, params=params)
    grads = tbptt.gradient(state, tbptt.Batch(inputs, inputs), tbptt.Truncation(4096, 4096))
    assert {name: float(grad) for name, grad in grads.items()} == {"narrow": 1, "wide": 1}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_weights_of_16_bits_lose_no_unit(dtype):
    """70,000 is beyond float16, and of bfloat16 every number above 256 is even."""
    rows, length = 7, 10_001
    batch = tbptt.Batch(
        jnp.ones((rows, length)), jnp.ones((rows, length)), weights=jnp.ones((rows, length), dtype)
    )
    state = tbptt.TrainState.create(LINEAR, SGD, lambda y, t: y, params=jnp.ones(()))
    assert tbptt.evaluate(state, batch)["weight"] == rows * length
    _, metrics = tbptt.train_step(state, batch, tbptt.Truncation(length, length))
    assert metrics.finite.all()
    assert float(metrics.weight[0]) == rows * length
    np.testing.assert_allclose(metrics.loss, [1.0], rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, [1.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_losses_of_16_bits_are_added_in_32(dtype):
    """A thousand losses of 1,000: their sum is beyond float16, and bfloat16 loses most of it."""
    inputs = jnp.full((1, 1000), 1000, dtype)
    state = tbptt.TrainState.create(LINEAR, SGD, lambda y, t: y, params=jnp.ones((), dtype))
    window = tbptt.Window(inputs, inputs)
    value, _ = tbptt.window_value_and_grad(LINEAR, state.loss, state.params, None, window)
    assert value.loss.dtype == jnp.float32
    assert float(value.loss) == 1e6
    assert tbptt.evaluate(state, tbptt.Batch(inputs, inputs))["loss"] == 1000


def test_means_of_counts_are_exact():
    """1 of 3, 2 of 7 and so on, as Python divides them, of one batch and of several."""
    state = tbptt.TrainState.create(LINEAR, SGD, lambda y, t: y, params=jnp.ones(()))
    metrics = {"right": lambda y, t: jnp.float32(y == t)}
    batches, right, count = [], 0, 0
    for length in (3, 7, 11):
        inputs = np.zeros((1, length), np.float32)
        inputs[0, : length // 3] = 1
        mask = np.ones((1, length), bool)
        mask[0, -1] = False
        batches.append(tbptt.Batch(inputs, np.ones((1, length), np.float32), mask))
        right, count = right + length // 3, count + length - 1
        alone = tbptt.evaluate(state, batches[-1], metrics)
        assert alone["right"] == alone["loss"] == (length // 3) / (length - 1)
    assert tbptt.evaluate(state, batches, metrics)["right"] == pytest.approx(right / count, 1e-15)
    every = [batch._replace(inputs=batch.targets) for batch in batches]
    assert tbptt.evaluate(state, every[2], metrics)["right"] == 1
    assert tbptt.evaluate(state, every[2]._replace(mask=None), metrics)["right"] == 1


def test_credit_by_lag_of_a_complex_carry_is_of_moduli():
    """A rotation by a quarter turn: what crosses k steps has the modulus 0.5 ** k."""
    model = tbptt.Model(
        initialize_carry=lambda params, shape: jnp.zeros(shape, complex),
        encode=lambda params, inputs, rng: inputs,
        step=lambda params, h, x: (0.5j * h + params * x,) * 2,
        readout=lambda params, ys, rng: ys[..., 0].real + ys[..., 0].imag,
    )
    state = tbptt.TrainState.create(model, SGD, lambda y, t: y, params=jnp.ones((), complex))
    last = np.array([[0.0, 0, 0, 1]])
    batch = tbptt.Batch(np.ones((1, 4, 1)), np.ones((1, 4)), weights=last)
    credit = tbptt.credit_by_lag(state, batch, max_lag=3)
    # At lag 0 the output's cotangent, of modulus 2 ** 0.5, and then the carry's.
    np.testing.assert_allclose(credit.carry, np.sqrt(2) * 0.5 ** np.arange(4.0), rtol=1e-12)
    np.testing.assert_allclose(credit.params, np.sqrt(2) * 0.5 ** np.arange(4.0), rtol=1e-12)


def test_the_bias_of_complex_gradients_sees_both_parts():
    full, estimate = {"a": np.array([1 + 1j])}, {"a": np.array([1 - 1j])}
    bias = tbptt.compare_gradients([estimate], full)["all"]
    assert bias.cosine == pytest.approx(0, abs=1e-12)
    assert bias.norm_ratio == pytest.approx(1)


def test_the_count_of_updates_stays_at_the_largest():
    state = make()
    last = dataclasses.replace(state, step=jnp.int32(2**31 - 2))
    last, _ = tbptt.train_step(last, make_batch(), tbptt.Truncation(2, 2))
    assert int(last.step) == 2**31 - 1


@pytest.mark.slow
def test_strict_promotion_of_dtypes_changes_nothing():
    batch = make_batch()._replace(mask=np.arange(6) < np.array([[6], [4], [5]]))
    stream = batch._replace(reset=np.zeros((3, 6), bool))
    for data in (batch, stream):
        for plan in PLANS:
            expected = as_numpy(tbptt.train_step(make(), data, plan))
            with jax.numpy_dtype_promotion("strict"):
                found = as_numpy(tbptt.train_step(make(), data, plan))
                tbptt.gradient(make(), data, plan)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(a, b)
    with jax.numpy_dtype_promotion("strict"):
        tbptt.evaluate(make(), batch)
        tbptt.predict(make(), batch)
        tbptt.credit_by_lag(make(), batch, 2)
