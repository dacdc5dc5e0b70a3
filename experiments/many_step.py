"""One step of training for many networks at once: together, or in turn."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

import tbptt_jax as tbptt
from experiments import driver
from tbptt_jax.windows import batch_shape

# One compiled call in either case: every operation for all networks, or network after network.
Spread: TypeAlias = Literal["together", "in turn"]


def spread(function: Callable[[Any], Any], how: Spread) -> Callable[[Any], Any]:
    """The function over the leading axis of its argument."""
    return jax.vmap(function) if how == "together" else functools.partial(jax.lax.map, function)


@functools.cache
def make_optimizer(clip: float, updates: int) -> optax.GradientTransformation:
    """The driver's, with the learning rate in its state: what is compiled serves all rates."""
    unit = driver.make_optimizer(1.0, clip, updates)

    def init(params):
        return unit.init(params), jnp.ones(())

    def update(updates, state, params=None):
        inner, rate = state
        updates, inner = unit.update(updates, inner, params)
        return jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates), (inner, rate)

    return optax.GradientTransformation(init, update)


class Step:
    """What a batch does to all networks and to the averages of their parameters, timed.

    Called with the states, their averages and a batch, it gives the new states, averages, the
    averaged parameters, the metrics, each [M, ...], and the seconds it took.
    """

    def __init__(self, plan: tbptt.Truncation, how: Spread, average: Callable[..., Any]):
        def one(batch, state):
            state, metrics = tbptt.train_step(state, batch, plan)
            if batch.reset is None:
                # As before the first batch, so that the second compiles nothing.
                state = dataclasses.replace(state, carry=None, lookback=None)
            return state, metrics

        def step(states, averages, batch):
            states, metrics = spread(functools.partial(one, batch), how)(states)
            averaged, averages = average(states.params, averages)
            return states, averages, averaged, metrics

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._compiled: dict[Any, Any] = {}

    def shapes(self, *arguments: Any) -> tuple[Any, Any, Any, Any]:
        """What it gives, without the seconds; nothing is run."""
        return jax.eval_shape(self._step, *arguments)

    def __call__(self, states: Any, averages: Any, batch: tbptt.Batch) -> tuple[Any, ...]:
        key = states.step.shape, batch_shape(batch), jax.tree.structure((states.carry, batch))
        if key not in self._compiled:
            self._compiled[key] = self._step.lower(states, averages, batch).compile()
        called = time.perf_counter()
        result = jax.block_until_ready(self._compiled[key](states, averages, batch))
        return *result, time.perf_counter() - called
