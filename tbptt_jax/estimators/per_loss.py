"""A window for each loss: the adjoints of all steps at once, a round for each step they reach.

Let a_s be the cotangent of the carry that enters step s, from the losses of steps s .. s + j - 1.
With the carries of one forward pass at hand, the cotangents of j + 1 losses follow from those of j
by one vector-Jacobian product of the step, taken for every s at once:

    a_s  <-  J_s^T (a_{s+1}, d l_s / d y_s)

After k - 1 rounds a_{s+1} is what the losses that reach back k steps send through the carry after
step s, and one product with respect to the parameters gives the gradient. Without d l_s / d y_s a
round moves every loss one lag further, which takes the gradient apart by lag. The depth is k
products of all steps at once, where a reverse pass is T products of one step each.

What each step's product needs is held for all K steps of the window at once: for an LSTM some
twelve arrays [K, B, hidden]. With a `block` it is held for block + k - 1 steps only, and formed
twice for the k - 1 that two blocks share; the carries, inputs and outputs of the window stay.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tbptt_jax.cells import scan
from tbptt_jax.estimators import reverse
from tbptt_jax.estimators.estimator import (
    Estimator,
    WindowGradient,
    WindowLoss,
    advance,
    no_aux,
)
from tbptt_jax.estimators.window import (
    begin,
    drawing,
    initial_carry,
    run,
    scored_sum,
    split_rng,
)
from tbptt_jax.sums import wide
from tbptt_jax.types import Carry, Model, Params, Tree

# The floating-point leaves of a pytree: what has a cotangent.
Floats: TypeAlias = list[jax.Array]
# Cotangents of the carries after all steps and of their outputs, and what they give.
PullCarry: TypeAlias = Callable[[tuple[Floats, Floats]], Floats]
PullAll: TypeAlias = Callable[[tuple[Floats, Floats]], tuple[Params, Floats, Floats]]


class Rows(NamedTuple):
    """What consecutive steps take, time first: every leaf is [K, B, ...].

    A step that is masked does not look at its carry but at that of one that exists, as in
    `scan.unroll_existing`; its derivatives, of a carry that is held, are the same.
    """

    before: Carry
    xs: Tree
    mask: jax.Array | None
    reset: jax.Array | None


class Pass(NamedTuple):
    """A window run forward, and the cotangents that its losses send into the steps.

    Attributes:
      total: float [], sum of weight * loss.
      end, carries: as `forward` returns them.
      rows: the steps.
      d_ys: cotangents of the core's outputs [K, B, ...], zero where there is no loss.
      d_readout: gradient through the readout's own parameters, like params.
      pull_begin: cotangents of the carry before the first step and of the encoded inputs, to the
        gradient through the encoder and a learnt initial carry.
    """

    total: jax.Array
    end: Carry
    carries: Carry
    rows: Rows
    d_ys: Floats
    d_readout: Params
    pull_begin: Callable[[tuple[Floats, Floats]], tuple[Params]]


def run_forward(losses: WindowLoss, params: Params) -> Pass:
    """Run a window once."""
    model, loss, carry, window, weights, rng = losses
    encode_rng, readout_rng = split_rng(rng)

    def start(params: Params) -> tuple[tuple[Floats, Floats], tuple[Carry, Tree]]:
        first, xs = begin(model, params, carry, window, encode_rng)
        return (floats(first), floats(_swap(xs))), (first, xs)

    _, pull_begin, (first, xs) = jax.vjp(start, params, has_aux=True)
    end, ys, carries = run(model, params, first, xs, window)
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, carries)
    rows = Rows(before, *_swap((xs, window.mask, window.reset)))
    if window.mask is not None and rows.mask is not None:
        known = scan.known_carry(first, window.mask, window.reset, _initial(model, params, rows))
        rows = rows._replace(before=jax.vmap(scan.select, (0, 0, None))(rows.mask, before, known))

    def readout(params: Params, leaves: Floats) -> jax.Array:
        outputs = put(ys, leaves)
        return scored_sum(model, loss, params, outputs, window, weights, readout_rng)

    total, (d_readout, d_ys) = jax.value_and_grad(readout, argnums=(0, 1))(params, floats(ys))
    return Pass(total, end, carries, rows, _swap(d_ys), d_readout, pull_begin)


def estimator(reach: int, block: int | None = None) -> Estimator:
    """The estimator whose losses reach back `reach` steps each, `block` adjoints at once."""
    return Estimator(no_aux, functools.partial(value_and_grad, reach=reach, block=block), advance)


def value_and_grad(
    losses: WindowLoss, params: Params, aux: Tree, *, reach: int, block: int | None
) -> WindowGradient:
    """`Estimator.value_and_grad` with an exact window for each loss; aux passes unchanged."""
    if reach >= jax.tree.leaves(losses.window.inputs)[0].shape[1]:  # no loss can reach so far
        return reverse.value_and_grad(losses, params, aux)
    model = drawing(losses.model, split_rng(losses.rng)[0])
    carry = jax.lax.stop_gradient(losses.carry)
    ran = run_forward(losses._replace(model=model, carry=carry), params)
    steps = len(jax.tree.leaves(ran.rows.before)[0])
    if block is None or block >= steps:
        d_steps, d_first, d_xs = _steps_gradient(model, params, ran.rows, ran.d_ys, reach, steps)
    else:
        d_steps, d_first, d_xs = _by_blocks(model, params, ran.rows, ran.d_ys, reach, block)
    (d_begin,) = ran.pull_begin((d_first, d_xs))
    grads = jax.tree.map(lambda *parts: sum(parts), d_steps, d_begin, ran.d_readout)
    return WindowGradient(ran.total, ran.end, ran.carries, grads, aux)


def _by_blocks(
    model: Model, params: Params, rows: Rows, d_ys: Floats, reach: int, block: int
) -> tuple[Params, Floats, Floats]:
    """As `_steps_gradient`, of all rows, block after block."""
    steps = len(jax.tree.leaves(rows.before)[0])
    blocks, size = -(-steps // block), block + reach - 1
    beyond = blocks * block + reach - 1 - steps

    def pad(mode: str) -> Callable[[jax.Array], jax.Array]:
        return lambda a: jnp.pad(a, [(0, beyond)] + [(0, 0)] * (a.ndim - 1), mode=mode)

    # Steps beyond the end get no cotangent; they repeat the last one, which is known to be finite.
    rows, d_ys = jax.tree.map(pad("edge"), rows), jax.tree.map(pad("constant"), d_ys)

    def one(total: Params, start: jax.Array) -> tuple[Params, tuple[Floats, Floats]]:
        part, d_part = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), (rows, d_ys)
        )
        d_steps, d_first, d_xs = _steps_gradient(model, params, part, d_part, reach, block)
        total = jax.tree.map(lambda t, d: t + d.astype(t.dtype), total, d_steps)
        return total, (d_first, d_xs)

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p.dtype)), params)
    d_steps, (d_first, d_xs) = jax.lax.scan(one, zero, jnp.arange(blocks) * block)
    d_steps = jax.tree.map(lambda d, p: d.astype(p.dtype), d_steps, params)
    d_first = jax.tree.map(lambda d: d[0], d_first)
    d_xs = jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:])[:steps], d_xs)
    return d_steps, d_first, d_xs


def _steps_gradient(
    model: Model, params: Params, rows: Rows, d_ys: Floats, reach: int, count: int
) -> tuple[Params, Floats, Floats]:
    """The gradient through the first `count` rows: core parameters, first carry, their inputs."""
    pull = pull_carry(model, params, rows)

    def further(d_after: Floats, _: None) -> tuple[Floats, None]:
        return earlier(pull((d_after, d_ys))), None

    nothing = jax.tree.map(jnp.zeros_like, floats(rows.before))
    d_after, _ = jax.lax.scan(further, nothing, None, length=reach - 1)
    rows, d_after, d_ys = jax.tree.map(lambda a: a[:count], (rows, d_after, d_ys))
    return pull_all(model, params, rows)((d_after, d_ys))


def pull_carry(model: Model, params: Params, rows: Rows) -> PullCarry:
    """(d_after, d_ys) to the cotangents of the carries before all steps, linearized once."""

    def outputs(before: Floats) -> tuple[Floats, Floats]:
        return _outputs(model, params, rows._replace(before=put(rows.before, before)))

    _, pull = jax.vjp(outputs, floats(rows.before))
    return lambda cotangents: pull(cotangents)[0]


def pull_all(model: Model, params: Params, rows: Rows) -> PullAll:
    """(d_after, d_ys) to the gradient through the steps: params, first carry, encoded inputs."""

    def outputs(params: Params, first: Floats, xs: Floats) -> tuple[Floats, Floats]:
        before = [jnp.concatenate([f[None], b[1:]]) for f, b in zip(first, rest, strict=True)]
        replaced = rows._replace(before=put(rows.before, before), xs=put(rows.xs, xs))
        return _outputs(model, params, replaced)

    rest = floats(rows.before)
    _, pull = jax.vjp(outputs, params, [b[0] for b in rest], floats(rows.xs))
    return pull


def earlier(d_before: Floats) -> Floats:
    """The cotangents of the carries after all steps, from those before; none after the last."""
    return [jnp.concatenate([d[1:], jnp.zeros_like(d[:1])]) for d in d_before]


def _outputs(model: Model, params: Params, rows: Rows) -> tuple[Floats, Floats]:
    """All steps at once: the carries after them and their outputs, what has a cotangent of each."""
    initial = _initial(model, params, rows)

    def step(
        carry: Carry, x: Tree, mask: jax.Array | None, reset: jax.Array | None
    ) -> tuple[Carry, Tree]:
        known = jax.lax.stop_gradient(carry)

        def on_known(carry: Carry, x: Tree) -> tuple[Carry, Tree]:
            if mask is not None:
                carry = scan.select(mask, carry, known)
            return model.step(params, carry, x)

        return scan.marked_step(on_known, carry, x, mask, reset, initial)

    after, ys = jax.vmap(step)(*rows)
    return floats(after), floats(ys)


def _initial(model: Model, params: Params, rows: Rows) -> Carry | None:
    """What a reset gives; None where there is none."""
    if rows.reset is None:
        return None
    return initial_carry(model, params, jax.tree.map(lambda x: x.shape[1:], rows.xs))


def _swap(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def floats(tree: Tree) -> Floats:
    """The leaves of a pytree that have a cotangent."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def put(tree: Tree, leaves: Floats) -> Tree:
    """The tree with other floating-point leaves."""
    others = iter(leaves)
    return jax.tree.map(lambda leaf: next(others) if _is_float(leaf) else leaf, tree)
