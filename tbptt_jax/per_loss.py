"""Exact per-loss windows: the adjoints of all steps at once, a round for each step they reach.

Let a_s be the cotangent of the carry that enters step s, from the losses of steps s .. s + j - 1.
With the carries of one forward pass at hand, the cotangents of j + 1 losses follow from those of j
by one vector-Jacobian product of the step, taken for every s at once:

    a_s  <-  J_s^T (a_{s+1}, d l_s / d y_s)

After k - 1 rounds a_{s+1} is what the losses that reach back k steps send through the carry after
step s, and one product with respect to the parameters gives the gradient. Without d l_s / d y_s a
round moves every loss one lag further, which takes the gradient apart by lag. The depth is k
products of all steps at once, where a reverse pass is T products of one step each.

What each step's product needs is kept for all K steps of the window at once: for an LSTM some
twelve arrays [K, B, hidden]. With a `block` it is kept for block + k - 1 steps only, and formed
anew for the k - 1 that two blocks share; the carries, inputs and outputs of the window stay.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tbptt_jax import recurrence
from tbptt_jax.types import Carry, LossFn, Model, Params
from tbptt_jax.window import Window, begin, initial_carry, run, scored_sum, split_rng

# The floating-point leaves of a pytree: what has a cotangent.
Floats = list[jax.Array]


class Rows(NamedTuple):
    """What consecutive steps are given, time first: every leaf is [K, B, ...]."""

    before: Carry
    xs: Any
    mask: jax.Array | None
    reset: jax.Array | None


class Pass(NamedTuple):
    """A window run forward, and what its losses ask of the steps.

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
    pull_begin: Any


def run_forward(
    model: Model,
    loss: LossFn,
    params: Params,
    carry: Carry | None,
    window: Window,
    rng: jax.Array | None,
) -> Pass:
    """Run a window once; arguments as in `window_value_and_grad`."""
    encode_rng, readout_rng = split_rng(rng)

    def start(params):
        first, xs = begin(model, params, carry, window, encode_rng)
        return (floats(first), floats(_swap(xs))), (first, xs)

    _, pull_begin, (first, xs) = jax.vjp(start, params, has_aux=True)
    end, ys, carries = run(model, params, first, xs, window)
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, carries)

    def losses(params, floats):
        outputs = put(ys, floats)
        return scored_sum(model, loss, params, outputs, window, readout_rng)

    total, (d_readout, d_ys) = jax.value_and_grad(losses, argnums=(0, 1))(params, floats(ys))
    rows = Rows(before, *_swap((xs, window.mask, window.reset)))
    return Pass(total, end, carries, rows, _swap(d_ys), d_readout, pull_begin)


def value_and_grad(
    model: Model,
    loss: LossFn,
    params: Params,
    carry: Carry | None,
    window: Window,
    rng: jax.Array | None,
    *,
    reach: int,
    block: int | None,
) -> tuple[tuple[jax.Array, Carry, Carry], Params]:
    """Losses, carries and gradient of a window; arguments as in `window_value_and_grad`."""
    ran = run_forward(model, loss, params, carry, window, rng)
    steps = len(jax.tree.leaves(ran.rows.before)[0])
    if block is None or block >= steps:
        d_steps, d_first, d_xs = _steps_gradient(model, params, ran.rows, ran.d_ys, reach, steps)
    else:
        d_steps, d_first, d_xs = _by_blocks(model, params, ran.rows, ran.d_ys, reach, block)
    (d_begin,) = ran.pull_begin((d_first, d_xs))
    grads = jax.tree.map(lambda *parts: sum(parts), d_steps, d_begin, ran.d_readout)
    return (ran.total, ran.end, ran.carries), grads


def _by_blocks(model, params, rows, d_ys, reach, block):
    """As `_steps_gradient`, of all rows, block after block."""
    steps = len(jax.tree.leaves(rows.before)[0])
    blocks, size = -(-steps // block), block + reach - 1
    beyond = blocks * block + reach - 1 - steps

    def pad(mode):
        return lambda a: jnp.pad(a, [(0, beyond)] + [(0, 0)] * (a.ndim - 1), mode=mode)

    # Steps beyond the end get no cotangent; they repeat the last one, which is known to be finite.
    rows, d_ys = jax.tree.map(pad("edge"), rows), jax.tree.map(pad("constant"), d_ys)

    def one(total, start):
        part, d_part = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), (rows, d_ys)
        )
        d_steps, d_first, d_xs = _steps_gradient(model, params, part, d_part, reach, block)
        return jax.tree.map(jnp.add, total, d_steps), (d_first, d_xs)

    zero = jax.tree.map(jnp.zeros_like, params)
    d_steps, (d_first, d_xs) = jax.lax.scan(one, zero, jnp.arange(blocks) * block)
    d_first = jax.tree.map(lambda d: d[0], d_first)
    d_xs = jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:])[:steps], d_xs)
    return d_steps, d_first, d_xs


def _steps_gradient(model, params, rows, d_ys, reach, count):
    """The gradient through the first `count` rows: core parameters, first carry, their inputs."""
    pull = pull_carry(model, params, rows)

    def further(d_after, _):
        return earlier(pull((d_after, d_ys))), None

    nothing = jax.tree.map(jnp.zeros_like, floats(rows.before))
    d_after, _ = jax.lax.scan(further, nothing, None, length=reach - 1)
    rows, d_after, d_ys = jax.tree.map(lambda a: a[:count], (rows, d_after, d_ys))
    return pull_all(model, params, rows)((d_after, d_ys))


def pull_carry(model: Model, params: Params, rows: Rows) -> Any:
    """(d_after, d_ys) to the cotangents of the carries before all steps, linearized once."""

    def outputs(before):
        return _outputs(model, params, rows._replace(before=put(rows.before, before)))

    _, pull = jax.vjp(outputs, floats(rows.before))
    return lambda cotangents: pull(cotangents)[0]


def pull_all(model: Model, params: Params, rows: Rows) -> Any:
    """(d_after, d_ys) to the gradient through the steps: params, first carry, encoded inputs."""

    def outputs(params, first, xs):
        floats = [jnp.concatenate([f[None], b[1:]]) for f, b in zip(first, rest, strict=True)]
        given = rows._replace(before=put(rows.before, floats), xs=put(rows.xs, xs))
        return _outputs(model, params, given)

    rest = floats(rows.before)
    _, pull = jax.vjp(outputs, params, [b[0] for b in rest], floats(rows.xs))
    return pull


def earlier(d_before: Floats) -> Floats:
    """The cotangents of the carries after all steps, from those before; none after the last."""
    return [jnp.concatenate([d[1:], jnp.zeros_like(d[:1])]) for d in d_before]


def _outputs(model, params, rows):
    """All steps at once: the carries after them and their outputs, what has a cotangent of each."""
    initial = None
    if rows.reset is not None:
        initial = initial_carry(model, params, jax.tree.map(lambda x: x.shape[1:], rows.xs))

    def step(carry, x, mask, reset):
        return recurrence.marked_step(
            lambda carry, x: model.step(params, carry, x), carry, x, mask, reset, initial
        )

    after, ys = jax.vmap(step)(*rows)
    return floats(after), floats(ys)


def _swap(tree):
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def _is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def floats(tree: Any) -> Floats:
    """The leaves of a pytree that have a cotangent."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def put(tree, floats):
    """The tree with other floating-point leaves."""
    floats = iter(floats)
    return jax.tree.map(lambda leaf: next(floats) if _is_float(leaf) else leaf, tree)
