"""Whether a function mixes steps: its result at a step while others change, and of it alone."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tbptt_jax.types import Params, Tree

# Relative to the largest number: of the same arithmetic on the same numbers, and of products of
# another shape in 32 bits.
_ROUNDINGS, _OF_ANOTHER_SHAPE = 8, 3e-4


class Function(NamedTuple):
    """What is probed.

    Attributes:
      name: what messages call it.
      call: `(params, x) -> result`, with x and the result [B, T, ...].
      advice: what to do if it mixes steps, the end of the message.
    """

    name: str
    call: Callable[[Params, Tree], Tree]
    advice: str


class Trial(NamedTuple):
    """Variants of one x [B, T, ...], stacked.

    Attributes:
      steps: int [S * V]; the step that each variant leaves as it is.
      variants: [S * V, B, T, ...]; for each of S steps x itself and V - 1 others.
      alone: [S, B, 1, ...]; each step by itself.
    """

    steps: np.ndarray
    variants: Tree
    alone: Tree


class Results(NamedTuple):
    """What a function makes of a `Trial`.

    Attributes:
      around: [S * V, B, ...]; the results at the steps that stay as they are.
      alone: [S, B, ...]; the results of the steps by themselves. None: it cannot run on one step.
    """

    around: Tree
    alone: Tree


def check_steps(function: Function, params: Params, candidates: Sequence[Tree], steps: int) -> None:
    """Raise if a function mixes steps. One that cannot be run is not refused here.

    Args:
      function: what is probed.
      params: its parameters; a little noise is added, since a parameter of zero would hide what it
        multiplies.
      candidates: values of x [B, T, ...], in NumPy; the first that has finite results is used.
      steps: T.

    Raises:
      ValueError: a step's result changes with other steps, or with its place.
    """
    compared = np.array(sorted({0, steps // 2, steps - 1}))
    with np.errstate(all="ignore"):  # what overflows here is not finite, and not compared
        trials = [_make_trial(x, compared) for x in candidates]
        for alone in (True, False):
            try:
                results, exact = _run(function.call, alone, params, trials)
            except Exception:  # of a user's function, or of what JAX makes of it
                continue
            _compare(function, compared, results, exact)
            break


def _run(
    call: Callable[[Params, Tree], Tree], alone: bool, params: Params, trials: Sequence[Trial]
) -> tuple[Results, bool]:
    """The results of the first trial that has finite ones, and whether they are exact."""
    compiled, exact = compile_trial(call, alone, params, trials[0])
    results = Results(None, None)
    # Where noise leaves no result: the parameters as they are.
    for noise, trial in itertools.product((1, 0), trials):
        results = jax.tree.map(np.asarray, compiled(np.float32(noise), params, trial))
        if _is_finite(results):
            break
    return results, exact


def _make_trial(x: Tree, compared: np.ndarray) -> Trial:
    others = [_changed(x, seed, noisy=noisy) for seed, noisy in ((5, False), (6, True))]

    def variants(leaf: np.ndarray, *others: np.ndarray) -> np.ndarray:
        def around(step: int) -> list[np.ndarray]:
            here = np.arange(leaf.shape[1]) == step
            here = here.reshape(1, -1, *(1,) * (leaf.ndim - 2))
            return [leaf, *(np.where(here, leaf, other) for other in others)]

        return np.stack([variant for step in compared for variant in around(step)])

    alone = jax.tree.map(lambda a: np.stack([a[:, t : t + 1] for t in compared]), x)
    steps = np.repeat(compared, 1 + len(others))
    return Trial(steps, jax.tree.map(variants, x, *others), alone)


def _changed(x: Tree, seed: int, noisy: bool) -> Tree:
    """Other values for every step: those of the next step, or noise of the same scale."""
    rng = np.random.default_rng(seed)

    def change(leaf: np.ndarray) -> np.ndarray:
        other = np.roll(leaf, -1, axis=1)
        if leaf.dtype == bool:
            return rng.random(leaf.shape) < 0.5 if noisy else ~other
        if not noisy or leaf.size == 0:
            return other
        if not jnp.issubdtype(leaf.dtype, np.inexact):
            low, high = int(leaf.min()), int(leaf.max())
            return rng.integers(low, max(high, low + 1) + 1, leaf.shape).astype(leaf.dtype)
        noise = rng.normal(size=leaf.shape) * (np.nan_to_num(np.std(leaf)) or 1.0)
        return (leaf + noise).astype(leaf.dtype)

    return jax.tree.map(change, x)


def compile_trial(
    call: Callable[[Params, Tree], Tree], alone: bool, params: Params, trial: Trial
) -> tuple[Callable[[np.float32, Params, Trial], Results], bool]:
    """Compile a function on a trial, and say whether its arithmetic has more than 16 bits.

    With fewer a result differs with the shape of a product.
    """

    def run(noise: jax.Array, params: Params, trial: Trial) -> Results:
        params = jax.tree.map(lambda p: _noisy(p, noise), params)

        def at_step(step_and_variant: tuple[jax.Array, Tree]) -> Tree:
            step, variant = step_and_variant
            return jax.tree.map(lambda y: y[:, step], call(params, variant))

        # One loop, so that all have the same arithmetic, to the bit.
        around = jax.lax.map(at_step, (trial.steps, trial.variants))
        if not alone:
            return Results(around, None)
        first = jax.lax.map(lambda x: jax.tree.map(lambda y: y[:, 0], call(params, x)), trial.alone)
        return Results(around, first)

    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(run).lower(np.float32(1), params, trial)
    text = lowered.as_text()
    return lowered.compile(), "f16>" not in text and "xf8" not in text


def _noisy(leaf: jax.Array, noise: jax.Array) -> jax.Array:
    """A parameter plus a little of its own scale that looks random."""
    if not jnp.issubdtype(leaf.dtype, np.inexact):
        return leaf
    wave = jnp.sin(1 + 1.7 * jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    fan_in = leaf.shape[-2] if leaf.ndim > 1 else 1
    return leaf + (noise * 0.5 * wave / np.float32(fan_in) ** 0.5).astype(leaf.dtype)


def _is_finite(results: Results) -> bool:
    """Whether any of the results around the steps is a number."""
    leaves = jax.tree.leaves(results.around)
    return any(np.isfinite(a.astype(np.complex128)).any() for a in leaves)


def _compare(function: Function, compared: np.ndarray, results: Results, exact: bool) -> None:
    alone = jax.tree.leaves(results.alone) if exact else []
    # Of each leaf [S, V, B, ...].
    around = [a.reshape(len(compared), -1, *a.shape[1:]) for a in jax.tree.leaves(results.around)]
    for i, step in enumerate(compared):
        for leaf in around:
            one, *others = leaf[i]
            if not all(_is_same(one, other, _ROUNDINGS * _eps(leaf)) for other in others):
                _refuse(function, step, "changes when another step changes")
        for leaf, single in zip(around, alone, strict=False):
            if not _is_same(leaf[i, 0], single[i], _OF_ANOTHER_SHAPE):
                _refuse(function, step, "changes with its place, or with the number of steps")


def _eps(array: np.ndarray) -> float:
    return float(jnp.finfo(array.dtype).eps) if jnp.issubdtype(array.dtype, np.inexact) else 0.0


def _is_same(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays agree where the first is a number."""
    one, other = one.astype(np.complex128), other.astype(np.complex128)
    known = np.isfinite(one)
    size = np.max(np.abs(one[known]), initial=0)
    return bool(np.all(np.abs(one[known] - other[known]) <= tolerance * size))


def _refuse(function: Function, step: int, what: str) -> None:
    raise ValueError(
        f"{function.name} must be a function of one step, but its result at step {step} {what}, "
        f"which a window cuts; {function.advice}"
    )
