"""Training as a whole: equivalences, streams, what is donated, compiled and kept."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax.training import programs
from tbptt_jax.training.evaluate import combine, partial_sums
from tests import oracle
from tests.networks import (
    CLASSES,
    ENCODED,
    FEATURES,
    HIDDEN,
    LOSSES,
    as_numpy,
    assert_close,
    carry_of,
    cut,
    make_batch,
    make_model,
    make_state,
    randomize,
)

B = 2
XENT = LOSSES["xent"]
SGD = optax.sgd(0.3)


def make(
    core: Any = "rnn", optimizer: Any = SGD, model: Any = None, seed: int = 1
) -> tbptt.TrainState:
    """A state with random parameters."""
    model = make_model(core) if model is None else model
    return randomize(tbptt.TrainState.create(model, optimizer, XENT), seed)


def identical(actual: Any, expected: Any) -> None:
    """Bit for bit, in values, dtypes and structure."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).dtype == np.asarray(e).dtype
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def differ(a: Any, b: Any) -> bool:
    """Whether every leaf of two pytrees differs somewhere."""
    return all(
        np.any(np.asarray(x) != np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def flags(length: int, *places: tuple[int, int], rows: int = B) -> np.ndarray:
    """bool [rows, length], True at the places (row, step)."""
    array = np.zeros((rows, length), bool)
    for place in places:
        array[place] = True
    return array


def stream_of(batch: tbptt.Batch, first: bool = False) -> tbptt.Batch:
    """The batch as a piece of a stream, which begins there if `first`."""
    reset = flags(np.shape(batch.inputs)[1], rows=len(batch.inputs))
    reset[:, 0] = first
    return batch._replace(reset=reset)


# --------------------------------------------------------------------------------- equivalences


def plain_step(core: str) -> Callable:
    """One step of the network, by flax alone."""
    graph, _, rest = nnx.split(make_model(core), nnx.Param, ...)

    def step(params, carry, x):
        model: Any = nnx.merge(graph, params, rest)
        carry, y = model.core(carry, model.encoder(x))
        return carry, model.readout(y)

    return jax.jit(step)


def plain_loss(step: Callable, params: Any, carry: Any, inputs: Any, targets: Any) -> Any:
    """The mean loss of some steps written out, and the carry after them."""
    total = 0.0
    for t in range(inputs.shape[1]):
        carry, outputs = step(params, carry, inputs[:, t])
        total += XENT(outputs, targets[:, t]).sum()
    return total / targets.size, carry


def test_full_bptt_is_the_gradient_of_the_whole_sequence():
    state, batch, length = make("flax_lstm"), make_batch(5), 5
    zero = (jnp.zeros((B, HIDDEN)), jnp.zeros((B, HIDDEN)))
    whole = functools.partial(plain_loss, plain_step("flax_lstm"))
    (loss, carry), expected = jax.value_and_grad(whole, has_aux=True)(
        state.params, zero, jnp.asarray(batch.inputs), jnp.asarray(batch.targets)
    )
    plan = tbptt.Truncation(length, length)
    assert_close(tbptt.gradient(state, batch, plan), expected)
    after = jax.tree.map(lambda p, g: p - 0.3 * g, state.params, expected)
    state, metrics = tbptt.train_step(state, batch, plan)
    assert_close(state.params, after)
    assert_close(carry_of(state), carry)
    np.testing.assert_allclose(metrics.loss, [loss], rtol=1e-12)


def textbook_loop(step, params, batches, k):
    """The loop that everyone writes: detach the carry every k steps, update with Adam."""
    optimizer = optax.adam(0.05)
    opt_state, carry, losses = optimizer.init(params), jnp.zeros((B, HIDDEN)), []
    for batch in batches:
        for start in range(0, batch.inputs.shape[1], k):
            inputs, targets = (jnp.asarray(a[:, start : start + k]) for a in batch[:2])

            def chunk(params, carry, inputs=inputs, targets=targets):
                return plain_loss(step, params, jax.lax.stop_gradient(carry), inputs, targets)

            (loss, carry), grads = jax.value_and_grad(chunk, has_aux=True)(params, carry)
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
    return params, carry, losses


def assert_equals_the_textbook_loop(k):
    state = make("gru", optax.adam(0.05))
    batches = [make_batch(6, seed=seed) for seed in range(3)]
    params, carry, losses = textbook_loop(plain_step("gru"), state.params, batches, k)
    actual = []
    for i, batch in enumerate(batches):
        state, metrics = tbptt.train_step(
            state, stream_of(batch, first=i == 0), tbptt.Truncation(k, k)
        )
        actual.extend(metrics.loss)
    assert_close(state.params, params)
    assert_close(carry_of(state), carry)
    np.testing.assert_allclose(actual, losses, rtol=1e-10)
    assert int(state.step) == len(losses) == 3 * 6 // k


def test_k1_equal_to_k2_is_the_loop_that_detaches():
    assert_equals_the_textbook_loop(3)


def test_tbptt_1_1_is_the_loop_that_detaches_at_every_step():
    assert_equals_the_textbook_loop(1)


def test_k2_below_k1_scores_the_end_of_each_interval_only():
    batch, plan = make_batch(8, "w"), tbptt.Truncation(k1=4, k2=1)
    weights = np.ones((B, 8))
    weights[:, 3], weights[:, 7] = 2.0, 0.5
    batch = batch._replace(weights=weights)
    other = np.where(np.arange(8) % 4 == 3, batch.targets, 1 - np.asarray(batch.targets))
    assert np.sum(other != batch.targets) == B * 6
    results = [
        tbptt.train_step(make(), batch._replace(targets=t), plan) for t in (batch.targets, other)
    ]
    identical(*[(state.params, carry_of(state), metrics) for state, metrics in results])
    metrics = results[0][1]
    np.testing.assert_allclose(metrics.weight, [B * 2.0, B * 0.5])
    np.testing.assert_allclose(metrics.scored, [2.0 / 5.0, 0.5 / 3.5])
    scored = 1 - np.asarray(batch.targets)
    changed = tbptt.train_step(make(), batch._replace(targets=scored), plan)
    assert differ(changed[0].params["readout"], results[0][0].params["readout"])
    # Without weights the share is k2 / k1.
    _, metrics = tbptt.train_step(make(), batch._replace(weights=None), plan)
    np.testing.assert_allclose(metrics.scored, [0.25, 0.25])
    np.testing.assert_allclose(metrics.weight, [B, B])


CUTS = ((2, 2, 2, 1), (2, 4, 1))


# A piece may hold no loss, as here; that is said, and right.
@pytest.mark.filterwarnings("ignore:Batch. no step is scored:UserWarning")
@pytest.mark.parametrize(
    ("k2", "optimizer", "marks"),
    [
        (1, optax.adam(0.05), "mw"),
        (2, SGD, "r"),
        (5, optax.adam(0.05), "mrw"),
        pytest.param(1, SGD, "mrw", marks=pytest.mark.slow),
        pytest.param(2, optax.adam(0.05), "mrw", marks=pytest.mark.slow),
        pytest.param(3, SGD, "", marks=pytest.mark.slow),
        pytest.param(9, SGD, "mr", marks=pytest.mark.slow),
    ],
)
def test_a_batch_may_be_cut_at_multiples_of_k1(k2, optimizer, marks):
    whole, plan = make_batch(7, marks, seed=k2), tbptt.Truncation(2, k2)
    reset = flags(7) if whole.reset is None else np.array(whole.reset)
    reset[:, [2, 4, 6]] = False
    reset[:, 0] = True
    whole = whole._replace(reset=reset)
    expected, losses = tbptt.train_step(make(optimizer=optimizer), whole, plan)
    for lengths in CUTS:
        state, metrics, start = make(optimizer=optimizer), [], 0
        for length in lengths:
            state, m = tbptt.train_step(state, cut(whole, start, start + length), plan)
            metrics.append(m)
            start += length
        assert_close(state.params, expected.params, tolerance=1e-12)
        assert_close(state.opt_state, expected.opt_state, tolerance=1e-12)
        assert_close(carry_of(state), carry_of(expected), tolerance=1e-12)
        joined = jax.tree.map(lambda *m: jnp.concatenate(m), *metrics)
        assert_close(joined, losses, tolerance=1e-12)
        assert int(state.step) == int(expected.step) > 0


# ------------------------------------------------------------- what moves, and what does not


@pytest.mark.parametrize(
    ("kind", "k2"),
    [("weights", 2), ("mask", 1), pytest.param("weights", 3, marks=pytest.mark.slow)],
)
def test_an_interval_without_weight_moves_the_carry_and_nothing_else(kind, k2):
    plan, batch = tbptt.Truncation(2, k2), make_batch(4)
    state = make("lstm", optax.adam(0.1))
    state, _ = tbptt.train_step(state, stream_of(make_batch(4, seed=1), first=True), plan)
    before = as_numpy((state.params, state.opt_state, state.step))
    assert differ(before[1][0].mu, jax.tree.map(np.zeros_like, before[0]))
    carry = as_numpy(carry_of(state))
    batch = stream_of(batch)
    if kind == "weights":
        batch = batch._replace(weights=np.zeros((B, 4)))
        carry = oracle.forward("lstm", before[0], batch.inputs, carry, None, batch.reset)[-1].carry
    else:
        batch = batch._replace(mask=flags(4))
    with pytest.warns(UserWarning, match="no step is scored"):
        state, metrics = tbptt.train_step(state, batch, plan)
    identical(as_numpy((state.params, state.opt_state, state.step)), before)
    if k2 <= 2:  # with lookback it is replayed with the new parameters
        assert_close(as_numpy(carry_of(state)), carry, tolerance=1e-12)
    for name, value in (("loss", 0), ("grad_norm", 0), ("weight", 0), ("scored", 1)):
        np.testing.assert_array_equal(getattr(metrics, name), [value] * 2)


def test_a_loss_at_the_last_step_makes_one_update():
    weights = np.zeros((B, 6))
    weights[:, -1] = 1
    batch, plan = make_batch(6)._replace(weights=weights), tbptt.Truncation(2, 6)
    state = make("gru", optax.adam(0.1))
    grads = tbptt.gradient(state, batch, plan)
    optimizer = optax.adam(0.1)
    updates, _ = optimizer.update(grads, optimizer.init(state.params))
    expected = optax.apply_updates(state.params, updates)
    state, metrics = tbptt.train_step(state, batch, plan)
    assert int(state.step) == 1
    np.testing.assert_array_equal(metrics.weight, [0, 0, B])
    assert_close(state.params, expected)


@pytest.mark.parametrize(("k1", "k2"), [pytest.param(6, 6, marks=pytest.mark.slow), (2, 5)])
def test_credit_never_crosses_a_reset(k1, k2):
    length, at = 6, 3
    weights = np.ones((B, length))
    weights[:, :at] = 0
    batch = make_batch(length)._replace(
        reset=flags(length, *((b, at) for b in range(B))), weights=weights
    )
    inputs = np.array(batch.inputs)
    inputs[:, :at] = 9 * make_batch(length, seed=5).inputs[:, :at]
    plan, state = tbptt.Truncation(k1, k2), make("lstm")
    expected = tbptt.gradient(state, batch, plan)
    identical(tbptt.gradient(state, batch._replace(inputs=inputs), plan), expected)
    # Without the reset the same change is felt.
    open_, replaced = (batch._replace(reset=None, inputs=i) for i in (batch.inputs, inputs))
    assert differ(tbptt.gradient(state, open_, plan), tbptt.gradient(state, replaced, plan))


@pytest.mark.parametrize(("number", "marks"), [(np.nan, "mr"), (1e6, "m")])
def test_what_stands_in_a_masked_step_changes_nothing(number, marks):
    batch, plan = make_batch(6, marks, "mse"), tbptt.Truncation(3, 4)
    hidden = ~np.asarray(batch.mask)[..., None]
    other = batch._replace(
        inputs=np.where(hidden, number, batch.inputs),
        targets=np.where(hidden, number, batch.targets),
    )
    assert hidden.any()
    results = []
    for given in (batch, other):
        state = make_state("rnn", "mse")
        grads, mean = tbptt.gradient(state, given, plan), tbptt.evaluate(state, given)
        state, metrics = tbptt.train_step(state, given, plan)
        results.append((grads, mean, state.params, carry_of(state), metrics))
    identical(*results)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results[0]))


# ------------------------------------------------------------------------------------- streams


def test_a_plan_that_changes_keeps_the_newest_carry():
    batches = [stream_of(make_batch(4, seed=seed), first=seed == 0) for seed in range(3)]
    state = make()
    carry, params = None, as_numpy(state.params)
    for batch, k2 in zip(batches, (1, 3, 5), strict=True):
        # From the newest carry, as a stream that begins with it and has nothing to look back on.
        expected, _, carry = oracle.train(
            "rnn", "xent", params, [batch], 2, k2, learning_rate=0.3, carry=carry
        )
        state, _ = tbptt.train_step(state, batch, tbptt.Truncation(2, k2))
        assert_close(as_numpy(state.params), expected)
        assert_close(as_numpy(carry_of(state)), carry)
        params = expected


def test_independent_batches_may_differ_in_size():
    state, batches = make(), [make_batch(4, rows=rows, seed=rows) for rows in (2, 3, 1)]
    expected = as_numpy(state.params)
    for batch in batches:
        expected, updates, carry = oracle.train(
            "rnn", "xent", expected, [batch], 2, 3, learning_rate=0.3
        )
        state, metrics = tbptt.train_step(state, batch, tbptt.Truncation(2, 3))
        assert_close(as_numpy(state.params), expected)
        assert_close(as_numpy(carry_of(state)), carry)
        np.testing.assert_allclose(metrics.loss, [u["loss"] for u in updates], rtol=1e-10)


def test_a_stream_that_changes_its_size_is_refused_and_goes_on():
    state, plan = make(), tbptt.Truncation(2, 2)
    state, _ = tbptt.train_step(state, stream_of(make_batch(4), first=True), plan)
    wrong = stream_of(make_batch(4, rows=3))
    message = "inputs .* 2 rows .* got 3 rows"
    for function in (tbptt.train_step, tbptt.gradient):
        with pytest.raises(ValueError, match=message):
            function(state, wrong, plan)
    with pytest.raises(ValueError, match=message):
        tbptt.evaluate(state, [stream_of(make_batch(4), first=True), wrong])
    # What the message says to do.
    begun = state.restart()
    expected = oracle.gradient("rnn", "xent", as_numpy(state.params), wrong, 2, 2)[0]
    assert_close(as_numpy(tbptt.gradient(begun, wrong, plan)), expected)


def test_gradient_of_a_stream_goes_on_from_it_and_leaves_it():
    state, plan = make(), tbptt.Truncation(4, 4)
    state, _ = tbptt.train_step(state, stream_of(make_batch(4, seed=1), first=True), plan)
    before, batch = as_numpy((state.params, carry_of(state))), stream_of(make_batch(4))
    grads = tbptt.gradient(state, batch, plan)
    expected, _ = oracle.gradient("rnn", "xent", before[0], batch, 4, 4, carry=before[1])
    assert_close(as_numpy(grads), expected)
    identical(as_numpy((state.params, carry_of(state))), before)


# ------------------------------------------------------------------------------------ donation


def test_a_state_is_donated_and_what_it_was_made_from_is_not():
    module: Any = make_model("lstm")
    leaves = jax.tree.leaves(nnx.state(module))
    outputs = as_numpy(module.readout(jnp.ones((1, HIDDEN))))
    state = tbptt.TrainState.create(module, optax.adam(0.1), XENT)
    batch, plan = stream_of(make_batch(4), first=True), tbptt.Truncation(2, 3)
    for _ in range(2):
        given = (state.params, state.opt_state, state.step, state.stream)
        state, _ = tbptt.train_step(state, batch, plan)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given) if leaf.size)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in leaves)
    identical(as_numpy(module.readout(jnp.ones((1, HIDDEN)))), outputs)


def plain_model(carry: Callable[[tuple[int, ...]], Any]) -> tuple[tbptt.Model, Any]:
    """A tanh cell in plain JAX whose carry is a pair."""

    def step(params, carry, x):
        h = jnp.tanh(params["w"][None] * carry[0] + carry[1] + x)
        return (h, carry[1] * 0.5 + h), h

    functions = tbptt.Model(
        initialize_carry=lambda params, shape: carry(shape),
        encode=lambda params, inputs, rng: inputs,
        step=step,
        readout=lambda params, ys, rng: ys * params["v"][None, None],
    )
    return functions, {"w": jnp.full(FEATURES, 0.5), "v": jnp.ones(FEATURES)}


def test_given_parameters_are_not_donated():
    functions, params = plain_model(lambda shape: (jnp.zeros(shape), jnp.ones(shape)))
    state = tbptt.TrainState.create(functions, SGD, XENT, params=params)
    # An array that NumPy has looked at is not given away: look at none before.
    state, _ = tbptt.train_step(state, make_batch(4), tbptt.Truncation(2, 2))
    assert not any(leaf.is_deleted() for leaf in params.values())
    identical(params, {"w": np.full(FEATURES, 0.5), "v": np.ones(FEATURES)})
    assert differ(state.params, params)


@pytest.mark.parametrize("k2", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_carry_may_hold_one_array_twice(k2):
    def twice(shape):
        return (jnp.full(shape, 0.5),) * 2

    def apart(shape):
        return jnp.full(shape, 0.5), jnp.full(shape, 0.5)

    results = []
    for carry in (twice, apart):
        functions, params = plain_model(carry)
        state = tbptt.TrainState.create(functions, SGD, XENT, params=params)
        for seed in range(2):
            batch = stream_of(make_batch(4, seed=seed))
            state, _ = tbptt.train_step(state, batch, tbptt.Truncation(2, k2))
        results.append((state.params, state.stream))
    identical(*results)


def test_one_array_given_as_two_parameters_is_two():
    functions, _ = plain_model(lambda shape: (jnp.zeros(shape), jnp.ones(shape)))
    same = jnp.ones(FEATURES)
    state = tbptt.TrainState.create(functions, SGD, XENT, params={"w": same, "v": same})
    state, _ = tbptt.train_step(state, make_batch(4), tbptt.Truncation(2, 2))
    assert differ(state.params["w"], state.params["v"])


def test_the_model_of_a_state_has_the_trained_parameters_as_copies():
    batch, plan = make_batch(4), tbptt.Truncation(2, 2)
    module = make_model("lstm")
    state = tbptt.TrainState.create(module, SGD, XENT)
    state, _ = tbptt.train_step(state, batch, plan)
    model: Any = state.model()
    kept = as_numpy(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    identical(kept, as_numpy(state.params))
    assert differ(kept["core"], nnx.to_pure_dict(nnx.state(module, nnx.Param))["core"])
    carry = model.core.initialize_carry((B, ENCODED), nnx.Rngs(0))
    outputs = []
    for t in range(4):
        carry, y = model.core(carry, model.encoder(jnp.asarray(batch.inputs[:, t])))
        outputs.append(model.readout(y))
    assert_close(tbptt.predict(state, batch), jnp.stack(outputs, axis=1))
    # Neither changes with the other.
    before = as_numpy(state.params)
    model.readout.bias[...] = 7.0
    identical(as_numpy(state.params), before)
    # An array that NumPy has looked at is not given away: take a state that it has not.
    state, _ = tbptt.train_step(state, batch, plan)
    model = state.model()
    given = jax.tree.leaves(state.params)
    tbptt.train_step(state, batch, plan)
    assert all(leaf.is_deleted() for leaf in given)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))


# --------------------------------------------------------------------------------- compilation


@pytest.fixture
def compiled() -> Callable[[], int]:
    """How many programs were compiled since the test began."""
    programs.clear()
    before = programs.traced["ever"]
    return lambda: programs.traced["ever"] - before


def ragged(length: int, seed: int) -> tbptt.Batch:
    """Rows of other lengths at each seed, the batch filled up with rows of none."""
    steps = np.random.default_rng(seed).integers(0, length + 1, B)
    return make_batch(length, "w", seed=seed)._replace(mask=np.arange(length) < steps[:, None])


INJECTED = optax.inject_hyperparams(optax.sgd)(0.1)


@pytest.mark.parametrize(
    ("kind", "k2", "optimizer"),
    [
        ("independent", 1, optax.adam(0.1)),
        pytest.param("independent", 4, INJECTED, marks=pytest.mark.slow),
        ("ragged", 4, optax.adam(0.1)),
        ("stream", 1, INJECTED),
        ("stream", 4, optax.adam(0.1)),
    ],
)
def test_one_compilation_serves_every_batch_of_a_shape(compiled, kind, k2, optimizer):
    state = make(optimizer=optimizer)
    for seed in range(4):
        batch = ragged(5, seed) if kind == "ragged" else make_batch(5, seed=seed)
        if kind == "stream":
            batch = stream_of(batch, first=seed == 0)
        state, _ = tbptt.train_step(state, batch, tbptt.Truncation(2, k2))
    assert compiled() == 1


def test_another_shape_or_plan_is_compiled(compiled):
    state = make()
    for length, k2 in ((4, 2), (6, 2), (4, 2), (6, 2)):
        state, _ = tbptt.train_step(state, make_batch(length), tbptt.Truncation(2, k2))
    assert compiled() == 2
    tbptt.train_step(state, make_batch(4), tbptt.Truncation(2, 1))
    assert compiled() == 3


def test_a_second_state_built_alike_compiles_nothing(compiled):
    optimizer, plan, batch = optax.adam(0.1), tbptt.Truncation(2, 3), make_batch(4)
    for seed in range(2):
        state = tbptt.TrainState.create(make_model("lstm"), optimizer, XENT, seed=seed)
        state, _ = tbptt.train_step(state, batch, plan)
        state, _ = tbptt.train_step(state, batch, plan)
    assert compiled() == 1


def test_dropout_compiles_once(compiled):
    state = make(model=dropping())
    for seed in range(3):
        state, _ = tbptt.train_step(state, make_batch(4, seed=seed), tbptt.Truncation(2, 2))
    assert compiled() == 1


def inner_jaxprs(jaxpr: Any) -> Iterator[Any]:
    """The jaxprs that the equations of a jaxpr hold, with the equation."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield equation, inner


def primitives(jaxpr: Any) -> set[str]:
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*(primitives(inner) for _, inner in inner_jaxprs(jaxpr)))


def innermost_scans(jaxpr: Any) -> list[set[str]]:
    """The primitives of each scan that holds no other: those over the steps of a window."""
    found = []
    for equation, inner in inner_jaxprs(jaxpr):
        if equation.primitive.name == "scan" and "scan" not in primitives(inner):
            found.append(primitives(inner))
        else:
            found += innermost_scans(inner)
    return found


@pytest.mark.parametrize(("core", "k1", "k2"), [("lstm", 3, 3), ("gru", 3, 2), ("lstm", 2, 5)])
def test_no_step_selects_unless_there_is_a_mask_or_reset(core, k1, k2):
    def scans(**marks):
        state, batch = make_state(core), make_batch(7)._replace(**marks)
        traced = jax.make_jaxpr(tbptt.train_step, static_argnums=2)(
            state, batch, tbptt.Truncation(k1, k2)
        )
        return innermost_scans(traced.jaxpr)

    plain = scans()
    assert sum("tanh" in names for names in plain) >= 2  # full intervals, and the short last one
    assert not any("select_n" in names for names in plain)
    for marks in ({"mask": flags(7)}, {"reset": flags(7)}):
        assert all("select_n" in names for names in scans(**marks) if "tanh" in names)


def temporary_bytes(length: int, k1: int, k2: int) -> int:
    """What the compiled step needs beyond its arguments and results."""
    state = make_state("rnn")
    batch = tbptt.Batch(np.zeros((1, length, FEATURES)), np.zeros((1, length), np.int32))
    analysis: Any = tbptt.lower(state, batch, tbptt.Truncation(k1, k2)).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_grows_with_the_window_and_not_with_the_sequence():
    short, long = temporary_bytes(1_000, 100, 100), temporary_bytes(100_000, 100, 100)
    assert abs(long - short) <= max(0.01 * short, 4096)
    whole = temporary_bytes(1_000, 1_000, 1_000), temporary_bytes(10_000, 10_000, 10_000)
    assert whole[1] > 5 * whole[0] > 5 * short


def test_steps_that_are_not_scored_keep_nothing_for_the_backward_pass():
    scored, few = temporary_bytes(2_000, 2_000, 2_000), temporary_bytes(2_000, 2_000, 10)
    assert few < 0.4 * scored


# ------------------------------------------------------------------------ evaluate and predict


def expected_losses(state, outputs, batch):
    """The weighted losses of a batch and their weights, given its outputs."""
    weights = np.ones(np.shape(batch.targets))
    weights = weights if batch.weights is None else np.asarray(batch.weights)
    weights = weights if batch.mask is None else weights * batch.mask
    return np.asarray(XENT(outputs, batch.targets)) * weights, weights


@pytest.mark.parametrize("marks", ["mw", "mrw"])
def test_evaluate_and_predict_are_the_oracles_forward_numbers(marks):
    state, plan = make("gru"), tbptt.Truncation(2, 3)
    state, _ = tbptt.train_step(state, stream_of(make_batch(4), first=True), plan)
    before = as_numpy((state.params, state.opt_state, state.step, state.stream))
    params, batches = before[0], [make_batch(5, marks, seed=seed) for seed in range(3)]
    carry, sums = None, np.zeros(3)
    for batch in batches:
        steps = oracle.forward(
            "gru",
            params,
            np.where(True if batch.mask is None else batch.mask[..., None], batch.inputs, 0),
            carry if "r" in marks else None,
            batch.mask,
            batch.reset,
        )
        carry = steps[-1].carry
        hidden = np.stack([step.hidden for step in steps], axis=1)
        outputs = hidden @ params["readout"]["kernel"] + params["readout"]["bias"]
        losses, weights = expected_losses(state, outputs, batch)
        right = (outputs.argmax(-1) == batch.targets) * weights
        sums += losses.sum(), right.sum(), weights.sum()
        if batch is batches[0]:
            exists = np.ones((B, 5), bool) if batch.mask is None else np.asarray(batch.mask)
            actual = np.asarray(tbptt.predict(state, batch))
            np.testing.assert_allclose(actual[exists], outputs[exists], rtol=1e-10)
    result = tbptt.evaluate(state, iter(batches), {"accuracy": accuracy})
    expected = {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2], "weight": sums[2]}
    assert result == pytest.approx(expected, rel=1e-10)
    assert 0 < result["accuracy"] < 1
    after = (state.params, state.opt_state, state.step, state.stream)
    identical(as_numpy(after), before)


def accuracy(outputs, targets):
    return jnp.float32(outputs.argmax(-1) == targets)


@pytest.mark.parametrize("marks", ["mw", "mrw"])
def test_many_parameters_are_evaluated_in_one_mapped_call(marks):
    state, metrics = make("gru"), {"accuracy": accuracy}
    batches = [make_batch(5, marks, seed=seed) for seed in range(2)]

    def parts(scale):
        params = jax.tree.map(lambda p: scale * p, state.params)
        return list(partial_sums(dataclasses.replace(state, params=params), batches, metrics))

    found = combine(jax.jit(jax.vmap(parts))(jnp.array([1.0, 3.0])))
    for scale, row in zip((1.0, 3.0), found, strict=True):
        params = jax.tree.map(lambda p, scale=scale: scale * p, state.params)
        expected = tbptt.evaluate(dataclasses.replace(state, params=params), batches, metrics)
        assert dict(zip(("loss", "accuracy", "weight"), row, strict=True)) == pytest.approx(
            expected, rel=1e-12
        )


@pytest.mark.parametrize("batches", [[], [make_batch(3)._replace(mask=flags(3))]])
def test_evaluating_nothing_is_refused(batches):
    with pytest.raises(ValueError, match=r"evaluate: batches must .* 0\.0"):
        tbptt.evaluate(make(), batches)


# ------------------------------------------------------------------------------------- dropout


def dropping(where: str = "both", rate: float = 0.5) -> tbptt.SequenceModel:
    """The rnn with dropout in the encoder, the readout or both."""
    model: Any = make_model("rnn")
    rngs = nnx.Rngs(3)
    if where != "readout":
        model.encoder = nnx.Sequential(model.encoder, nnx.Dropout(rate, rngs=rngs))
    if where != "encoder":
        model.readout = nnx.Sequential(nnx.Dropout(rate, rngs=rngs), model.readout)
    return model


@pytest.mark.parametrize("where", [pytest.param("encoder", marks=pytest.mark.slow), "readout"])
def test_dropout_is_on_in_training_and_off_elsewhere(where):
    batch, plan = make_batch(6), tbptt.Truncation(3, 3)
    without = make(model=dropping(where, rate=0.0))
    expected = (
        tbptt.gradient(without, batch, plan),
        tbptt.evaluate(without, batch),
        tbptt.predict(without, batch),
    )
    reference, metrics = tbptt.train_step(without, batch, plan)

    state = make(model=dropping(where))
    actual = (
        tbptt.gradient(state, batch, plan),
        tbptt.evaluate(state, batch),
        tbptt.predict(state, batch),
    )
    identical(as_numpy(actual), as_numpy(expected))
    results = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        state = randomize(tbptt.TrainState.create(dropping(where), SGD, XENT))
        state = tbptt.TrainState.create(state.functions, SGD, XENT, params=state.params, seed=seed)
        state, m = tbptt.train_step(state, batch, plan)
        results[name] = state.params, m
    identical(results["again"], results["first"])
    assert differ(results["first"][1].loss, results["other"][1].loss)
    assert differ(results["first"][1].loss, metrics.loss)
    assert differ(results["first"][0]["readout"], reference.params["readout"])


def test_every_update_draws_anew():
    """Equal steps, all reset, at a learning rate of 0: only dropout can tell the losses apart."""
    one, batches = make_batch(1, rows=4), []
    same = jax.tree.map(lambda a: np.repeat(a, 4, axis=1), one)
    batches = [same._replace(reset=flags(4, rows=4) | True)] * 2
    for rate, distinct in ((0.0, 1), (0.5, 8)):
        state, losses = make(optimizer=optax.sgd(0.0), model=dropping("both", rate)), []
        for batch in batches:
            state, metrics = tbptt.train_step(state, batch, tbptt.Truncation(1, 1))
            losses.extend(np.round(np.asarray(metrics.loss), 12).tolist())
        assert len(set(losses)) == distinct


# ---------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", [tbptt.LSTM, pytest.param(nnx.GRUCell, marks=pytest.mark.slow)])
def test_computing_in_bfloat16_keeps_parameters_and_carry_in_float32(kind):
    def build(dtype):
        rngs = nnx.Rngs(0)
        model = tbptt.SequenceModel(
            nnx.Linear(FEATURES, 8, rngs=rngs),
            kind(8, 8, dtype=dtype, rngs=rngs),
            nnx.Linear(8, CLASSES, rngs=rngs),
        )
        return tbptt.TrainState.create(model, SGD, XENT)

    batch, plan = make_batch(6, rows=8), tbptt.Truncation(3, 4)
    batch = batch._replace(inputs=np.float32(batch.inputs))
    full, half = (tbptt.gradient(build(d), batch, plan) for d in (jnp.float32, jnp.bfloat16))
    for exact, rounded in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert exact.dtype == rounded.dtype == jnp.float32
    error = optax.tree.norm(jax.tree.map(jnp.subtract, full, half)) / optax.tree.norm(full)
    assert 1e-4 < float(error) < 0.03
    state, _ = tbptt.train_step(build(jnp.bfloat16), stream_of(batch, first=True), plan)
    state, _ = tbptt.train_step(state, stream_of(batch), plan)
    for leaf in jax.tree.leaves((state.params, carry_of(state))):
        assert leaf.dtype == jnp.float32


# --------------------------------------------------------------------------------------- optax


def test_multi_steps_averages_the_gradients_of_several_updates():
    # Both intervals start with a reset, so the gradient at fixed parameters is the mean of theirs.
    batch = make_batch(4)._replace(reset=flags(4, (0, 2), (1, 2)))
    plan = tbptt.Truncation(2, 2)
    state = make(optimizer=optax.MultiSteps(optax.sgd(0.3), every_k_schedule=2))  # pyright: ignore
    grads = tbptt.gradient(state, batch, plan)
    expected = as_numpy(jax.tree.map(lambda p, g: p - 0.3 * g, state.params, grads))
    state, _ = tbptt.train_step(state, batch, plan)
    assert_close(as_numpy(state.params), expected, tolerance=1e-7)


def test_clipping_sees_the_mean_gradient_and_the_norm_is_told_before_it():
    batch, plan = make_batch(4), tbptt.Truncation(4, 4)
    state = make(optimizer=optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)))
    grads = tbptt.gradient(state, batch, plan)
    norm = optax.tree.norm(grads)
    assert float(norm) > 0.01
    expected = jax.tree.map(lambda p, g: p - g * 0.01 / norm, state.params, grads)
    state, metrics = tbptt.train_step(state, batch, plan)
    assert_close(state.params, expected)
    np.testing.assert_allclose(metrics.grad_norm, [norm], rtol=1e-10)


def test_injected_hyperparameters_may_be_set_between_calls():
    batch, plan = make_batch(4), tbptt.Truncation(2, 2)
    plain, _ = tbptt.train_step(make(), batch, plan)
    state = make(optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=0.3))
    state, _ = tbptt.train_step(state, batch, plan)
    assert_close(state.params, plain.params)
    before = as_numpy(state.params)
    state.opt_state.hyperparams["learning_rate"] = jnp.zeros(())  # pyright: ignore
    state, _ = tbptt.train_step(state, batch, plan)
    identical(as_numpy(state.params), before)


def test_an_optimizer_that_looks_at_the_loss_is_given_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e3)
    state = make(optimizer=optax.chain(optax.sgd(0.1), plateau))
    state, metrics = tbptt.train_step(state, make_batch(6), tbptt.Truncation(2, 2))
    # An improvement must be by 1,000: the first loss stays the best, and each other halves.
    after: Any = state.opt_state[-1]  # pyright: ignore
    np.testing.assert_allclose(after.best_value, metrics.loss[0], rtol=1e-6)
    assert float(after.scale) == 0.25
