"""The truth about truncated backpropagation through time, in NumPy float64.

Nothing here comes from the library, from JAX or from automatic differentiation: the adjoints are
written by hand and each step has its own copy of the parameters, so that every entry
G[t, s] = d l_t / d theta_s of the credit picture exists and can be summed as a scheme says.
Clarity comes before speed.

The network at each step is  encoder (linear) -> cell -> readout (linear) -> loss,  with parameters
laid out as flax nnx lays them out:

    {"encoder": {"kernel": [F, E], "bias": [E]},
     "core": {"dense_i": {...}, "dense_h": {...}, and perhaps a learnt initial carry},
     "readout": {"kernel": [H, C], "bias": [C]}}

`cell` is "rnn" (nnx.SimpleCell), "gru" (nnx.GRUCell) or "lstm" (nnx.OptimizedLSTMCell). A learnt
initial carry is core["initial"] [H], or core["initial_c"] and core["initial_h"] for the LSTM; it
is zero where absent. `loss` is "mse" (mean over the C features; targets [B, T, C]) or "xent"
(softmax cross-entropy; integer targets [B, T]). A carry that goes in or comes out has flax's
layout: h [B, H], or (c, h) for the LSTM.

A batch is anything with the attributes of `Batch`. Public docs count steps from 1; arrays are
indexed from 0, so step t is row t - 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Params = dict[str, Any]
State = tuple[Array, ...]  # a carry inside this file: always a tuple, the hidden state last

INITIAL = {"rnn": ("initial",), "gru": ("initial",), "lstm": ("initial_c", "initial_h")}


class Batch(NamedTuple):
    """inputs [B, T, F], targets [B, T, C] or [B, T]; mask, reset bool and weights float [B, T]."""

    inputs: Any
    targets: Any
    mask: Any = None
    reset: Any = None
    weights: Any = None


class Row(NamedTuple):
    """One step of a batch, with the defaults filled in and what cannot matter set to zero."""

    inputs: Array  # [B, F]
    target: Array  # [B, C] or [B]
    weight: Array  # [B], zero where masked
    mask: Array  # [B, 1]
    reset: Array  # [B, 1]


class Step(NamedTuple):
    """What one step of the forward pass leaves behind for its adjoint."""

    row: Row
    encoded: Array  # [B, E]
    start: State  # the carry that the cell saw, after any reset
    saved: State  # what the cell's adjoint needs
    hidden: Array  # [B, H], the cell's output, which the readout reads
    state: State  # the carry after the step, held where masked

    @property
    def carry(self) -> Any:
        """The carry after the step, in flax's layout."""
        return _flax_carry(self.state)


# --------------------------------------------------------------------------- the credit matrix


def intervals(k1: int, T: int) -> list[tuple[int, int]]:
    """The update clock: (previous end, end] for each update; the last one may be short."""
    return [(p, min(p + k1, T)) for p in range(0, T, k1)]


def credit(k1: int, k2: int, T: int, anchor: str = "update") -> Array:
    """W, bool [T, T]: W[t, s] is True exactly when loss t sends gradient to theta_s.

    "update": t in I_e and e - k2 < s <= t.   "loss": t in I_e and t - k2 < s <= t.
    """
    _check(k1, k2, anchor)
    W = np.zeros((T, T), dtype=bool)
    for previous, e in intervals(k1, T):
        for t in range(previous + 1, e + 1):
            for s in range(1, t + 1):
                W[t - 1, s - 1] = s > (e if anchor == "update" else t) - k2
    return W


def _check(k1: int, k2: int, anchor: str) -> None:
    if k1 < 1 or k2 < 1 or anchor not in ("update", "loss"):
        raise ValueError(f"not a truncation: k1={k1}, k2={k2}, anchor={anchor!r}")


# ------------------------------------------------------------------------------------- small tools


def _map(f: Callable, *trees: Any) -> Any:
    """Apply f leaf by leaf to nested dicts of one structure."""
    if isinstance(trees[0], Mapping):
        return {key: _map(f, *(tree[key] for tree in trees)) for key in trees[0]}
    return f(*trees)


def _float64(params: Any) -> Params:
    return _map(lambda leaf: np.array(leaf, dtype=np.float64), params)


def _accumulate(total: Params, part: Params, index: tuple[int, ...] = ()) -> None:
    """total[...][index] += part[...], for the leaves that part has."""
    for key, value in part.items():
        if isinstance(value, dict):
            _accumulate(total[key], value, index)
        else:
            total[key][index] += value


def _norm(tree: Params) -> float:
    squares: list[float] = []
    _map(lambda leaf: squares.append(float(np.sum(leaf**2))), tree)
    return float(np.sqrt(sum(squares)))


def _linear(params: Params, x: Array) -> Array:
    return x @ params["kernel"] + params.get("bias", 0.0)


def _linear_adjoint(params: Params, x: Array, d_out: Array) -> tuple[Params, Array]:
    grads = {"kernel": x.T @ d_out}
    if "bias" in params:
        grads["bias"] = d_out.sum(axis=0)
    return grads, d_out @ params["kernel"].T


def _flax_carry(state: State) -> Any:
    return state[0] if len(state) == 1 else state


def _state(carry: Any) -> State:
    parts = carry if isinstance(carry, tuple | list) else (carry,)
    return tuple(np.array(part, dtype=np.float64) for part in parts)


def _initial_state(cell: str, core: Params, size: int) -> State:
    shape = (size, core["dense_h"]["kernel"].shape[0])
    return tuple(np.broadcast_to(core.get(key, 0.0), shape) for key in INITIAL[cell])


def _rows(batch: Any, fresh: bool) -> list[Row]:
    """Cut a batch into steps. `fresh`: nothing came before, so the first step resets everyone."""
    inputs, targets = np.asarray(batch.inputs, np.float64), np.asarray(batch.targets)
    shape = inputs.shape[:2]
    mask = np.ones(shape, bool) if batch.mask is None else np.array(batch.mask, bool)
    weights = mask if batch.weights is None else batch.weights
    weights = np.where(mask, np.asarray(weights, np.float64), 0.0)
    reset = np.zeros(shape, bool) if _independent(batch) else np.array(batch.reset, bool)
    if fresh or _independent(batch):
        reset[:, 0] = True
    assert mask.shape == weights.shape == reset.shape == targets.shape[:2] == shape
    # Padding may hold anything, NaN or label -1; zeroing it keeps 0 * NaN out of the adjoints.
    inputs, targets = inputs.copy(), targets.copy()
    inputs[~mask] = 0.0
    targets[weights == 0.0] = 0
    return [
        Row(inputs[:, t], targets[:, t], weights[:, t], mask[:, t, None], reset[:, t, None])
        for t in range(shape[1])
    ]


def _independent(batch: Any) -> bool:
    return batch.reset is None or batch.reset is True


# ------------------------------------------------------------------------ cells and their adjoints


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # cannot overflow


def _cell(cell: str, xi: Array, hh: Array, state: State) -> tuple[State, State]:
    """One cell, given its projections xi = dense_i(x), hh = dense_h(h): (new state, saved)."""
    if cell == "rnn":
        h = np.tanh(xi + hh)
        return (h,), (h,)
    if cell == "gru":
        (xr, xz, xn), (hr, hz, hn) = np.split(xi, 3, axis=1), np.split(hh, 3, axis=1)
        r, z = _sigmoid(xr + hr), _sigmoid(xz + hz)
        n = np.tanh(xn + r * hn)
        return ((1.0 - z) * n + z * state[0],), (r, z, n, hn)
    if cell == "lstm":
        i, f, g, o = np.split(xi + hh, 4, axis=1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * state[0] + i * g
        return (c, o * np.tanh(c)), (i, f, g, o, np.tanh(c))
    raise ValueError(f"unknown cell {cell!r}")


def _cell_adjoint(cell: str, saved: State, state: State, d_new: State) -> tuple[Any, Any, State]:
    """(d_xi, d_hh, d_state), where d_state leaves out the path through hh."""
    if cell == "rnn":
        d_pre = d_new[0] * (1.0 - saved[0] ** 2)
        return d_pre, d_pre, (np.zeros_like(d_pre),)
    if cell == "gru":
        r, z, n, hn = saved
        d_n = d_new[0] * (1.0 - z) * (1.0 - n**2)
        d_z = d_new[0] * (state[0] - n) * z * (1.0 - z)
        d_r = d_n * hn * r * (1.0 - r)
        # The new-gate's recurrent part passes through r first, unlike its input part.
        d_xi, d_hh = np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, d_n * r])
        return d_xi, d_hh, (d_new[0] * z,)
    i, f, g, o, tanh_c = saved
    d_c = d_new[0] + d_new[1] * o * (1.0 - tanh_c**2)
    d_i, d_f = d_c * g * i * (1.0 - i), d_c * state[0] * f * (1.0 - f)
    d_g, d_o = d_c * i * (1.0 - g**2), d_new[1] * tanh_c * o * (1.0 - o)
    d_pre = np.hstack([d_i, d_f, d_g, d_o])
    return d_pre, d_pre, (d_c * f, np.zeros_like(d_c))


# --------------------------------------------------------------------------- forward and backward


def _unroll(cell: str, params: Sequence[Params], rows: Sequence[Row], state: State) -> list[Step]:
    """Run the steps from `state`, step s with its own parameters params[s]."""
    steps = []
    for p, row in zip(params, rows, strict=True):
        core, initial = p["core"], _initial_state(cell, p["core"], len(row.inputs))
        start = tuple(np.where(row.reset, i, c) for i, c in zip(initial, state, strict=True))
        encoded = _linear(p["encoder"], row.inputs)
        xi, hh = _linear(core["dense_i"], encoded), _linear(core["dense_h"], start[-1])
        new, saved = _cell(cell, xi, hh, start)
        state = tuple(np.where(row.mask, n, c) for n, c in zip(new, start, strict=True))
        steps.append(Step(row, encoded, start, saved, new[-1], state))
    return steps


def _loss(loss: str, readout: Params, step: Step) -> tuple[float, Array]:
    """The weighted loss of one step summed over the batch, and its gradient to the outputs."""
    outputs, row = _linear(readout, step.hidden), step.row
    if loss == "mse":
        assert outputs.shape == row.target.shape, (outputs.shape, row.target.shape)
        error = outputs - row.target
        values, d_outputs = np.mean(error**2, axis=1), 2.0 * error / error.shape[1]
    elif loss == "xent":
        assert row.target.shape == outputs.shape[:1], (outputs.shape, row.target.shape)
        at_label = np.arange(len(outputs)), row.target.astype(int)
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        values, d_outputs = -log_p[at_label], np.exp(log_p)
        d_outputs[at_label] -= 1.0
    else:
        raise ValueError(f"unknown loss {loss!r}")
    return float(np.sum(row.weight * values)), row.weight[:, None] * d_outputs


def _walk(
    cell: str, params: Params, steps: Sequence[Step], t: int, d_outputs: Array, first: int
) -> Iterator[tuple[int, Params, State]]:
    """From loss t back through steps t, t-1, ..., first.

    Yields (s, d l_t / d theta_s, d l_t / d carry after step s); at s = t the last is with respect
    to the cell's output, which the readout reads.
    """
    core = params["core"]
    readout, d_hidden = _linear_adjoint(params["readout"], steps[t].hidden, d_outputs)
    grads: Params = {"readout": readout}
    # A masked step's loss has no weight, so d_hidden is zero where the carry is held.
    d_state = (*(np.zeros_like(d_hidden) for _ in INITIAL[cell][1:]), d_hidden)
    for s in range(t, first - 1, -1):
        step, d_after = steps[s], d_state
        d_new = tuple(np.where(step.row.mask, d, 0.0) for d in d_state)
        d_held = tuple(np.where(step.row.mask, 0.0, d) for d in d_state)
        d_xi, d_hh, d_start = _cell_adjoint(cell, step.saved, step.start, d_new)
        dense_i, d_encoded = _linear_adjoint(core["dense_i"], step.encoded, d_xi)
        dense_h, d_h = _linear_adjoint(core["dense_h"], step.start[-1], d_hh)
        grads["encoder"], _ = _linear_adjoint(params["encoder"], step.row.inputs, d_encoded)
        d_start = (*d_start[:-1], d_start[-1] + d_h)
        d_start = tuple(d + held for d, held in zip(d_start, d_held, strict=True))
        grads["core"] = {"dense_i": dense_i, "dense_h": dense_h}
        # At a reset the cotangent leaves to this step's copy of the initial carry, and no further.
        for key, d in zip(INITIAL[cell], d_start, strict=True):
            if key in core:
                grads["core"][key] = np.where(step.row.reset, d, 0.0).sum(axis=0)
        yield s, grads, d_after
        grads = {}  # the readout belongs to step t alone
        d_state = tuple(np.where(step.row.reset, 0.0, d) for d in d_start)


def forward(
    cell: str, params: Params, inputs: Any, carry: Any = None, mask: Any = None, reset: Any = None
) -> list[Step]:
    """Run inputs [B, T, F] from `carry`; one `Step` per step, with `.hidden` [B, H], `.carry`.

    carry None: the initial carry. mask, reset bool [B, T]; None as in `Batch`.
    """
    rows = _rows(Batch(inputs, np.zeros(np.shape(inputs)[:2]), mask, reset), carry is None)
    return _forward(cell, _float64(params), rows, carry)


def _forward(cell: str, params: Params, rows: Sequence[Row], carry: Any) -> list[Step]:
    # Without a carry the first row resets everyone, so what stands before it is never read.
    core, size = params["core"], len(rows[0].inputs)
    state = _initial_state(cell, core, size) if carry is None else _state(carry)
    return _unroll(cell, [params] * len(rows), rows, state)


# ----------------------------------------------------------------------------- what tests compare


def per_step_gradients(
    cell: str, loss: str, params: Params, batch: Any, carry: Any = None
) -> tuple[Params, Array, Array]:
    """Every G[t, s] at fixed parameters; `carry` (None: the initial carry) is a constant.

    Returns (G, losses, weights). G has the structure of params with leaves [T, T, *leaf.shape]:
    G[t, s] = d (sum over the batch of w_t * l_t) / d theta_s, zero for s > t. losses [T]: those
    weighted sums. weights [T]: the sums over the batch of w_t (zero where masked).
    """
    params, rows = _float64(params), _rows(batch, carry is None)
    steps, T = _forward(cell, params, rows, carry), len(rows)
    G = _map(lambda leaf: np.zeros((T, T, *leaf.shape)), params)
    losses = np.zeros(T)
    for t in range(T):
        losses[t], d_outputs = _loss(loss, params["readout"], steps[t])
        for s, grads, _ in _walk(cell, params, steps, t, d_outputs, first=0):
            _accumulate(G, grads, (t, s))
    return G, losses, np.array([row.weight.sum() for row in rows])


def carry_gradients(
    cell: str, loss: str, params: Params, batch: Any, carry: Any = None
) -> tuple[Array, ...]:
    """Every w_t * d l_t / d carry_s; arguments as in `per_step_gradients`.

    Returns one array [T, T, B, H] for each part of the carry: [t, s] is with respect to the carry
    after step s, zero for s > t; at s = t, with respect to the cell's output.
    """
    params, rows = _float64(params), _rows(batch, carry is None)
    steps, T = _forward(cell, params, rows, carry), len(rows)
    result = tuple(np.zeros((T, T, *part.shape)) for part in steps[0].state)
    for t in range(T):
        _, d_outputs = _loss(loss, params["readout"], steps[t])
        for s, _, d_after in _walk(cell, params, steps, t, d_outputs, first=0):
            for array, part in zip(result, d_after, strict=True):
                array[t, s] = part
    return result


def gradient(
    cell: str,
    loss: str,
    params: Params,
    batch: Any,
    k1: int,
    k2: int,
    anchor: str = "update",
    carry: Any = None,
) -> tuple[Params, dict[str, float]]:
    """Sum of W * G over the total weight of the scored steps, at fixed parameters.

    Returns (grads, info): grads like params, zero if nothing is scored; info has `loss` (weighted
    mean over the scored steps, 0 if none), `weight` (scored) and `scored` (share of all weight).
    """
    G, losses, weights = per_step_gradients(cell, loss, params, batch, carry)
    W = credit(k1, k2, len(weights), anchor)
    is_scored = W.any(axis=1)
    info = _info(losses[is_scored].sum(), weights[is_scored].sum(), weights.sum())
    return _map(lambda g: np.tensordot(W, g, axes=2) / (info["weight"] or np.inf), G), info


def _info(loss_sum: float, scored: float, total: float) -> dict[str, float]:
    return {
        "loss": float(loss_sum / scored) if scored else 0.0,
        "weight": float(scored),
        "scored": float(scored / total) if total else 1.0,
    }


def train(
    cell: str,
    loss: str,
    params: Params,
    batches: Sequence[Any],
    k1: int,
    k2: int,
    anchor: str = "update",
    learning_rate: float = 0.1,
    carry: Any = None,
) -> tuple[Params, list[dict[str, float]], Any]:
    """The online algorithm with plain SGD, one window after another.

    Positions count steps through all batches: the carry at position q is the one after step q.
    The clock restarts with each batch. A batch with reset None is independent of what came before
    and lookback never reaches before it; any other batch continues the stream. A window is run
    with the current parameters from the carry most recently computed at its start, and the carries
    it computes replace the older ones, whether or not its losses have weight.

    Returns (params, updates, newest carry). updates: for each interval a dict of `loss`, `weight`
    and `scored` as in `gradient`, for that interval, and `grad_norm` (0 where no update was made).
    """
    _check(k1, k2, anchor)
    params, rows, updates = _float64(params), [], []
    kept: dict[int, State] = {} if carry is None else {0: _state(carry)}
    floor = 0  # lookback stops here: the start of the newest independent batch

    def run(start: int, end: int) -> list[Step]:
        steps = _unroll(cell, [params] * (end - start), rows[start:end], kept[start])
        kept.update({start + 1 + i: step.state for i, step in enumerate(steps)})
        return steps

    for batch in batches:
        offset = len(rows)
        rows += _rows(batch, fresh=offset not in kept)
        if offset not in kept or _independent(batch):
            floor = offset
            kept[offset] = _initial_state(cell, params["core"], len(rows[offset].inputs))
        for previous, end in intervals(k1, len(rows) - offset):
            p, e = offset + previous, offset + end
            w0 = max(e - k2 if anchor == "update" else p + 1 - k2, floor)
            if w0 > p:
                run(p, w0)  # k2 < k1: these steps only move the carry
            steps = run(w0, e)
            grads, loss_sum, weight = _map(np.zeros_like, params), 0.0, 0.0
            for t in range(max(p, w0), e):  # row t is step t + 1, of this interval
                value, d_outputs = _loss(loss, params["readout"], steps[t - w0])
                loss_sum, weight = loss_sum + value, weight + rows[t].weight.sum()
                first = w0 if anchor == "update" else max(w0, t + 1 - k2)
                for _, part, _ in _walk(cell, params, steps, t - w0, d_outputs, first - w0):
                    _accumulate(grads, part)
            info = _info(loss_sum, weight, sum(row.weight.sum() for row in rows[p:e]))
            grads = _map(lambda g, weight=weight: g / (weight or np.inf), grads)
            params = _map(lambda leaf, g: leaf - learning_rate * g, params, grads)
            updates.append(info | {"grad_norm": _norm(grads)})
    newest = _flax_carry(kept[len(rows)]) if len(rows) in kept else None
    return params, updates, newest
