"""The other sides: flax and Keras on JAX, and PyTorch. Each imports the libraries it needs."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.job import RATE, Job, Problem, Run, cell_params, epoch, problem, windows


def by_hand(job: Job, unroll: Callable[..., Any]) -> Run:
    """A jitted step of a window of a flax cell, called from a loop that passes the carry on.

    Args:
      job: the shapes and the plan.
      unroll: `(cell, carry, xs) -> (carry, ys)`.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    numbers, rngs = problem(job), nnx.Rngs(0)
    cell = nnx.OptimizedLSTMCell(job.features, job.hidden, rngs=rngs)
    graph, _ = nnx.split(cell)
    head, _ = nnx.split(nnx.Linear(job.hidden, 1, rngs=rngs))
    params = jax.tree.map(jnp.asarray, cell_params(numbers))
    optimizer = optax.sgd(RATE)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, carry, x, y):
        def loss(params):
            end, ys = unroll(nnx.merge(graph, params["core"]), carry, x)
            outputs = nnx.merge(head, params["readout"])(ys)
            return optax.losses.squared_error(outputs, y).mean(), end

        (value, carry), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry, value

    opt_state = optimizer.init(params)
    first = cell.initialize_carry((job.rows, job.features), nnx.Rngs(0))
    pieces = windows(job, jnp.asarray(numbers.x), jnp.asarray(numbers.y))

    def run() -> float:
        nonlocal params, opt_state
        carry, values = first, []
        for x, y in pieces:
            params, opt_state, carry, value = step(params, opt_state, carry, x, y)
            values.append(value)
        return float(jnp.stack(values).mean())

    return run


def flax_scan(job: Job) -> Run:
    """flax's cell under `lax.scan`."""
    import jax
    import jax.numpy as jnp

    def unroll(cell, carry, x):
        carry, ys = jax.lax.scan(cell, carry, jnp.swapaxes(x, 0, 1))
        return carry, jnp.swapaxes(ys, 0, 1)

    return by_hand(job, unroll)


def nnx_rnn(job: Job) -> Run:
    """flax's `nnx.RNN`."""
    from flax import nnx

    def unroll(cell, carry, x):
        return nnx.RNN(cell, return_carry=True, rngs=nnx.Rngs(0))(x, initial_carry=carry)

    return by_hand(job, unroll)


def keras(job: Job) -> Run:
    """`train_on_batch` of a Keras model on JAX, which starts each window with a carry of zeros."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras: Any = importlib.import_module("keras")

    numbers = problem(job)
    model = keras.Sequential(
        [
            keras.Input((job.k1, job.features)),
            keras.layers.LSTM(job.hidden, return_sequences=True),
            keras.layers.Dense(1),
        ]
    )
    weights = (
        *(numbers.kernel, numbers.recurrent, numbers.bias, numbers.out),
        np.zeros(1, np.float32),
    )
    model.set_weights(list(weights))
    model.compile(keras.optimizers.SGD(RATE), "mse")
    pieces = windows(job, numbers.x, numbers.y)

    def run() -> float:
        return float(np.mean([model.train_on_batch(x, y) for x, y in pieces]))

    return run


def torch(job: Job, fused: bool | None = None) -> Run:
    """`torch.nn.LSTM` and `detach`; where k2 > k1 a window is replayed from a saved state."""
    torch: Any = importlib.import_module("torch")

    if job.batches:
        return torch_epoch(job, fused)
    numbers = Problem(*map(torch.from_numpy, problem(job)))
    lstm, head = (
        torch.nn.LSTM(job.features, job.hidden, batch_first=True),
        torch.nn.Linear(job.hidden, 1),
    )
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(numbers.kernel.T)
        lstm.weight_hh_l0.copy_(numbers.recurrent.T)
        lstm.bias_ih_l0.copy_(numbers.bias)
        lstm.bias_hh_l0.zero_()
        lstm.bias_hh_l0.requires_grad = False  # one bias, as flax has
        head.weight.copy_(numbers.out.T)
        head.bias.zero_()
    trained = [p for p in (*lstm.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(trained, RATE)
    zero = torch.zeros(1, job.rows, job.hidden)

    def run() -> float:
        values, saved = [], {0: (zero, zero)}
        for end in range(job.k1, job.length + 1, job.k1):
            start = max(0, end - job.k2)
            state = saved.pop(start)
            # The first step of the next window.
            next_start = max(0, end + job.k1 - job.k2)
            ys = []
            if start < next_start:
                out, state = lstm(numbers.x[:, start:next_start], state)
                ys.append(out)
            saved[next_start] = tuple(s.detach() for s in state)
            if next_start < end:
                out, state = lstm(numbers.x[:, next_start:end], state)
                ys.append(out)
            outputs = head((torch.cat(ys, 1) if len(ys) > 1 else ys[0])[:, -job.k1 :])
            loss = torch.nn.functional.mse_loss(outputs, numbers.y[:, end - job.k1 : end])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        return float(torch.stack(values).mean())

    return run


def torch_epoch(job: Job, fused: bool | None) -> Run:
    """The same network, batches, losses and updates in PyTorch; padding is read like words."""
    torch: Any = importlib.import_module("torch")

    config, _, words, batches = epoch(job)
    embed = torch.nn.Embedding(words, config.embedding)
    lstm = torch.nn.LSTM(config.embedding, config.hidden, batch_first=True)
    head = torch.nn.Linear(config.hidden, 2)
    modules = torch.nn.ModuleList([embed, lstm, head])
    optimizer = torch.optim.Adam(modules.parameters(), config.learning_rate, fused=fused)
    drop = functools.partial(torch.nn.functional.dropout, p=config.dropout)
    arrays = [
        tuple(torch.from_numpy(np.asarray(a)) for a in (b.inputs, b.targets, b.weights))
        for b in batches
    ]

    def run() -> float:
        values = []
        for ids, labels, weights in arrays:
            ids, labels, state = ids.long(), labels.long(), None
            for start in range(0, ids.shape[1], config.k1):
                part = slice(start, start + config.k1)
                vectors = embed(ids[:, part])
                keep = torch.rand(*vectors.shape[:2], 1) >= config.word_dropout
                out, state = lstm(drop(vectors * keep / (1 - config.word_dropout)), state)
                state = tuple(s.detach() for s in state)
                losses = torch.nn.functional.cross_entropy(
                    head(drop(out[:, -1])), labels[:, part][:, -1], reduction="none"
                )
                weight = weights[:, part][:, -1]
                loss = (losses * weight).sum() / weight.sum()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(modules.parameters(), config.clip)
                optimizer.step()
                values.append(loss.detach())
        return float(torch.stack(values).mean())

    return run
