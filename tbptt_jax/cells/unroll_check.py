"""Compare a model's `unroll` with its step, scanned."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.cells.scan import Unrolled, step_shape
from tbptt_jax.cells.scan import unroll as scan
from tbptt_jax.types import Array, Carry, Model, Params, Tree

# Relative to the largest number, by the narrowest floating-point type in the step.
_TOLERANCES = {"f16": 0.1, "f32": 1e-3, "f64": 1e-9}
_RESULTS = "the end carry", "ys", "the carries"
_ARGUMENTS = "params", "the carry", "xs"


def check_unroll(model: Model, params: Params, inputs: Tree) -> None:
    """Check that a model's `unroll` gives the numbers and the gradients of scanning its `step`.

    Both run on the encoded inputs from a random carry: without marks, with a random mask, with
    random resets, and with both, where some steps are reset and masked. The check compares the end
    carry, the outputs of existing steps and the carries after all steps, then the gradients of a
    random weighted sum of those with respect to the parameters, the carry and the encoded inputs.
    The contract is that of `Model.unroll`.

    Args:
      model: with an `unroll`; `functional` makes one of a `SequenceModel`.
      params: its parameters. Random ones find more errors than zeros do.
      inputs: [B, T, ...] as the model takes them. About 4 rows of 10 steps are enough.

    Raises:
      TypeError: `model` is no Model, or has no `unroll`.
      ValueError: the two differ; the message names the result or gradient, the difference and the
        marks.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from tbptt_jax import SequenceModel, functional
      >>> module = SequenceModel(core=nnx.GRUCell(3, 8, rngs=nnx.Rngs(0)))
      >>> check_unroll(*functional(module), jnp.ones((4, 10, 3)))
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"check_unroll: model must be a tbptt_jax.Model, got {type(model).__name__}; of a "
            "SequenceModel: check_unroll(*functional(module), inputs)"
        )
    if model.unroll is None:
        raise TypeError(
            "check_unroll: model has no unroll; its step is scanned, there is nothing to compare"
        )
    xs = jax.jit(lambda p, x: model.encode(p, x, None))(params, inputs)
    start = model.initialize_carry(params, step_shape(xs))
    rng = np.random.default_rng(0)
    # Not the initial carry, so that a reset shows.
    carry = jax.tree.map(lambda leaf: _near(leaf, rng), start)
    rows, steps = jax.tree.leaves(xs)[0].shape[:2]
    for marks, mask, reset in _marks(rows, steps, rng):
        _compare(model, (params, carry, xs), mask, reset, f"with {marks}")


def _near(leaf: jax.Array, rng: np.random.Generator) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, np.inexact):
        return jnp.asarray(leaf + rng.integers(1, 4, leaf.shape), leaf.dtype)
    return jnp.asarray(leaf + rng.normal(size=leaf.shape), leaf.dtype)


def _marks(
    rows: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[str, Array | None, Array | None]]:
    mask, reset = rng.random((2, rows, steps)) < 0.5
    # Whatever is drawn, one step is both reset and masked.
    mask[0, steps // 2], reset[0, steps // 2] = False, True
    masked, resets = jnp.asarray(mask), jnp.asarray(reset)
    yield "neither mask nor reset", None, None
    yield "a mask", masked, None
    yield "resets", None, resets
    yield "a mask and resets", masked, resets


def _compare(
    model: Model,
    arguments: tuple[Params, Carry, Tree],
    mask: Array | None,
    reset: Array | None,
    marks: str,
) -> None:
    def scanned(params: Params, carry: Carry, xs: Tree) -> Unrolled:
        initial = None if reset is None else model.initialize_carry(params, step_shape(xs))
        return scan(lambda c, x: model.step(params, c, x), carry, xs, mask, reset, initial)

    def own(params: Params, carry: Carry, xs: Tree) -> Unrolled:
        return model.unroll(params, carry, xs, mask, reset)  # pyright: ignore[reportOptionalCall]

    expected, found = jax.eval_shape(scanned, *arguments), jax.eval_shape(own, *arguments)
    _check_shapes(expected, found, marks)
    rng = np.random.default_rng(1)
    weights = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), expected)
    if mask is not None:
        # The output of a masked step is free, and so is its gradient.
        weights = weights[0], jax.tree.map(lambda w: _where_exists(mask, w), weights[1]), weights[2]

    def evaluate(run: Callable[..., Unrolled]) -> tuple[Unrolled, Tree]:
        def total(*arguments: Tree) -> tuple[Tree, Unrolled]:
            results = run(*arguments)
            terms = jax.tree.map(_weighted, results, weights)
            return sum(jax.tree.leaves(terms)), results

        value_and_grad = jax.value_and_grad(total, (0, 1, 2), has_aux=True, allow_int=True)
        (_, results), grads = jax.jit(value_and_grad)(*arguments)
        return results, grads

    text = str(jax.make_jaxpr(scanned)(*arguments))
    tolerance = next(value for kind, value in _TOLERANCES.items() if kind in text)
    (expected, of_step), (found, of_unroll) = evaluate(scanned), evaluate(own)
    for name, a, b in zip(_RESULTS, expected, found, strict=True):
        exists = mask if name == "ys" else None
        _check_close(f"{name} of unroll", a, b, exists, tolerance, marks)
    for name, a, b in zip(_ARGUMENTS, of_step, of_unroll, strict=True):
        _check_close(f"the gradient of unroll for {name}", a, b, None, tolerance, marks)


def _where_exists(mask: Array, array: Array) -> jax.Array:
    return jnp.where(jnp.expand_dims(mask, tuple(range(2, array.ndim))), array, 0)


def _weighted(result: jax.Array, weight: jax.Array) -> jax.Array:
    if not jnp.issubdtype(result.dtype, np.inexact):
        return jnp.zeros(())
    return jnp.sum(jnp.real(result) * weight.astype(result.dtype).real)


def _check_shapes(expected: Unrolled, found: object, marks: str) -> None:
    if not (isinstance(found, tuple) and len(found) == len(_RESULTS)):
        raise ValueError(
            "check_unroll: unroll must return (carry, ys, carries), got "
            f"{type(found).__name__} {marks}"
        )
    for name, a, b in zip(_RESULTS, expected, found, strict=True):
        if jax.tree.structure(a) != jax.tree.structure(b):
            raise ValueError(
                f"check_unroll: {name} of unroll must be {jax.tree.structure(a)} as the step's, "
                f"got {jax.tree.structure(b)} {marks}"
            )
        for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                order = "; ys are [B, T, ...], the carries [T, B, ...]"
                raise ValueError(
                    f"check_unroll: {name} of unroll{jax.tree_util.keystr(path)} must be "
                    f"{x.dtype}{list(x.shape)}, got {y.dtype}{list(y.shape)} {marks}{order}"
                )


def _check_close(
    name: str, expected: Tree, found: Tree, exists: Array | None, tolerance: float, marks: str
) -> None:
    """Compare two pytrees; with `exists` the values of masked steps are free if they are finite."""
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True)
    for (path, a), b in pairs:
        if a.dtype == jax.dtypes.float0:
            continue
        place = f"check_unroll: {name}{jax.tree_util.keystr(path)}"
        a, b = (np.asarray(x).astype(np.complex128) for x in (a, b))
        if np.isfinite(a).all() and not np.isfinite(b).all():
            raise ValueError(f"{place} must be finite, at masked steps too, and is not {marks}")
        difference = np.abs(a - b)
        if exists is not None:
            difference = np.asarray(_where_exists(exists, difference))
        largest = np.max(difference, initial=0)
        if not largest <= tolerance * np.max(np.abs(a), initial=1e-3):
            raise ValueError(
                f"{place} differs from that of the scanned step by up to {largest:.3g} {marks}; "
                "first the reset, then the step, then the hold"
            )
