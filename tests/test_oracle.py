"""The oracle is held to finite differences, to flax's cells and to tables worked out by hand."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import oracle

B, T, F, E, H, C = 2, 5, 2, 3, 3, 2
CELLS = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def make_params(cell: str, learnt: bool = True, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    n = {"rnn": 1, "gru": 3, "lstm": 4}[cell] * H
    core = {"dense_i": {"kernel": (E, n), "bias": (n,)}, "dense_h": {"kernel": (H, n)}}
    if cell == "lstm":
        core["dense_h"]["bias"] = core["dense_i"].pop("bias")
    if learnt:
        core |= dict.fromkeys(oracle.INITIAL[cell], (H,))
    encoder, readout = {"kernel": (F, E), "bias": (E,)}, {"kernel": (H, C), "bias": (C,)}
    shapes = {"encoder": encoder, "core": core, "readout": readout}
    return oracle._map(lambda shape: rng.normal(size=shape) * 0.7, shapes)


def make_batch(loss: str = "mse", length: int = T, seed: int = 1, **fields) -> oracle.Batch:
    rng = np.random.default_rng(seed)
    mse = rng.normal(size=(B, length, C))
    targets = mse if loss == "mse" else rng.integers(0, C, (B, length))
    return oracle.Batch(rng.normal(size=(B, length, F)), targets, **fields)


def make_carry(cell: str, seed: int = 2):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(B, H)) * 0.5 for _ in oracle.INITIAL[cell])


def irregular() -> dict:
    """Holds, a reset in the middle, a reset on a held step, and uneven weights."""
    mask, reset = np.ones((B, T), bool), np.zeros((B, T), bool)
    mask[0, 1] = mask[1, 3] = False
    reset[0, 2] = reset[1, 0] = reset[1, 3] = True
    weights = np.random.default_rng(3).uniform(0.2, 2.0, (B, T))
    weights[0, 3] = 0.0
    return {"mask": mask, "reset": reset, "weights": weights}


def leaves(tree: dict, path: tuple = ()) -> list:
    """[(path, array)] of a nested dict."""
    pairs = ((key, value, (*path, key)) for key, value in tree.items())
    nested = (leaves(v, p) if isinstance(v, dict) else [(p, v)] for _, v, p in pairs)
    return [pair for group in nested for pair in group]


def assert_same(a: dict, b: dict, atol: float = 1e-12) -> None:
    for (path, x), (other, y) in zip(leaves(a), leaves(b), strict=True):
        assert path == other
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=str(path))


# ------------------------------------------------------------------------------ the credit matrix

# Rows are losses t, columns are steps s; worked out from the definition with pencil and paper.
TABLES = {
    # Updates at 3, 6, 7. Only steps 2-3, 5-6 and 6-7 are in reach of their update.
    (3, 2, 7, "update"): "....... .1..... .11.... ....... ....1.. ....11. .....11",
    (3, 2, 7, "loss"): "1...... 11..... .11.... ..11... ...11.. ....11. .....11",
    # Updates at 2, 4, 6, 7; the windows reach back to steps -2, 0, 2 and 3, and no further.
    (2, 5, 7, "update"): "1...... 11..... 111.... 1111... .1111.. .11111. ..11111",
    (2, 5, 7, "loss"): "1...... 11..... 111.... 1111... 11111.. .11111. ..11111",
    # Updates at 3 and 4. The short last interval looks back over steps 2-4.
    (3, 3, 4, "update"): "1... 11.. 111. .111",
    (3, 3, 4, "loss"): "1... 11.. 111. .111",
}


@pytest.mark.parametrize("scheme", TABLES, ids=str)
def test_credit_by_hand(scheme):
    expected = [[mark == "1" for mark in row] for row in TABLES[scheme].split()]
    np.testing.assert_array_equal(oracle.credit(*scheme), expected)


def test_intervals():
    assert oracle.intervals(3, 7) == [(0, 3), (3, 6), (6, 7)]
    assert oracle.intervals(9, 7) == [(0, 7)]


# -------------------------------------------------------------------------------- forward, adjoints


@EVERY_CELL
def test_forward_is_flax(cell):
    float64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    module = nnx.eval_shape(lambda: CELLS[cell](E, H, **float64, rngs=nnx.Rngs(0)))
    params = make_params(cell, learnt=False)
    # The same names and shapes, or the comparison would be with another layout.
    theirs = leaves(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    ours = leaves(params["core"])
    assert {p: x.shape for p, x in theirs} == {p: x.shape for p, x in ours}
    nnx.update(module, jax.tree.map(jnp.asarray, params["core"]))
    run = jax.jit(lambda carry, x: module(carry, x))
    batch, carry = make_batch(), make_carry(cell)
    carry = carry if cell == "lstm" else carry[0]
    reset = np.zeros((B, T), bool)
    steps = oracle.forward(cell, params, batch.inputs, carry, reset=reset)
    for t, step in enumerate(steps):
        x = batch.inputs[:, t] @ params["encoder"]["kernel"] + params["encoder"]["bias"]
        carry, hidden = run(carry, x)
        assert jax.tree.structure(carry) == jax.tree.structure(step.carry)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), carry, step.carry)
        np.testing.assert_allclose(hidden, step.hidden, atol=1e-12)


@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_losses_are_the_textbook_ones(loss):
    params, batch = make_params("gru"), make_batch(loss, **irregular())
    _, losses, weights = oracle.per_step_gradients("gru", loss, params, batch)
    effective = np.where(batch.mask, batch.weights, 0.0)
    steps = oracle.forward("gru", params, batch.inputs, None, batch.mask, batch.reset)
    y = np.stack([s.hidden for s in steps], 1) @ params["readout"]["kernel"]
    y = y + params["readout"]["bias"]
    if loss == "mse":
        values = np.mean((y - batch.targets) ** 2, -1)
    else:
        log_p = np.asarray(jax.nn.log_softmax(y))
        values = -np.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, np.sum(effective * values, 0), atol=1e-12)
    np.testing.assert_allclose(weights, effective.sum(0), atol=1e-12)


def test_held_and_reset_steps():
    params, batch = make_params("lstm"), make_batch(**irregular())
    carry = make_carry("lstm")
    steps = oracle.forward("lstm", params, batch.inputs, carry, batch.mask, batch.reset)
    for part, key in enumerate(("initial_c", "initial_h")):
        at = [carry[part]] + [step.carry[part] for step in steps]
        np.testing.assert_array_equal(at[2][0], at[1][0])  # held
        np.testing.assert_array_equal(at[4][1], params["core"][key])  # reset, then held
        np.testing.assert_array_equal(steps[2].start[part][0], params["core"][key])


def finite_differences(cell, loss, params, batch, carry, eps=1e-5):
    """d l_t / d theta_s for all t, s, by moving one number in one step's own copy at a time."""
    rows = oracle._rows(batch, carry is None)
    state = carry or oracle._initial_state(cell, params["core"], B)
    copies = [copy.deepcopy(params) for _ in rows]

    def losses() -> np.ndarray:
        steps = oracle._unroll(cell, copies, rows, state)
        pairs = zip(copies, steps, strict=True)
        return np.array([oracle._loss(loss, p["readout"], step)[0] for p, step in pairs])

    G = oracle._map(lambda leaf: np.zeros((len(rows), len(rows), *leaf.shape)), params)
    for s, own in enumerate(copies):
        for (_, leaf), (_, out) in zip(leaves(own), leaves(G), strict=True):
            for i in np.ndindex(leaf.shape):
                kept = leaf[i]
                leaf[i] = kept + eps
                above = losses()
                leaf[i] = kept - eps
                out[(slice(None), s, *i)] = (above - losses()) / (2 * eps)
                leaf[i] = kept
    return G


@EVERY_CELL
@pytest.mark.parametrize(("loss", "plain"), [("mse", False), ("xent", True)])
def test_per_step_gradients_are_finite_differences(cell, loss, plain):
    # `plain`: every default, from the learnt initial carry. Otherwise a carry comes in and one of
    # the two examples resumes from it.
    batch = make_batch(loss) if plain else make_batch(loss, **irregular())
    carry = None if plain else make_carry(cell)
    params = make_params(cell)
    G, _, _ = oracle.per_step_gradients(cell, loss, params, batch, carry)
    assert_same(G, finite_differences(cell, loss, params, batch, carry), atol=1e-8)
    key = oracle.INITIAL[cell][0]
    learnt = np.abs(G["core"][key]).sum(axis=(0, 2)) > 0
    # Only the steps that reset someone owe anything to the initial carry. Step 4 resets a held
    # example, whose initial carry is still what the loss at step 5 depends on.
    assert learnt.tolist() == ([True] + [False] * 4 if plain else [True, False, True, True, False])


def test_padding_may_hold_anything():
    params, fields = make_params("gru"), irregular()
    clean = make_batch(**fields)
    dirty = make_batch(**fields)
    dirty.inputs[~dirty.mask] = np.nan
    dirty.targets[~dirty.mask] = np.nan
    a = oracle.per_step_gradients("gru", "mse", params, clean)[0]
    assert_same(a, oracle.per_step_gradients("gru", "mse", params, dirty)[0], atol=0)


# ------------------------------------------------------------------------- gradient and training


@EVERY_CELL
@pytest.mark.parametrize("anchor", ["update", "loss"])
def test_full_window_is_the_sum_over_all_steps(cell, anchor):
    params, batch = make_params(cell), make_batch(**irregular())
    G, losses, weights = oracle.per_step_gradients(cell, "mse", params, batch)
    grads, info = oracle.gradient(cell, "mse", params, batch, T, T, anchor)
    assert_same(grads, oracle._map(lambda g: g.sum((0, 1)) / weights.sum(), G))
    mean = losses.sum() / weights.sum()
    assert info == pytest.approx({"loss": mean, "weight": weights.sum(), "scored": 1.0})
    # Training with that one update is a step down the same gradient.
    trained, (update,), _ = oracle.train(cell, "mse", params, [batch], T, T, anchor, 0.5)
    assert_same(trained, oracle._map(lambda leaf, g: leaf - 0.5 * g, params, grads))
    norm = np.sqrt(sum(np.sum(g**2) for _, g in leaves(grads)))
    assert update == pytest.approx(info | {"grad_norm": norm})


def test_unscored_and_weightless_steps():
    params, batch = make_params("rnn"), make_batch(length=7)
    grads, info = oracle.gradient("rnn", "mse", params, batch, 3, 2)
    assert (info["weight"], info["scored"]) == (10.0, 5 / 7)
    nothing = batch._replace(weights=np.zeros((B, 7)))
    grads, info = oracle.gradient("rnn", "mse", params, nothing, 3, 2)
    assert not any(g.any() for _, g in leaves(grads))
    assert info == {"loss": 0.0, "weight": 0.0, "scored": 1.0}
    # Weight only at step 1, which k2 = 2 does not reach from the update at step 3.
    early = batch._replace(weights=np.eye(1, 7) * np.ones((B, 1)))
    trained, updates, carry = oracle.train("rnn", "mse", params, [early], 3, 2)
    assert_same(trained, params, atol=0)
    assert [u["scored"] for u in updates] == [0.0, 1.0, 1.0]
    assert all(u["grad_norm"] == u["weight"] == u["loss"] == 0.0 for u in updates)
    np.testing.assert_array_equal(carry, oracle.forward("rnn", params, batch.inputs)[-1].carry)


def part(batch: oracle.Batch, start: int, end: int, reset: bool) -> oracle.Batch:
    """Steps start+1..end of a batch without mask; as a stream going on unless `reset`."""
    cut = {name: None if v is None else v[:, start:end] for name, v in batch._asdict().items()}
    if cut["reset"] is None and not reset:
        cut["reset"] = np.zeros((B, end - start), bool)
    return oracle.Batch(**cut)


SCHEMES = [(1, 1), (2, 1), (3, 2), (3, 3), (2, 5), (1, 4), (9, 9), (4, 20)]


@EVERY_CELL
@pytest.mark.parametrize("anchor", ["update", "loss"])
@pytest.mark.parametrize(("k1", "k2"), SCHEMES)
def test_train_is_gradients_of_windows(cell, anchor, k1, k2):
    """Each update again, as `gradient` of a batch cut out by hand, with a history of carries."""
    length, rate = 7, 0.5
    params = make_params(cell)
    batch = make_batch(length=length, weights=np.random.default_rng(5).uniform(0.1, 1, (B, length)))
    history = [oracle._flax_carry(make_carry(cell))] * (length + 1)  # [0] is never read: reset
    theta, norms = params, []
    for p, e in oracle.intervals(k1, length):
        w0 = max(0, e - k2 if anchor == "update" else p - k2 + 1)
        start = min(p, w0)  # what lies before the window only moves the carry
        inputs, reset = batch.inputs[:, start:e], part(batch, start, e, start == 0).reset
        steps = oracle.forward(cell, theta, inputs, history[start], None, reset)
        history[start + 1 : e + 1] = [step.carry for step in steps]
        window = part(batch, w0, e, w0 == 0)
        weights = window.weights.copy()
        weights[:, : max(0, p - w0)] = 0.0  # losses of earlier intervals were scored before
        carry = None if w0 == 0 else history[w0]
        window = window._replace(weights=weights)
        g, info = oracle.gradient(cell, "mse", theta, window, e - w0, k2, anchor, carry)
        norms.append((info["loss"], np.sqrt(sum(np.sum(x**2) for _, x in leaves(g)))))
        theta = oracle._map(lambda leaf, x: leaf - rate * x, theta, g)
    trained, updates, carry = oracle.train(cell, "mse", params, [batch], k1, k2, anchor, rate)
    assert_same(trained, theta)
    np.testing.assert_allclose([(u["loss"], u["grad_norm"]) for u in updates], norms, atol=1e-12)
    np.testing.assert_allclose(carry, history[-1], atol=1e-12)


@pytest.mark.parametrize("anchor", ["update", "loss"])
@pytest.mark.parametrize(("k1", "k2"), [(2, 1), (2, 2), (2, 5), (1, 3)])
def test_train_is_the_same_on_pieces(anchor, k1, k2):
    """Split invariance, and that an independent batch afterwards does not look back."""
    params, batch, other = make_params("lstm"), make_batch(length=8), make_batch(length=3, seed=9)
    # Twice as many examples: a window that looked back would not even fit together.
    after = oracle.Batch(np.tile(other.inputs, (2, 1, 1)), np.tile(other.targets, (2, 1, 1)))
    pieces = [part(batch, 0, 2, True), part(batch, 2, 6, False), part(batch, 6, 8, False)]
    whole = oracle.train("lstm", "mse", params, [batch, after], k1, k2, anchor)
    split = oracle.train("lstm", "mse", params, [*pieces, after], k1, k2, anchor)
    assert_same(whole[0], split[0], atol=0)
    assert whole[1] == split[1]
    np.testing.assert_array_equal(whole[2], split[2])
    first, _, _ = oracle.train("lstm", "mse", params, [batch], k1, k2, anchor)
    alone = oracle.train("lstm", "mse", first, [after], k1, k2, anchor)
    assert_same(whole[0], alone[0], atol=0)


def test_train_goes_on_from_a_carry():
    params, batch = make_params("gru"), make_batch(reset=np.zeros((B, T), bool))
    (carry,) = make_carry("gru")
    grads, _ = oracle.gradient("gru", "mse", params, batch, T, T, carry=carry)
    trained, _, _ = oracle.train("gru", "mse", params, [batch], T, T, "update", 1.0, carry)
    assert_same(trained, oracle._map(np.subtract, params, grads))
    assert not grads["core"]["initial"].any()
    # With no carry given, or no resets, it starts from the initial carry instead.
    fresh, _, _ = oracle.train("gru", "mse", params, [batch], T, T)
    unset = batch._replace(reset=None)
    assert_same(fresh, oracle.train("gru", "mse", params, [unset], T, T, carry=carry)[0], atol=0)


@EVERY_CELL
def test_carry_gradients_are_finite_differences(cell):
    """Perturb the carry between two steps and run the rest again."""
    params, batch, carry = make_params(cell), make_batch(**irregular()), make_carry(cell)
    carry = carry if cell == "lstm" else carry[0]
    parts = oracle.carry_gradients(cell, "mse", params, batch, carry)
    steps = oracle._forward(cell, params, oracle._rows(batch, fresh=False), carry)

    def later_losses(s, state):
        rest = oracle.Batch(*(field[:, s + 1 :] for field in batch))
        _, losses, _ = oracle.per_step_gradients(cell, "mse", params, rest, state)
        return losses

    rng, step = np.random.default_rng(0), 1e-6
    pairs = list(zip(parts, rng.normal(size=(len(parts), B, H)), strict=True))
    for s in range(T - 1):
        after = oracle._state(steps[s].carry)

        def moved_by(h, s=s, after=after):
            state = tuple(a + h * d for a, (_, d) in zip(after, pairs, strict=True))
            return later_losses(s, state)

        expected = (moved_by(step) - moved_by(-step)) / (2 * step)
        actual = sum(np.sum(part[s + 1 :, s] * d, (1, 2)) for part, d in pairs)
        np.testing.assert_allclose(actual, expected, atol=1e-8)
        assert not any(part[:s, s].any() for part in parts)
    # At s = t the readout alone lies between: the cell's output moves by itself.
    part, d = pairs[-1]
    for t in range(T):
        values = [
            oracle._loss(
                "mse", params["readout"], steps[t]._replace(hidden=steps[t].hidden + h * d)
            )[0]
            for h in (step, -step)
        ]
        slope = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(part[t, t] * d), slope, atol=1e-8)
