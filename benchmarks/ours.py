"""Our sides: one network, many networks, and the sentiment job."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tbptt_jax as tbptt
from benchmarks.job import RATE, Job, Problem, Run, cell_params, epoch, problem
from experiments import review_training, trainer
from tbptt_jax.types import LossFn

Step: TypeAlias = Callable[[tbptt.TrainState], tuple[tbptt.TrainState, tbptt.Metrics]]


def our_state(job: Job, numbers: Problem) -> tbptt.TrainState:
    """The network before training."""
    rngs = nnx.Rngs(0)
    model = tbptt.SequenceModel(
        core=tbptt.LSTM(job.features, job.hidden, rngs=rngs),
        readout=nnx.Linear(job.hidden, 1, rngs=rngs),
    )
    nnx.update(model, cell_params(numbers))
    return tbptt.TrainState.create(model, *our_training())


@functools.cache
def our_training() -> tuple[optax.GradientTransformation, LossFn]:
    """Optimizer and loss, the same for all networks, so that they share compiled code."""
    return optax.sgd(RATE), lambda y, t: optax.losses.squared_error(y, t).mean(-1)


def ours(job: Job) -> Run:
    """`train_step`; for many networks, one call under `vmap`."""
    if job.batches:
        return our_epoch(job)
    if job.networks:
        return many(job, jax.vmap)
    numbers = problem(job)
    state = our_state(job, numbers)
    batch = tbptt.Batch(*map(jnp.asarray, (numbers.x, numbers.y)))
    plan = tbptt.Truncation(job.k1, job.k2)

    def run() -> float:
        nonlocal state
        state, metrics = tbptt.train_step(state, batch, plan)
        return float(metrics.loss.mean())

    return run


def in_turn(job: Job) -> Run:
    """One call for all networks, under `lax.map`, one network after another."""
    return many(job, lambda step: functools.partial(jax.lax.map, step))


def many(job: Job, spread: Callable[[Step], Step]) -> Run:
    """One compiled call for all networks; `spread` maps a step over them."""
    numbers = problem(job)
    one, plan = our_state(job, numbers), tbptt.Truncation(job.k1, job.k2)
    batch = tbptt.Batch(*map(jnp.asarray, (numbers.x, numbers.y)))
    states = jax.tree.map(lambda a: jnp.stack([a] * job.networks), one)
    step = jax.jit(spread(lambda state: tbptt.train_step(state, batch, plan)), donate_argnums=0)

    def run() -> float:
        nonlocal states
        states, metrics = step(states.restart())
        return float(metrics.loss.mean())

    return run


def alone(job: Job) -> Run:
    """A call for each network."""
    runs = [ours(dataclasses.replace(job, networks=0)) for _ in range(job.networks)]
    return lambda: sum(run() for run in runs) / len(runs)


def our_epoch(job: Job) -> Run:
    """The sentiment job's own network and optimizer."""
    config, task, _, batches = epoch(job)
    state = trainer.make_state(task, review_training.recipe(config), updates=10**6)
    plan = tbptt.Truncation(config.k1, config.k2)

    def run() -> float:
        nonlocal state
        losses = []
        for batch in batches:
            state, metrics = tbptt.train_step(state, batch, plan)
            losses.append(metrics.loss)
        return float(np.mean([np.asarray(loss).mean() for loss in losses]))

    return run


def matmul(job: Job) -> Run:
    """A product of two matrices of 1,024 rows and columns, which shows the machine's rate."""
    del job
    a = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)

    def run() -> float:
        return float(product(a, a)[0, 0])

    return run
