"""PyTorch's networks, held to PyTorch itself in float64: values, gradients and updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt_jax as tbptt
from tbptt_jax.adapters import from_torch, to_torch

torch = pytest.importorskip("torch", reason="only with [adapters]")
nn = torch.nn

B, T, WORDS, FEATURES, HIDDEN, CLASSES = 3, 6, 11, 4, 5, 6
RNNS = {
    "lstm": lambda **more: nn.LSTM(FEATURES, HIDDEN, **more),
    "gru": lambda **more: nn.GRU(FEATURES, HIDDEN, **more),
    "tanh": lambda **more: nn.RNN(FEATURES, HIDDEN, **more),
    "relu": lambda **more: nn.RNN(FEATURES, HIDDEN, nonlinearity="relu", **more),
    "projected": lambda **more: nn.LSTM(FEATURES, HIDDEN, proj_size=2, **more),
}


def network(kind, seed=0, **more):
    torch.manual_seed(seed)
    rnn = RNNS[kind](**more).double()
    width = 2 if kind == "projected" else HIDDEN
    encoder = nn.Embedding(WORDS, FEATURES, padding_idx=0).double()
    readout = nn.Sequential(nn.Linear(width, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES))
    return {"rnn": rnn, "encoder": encoder, "readout": readout.double()}


def batch(marks=(), seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        "mask": rng.random((B, T)) < 0.7,
        "reset": rng.random((B, T)) < 0.3,
        "weights": rng.random((B, T)),
    }
    chosen = {name: arrays[name] for name in marks}
    return tbptt.Batch(rng.integers(0, WORDS, (B, T)), rng.integers(0, CLASSES, (B, T)), **chosen)


def states(rnn, rows):
    """PyTorch's initial state, a list of arrays [layers, B, features]."""
    layers = rnn.num_layers
    widths = [rnn.proj_size or rnn.hidden_size] + [rnn.hidden_size] * (rnn.mode == "LSTM")
    return [torch.zeros(layers, rows, width, dtype=torch.float64) for width in widths]


def torch_steps(parts, state, inputs, mask, reset):
    """Outputs [B, N, ...] and the last state, one step after the other."""
    found = []
    x = parts["encoder"](torch.as_tensor(inputs))
    for t in range(x.shape[1]):
        state = [torch.where(torch.as_tensor(reset[:, t, None]), 0.0, s) for s in state]
        given = tuple(state) if len(state) == 2 else state[0]
        y, new = parts["rnn"](x[:, t][None], given)
        new = list(new) if isinstance(new, tuple) else [new]
        exists = torch.as_tensor(mask[:, t, None])
        state = [torch.where(exists, a, b) for a, b in zip(new, state, strict=True)]
        found.append(parts["readout"](y[0]))
    return torch.stack(found, 1), state


def marks_of(batch):
    ones = np.ones((B, T), bool)
    mask = ones if batch.mask is None else batch.mask
    starts = ~ones
    starts[:, 0] = True
    reset = starts if batch.reset is None else batch.reset
    weights = mask * (1.0 if batch.weights is None else batch.weights)
    return mask, reset, weights


def torch_updates(parts, batch, k, optimizer):
    """TBPTT(k, k) by hand: the loss of each window, after which the parameters move."""
    mask, reset, weights = marks_of(batch)
    state, losses = states(parts["rnn"], B), []
    for start in range(0, T, k):
        window = np.s_[:, start : start + k]
        optimizer.zero_grad()
        outputs, state = torch_steps(
            parts, state, batch.inputs[window], mask[window], reset[window]
        )
        each = nn.functional.cross_entropy(
            outputs.flatten(0, 1),
            torch.as_tensor(batch.targets[window]).flatten(),
            reduction="none",
        )
        w = torch.as_tensor(weights[window]).flatten()
        loss = (each * w).sum() / w.sum()
        loss.backward()
        optimizer.step()
        state = [s.detach() for s in state]
        losses.append(loss.item())
    return losses


def trainable(parts):
    seen = {}
    for module in parts.values():
        for parameter in module.parameters():
            seen[id(parameter)] = parameter
    return list(seen.values())


def state_of(parts, optimizer, **more):
    model, params = from_torch(**parts, **more)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optimizer, loss, params=params)


def same(params, parts, atol=1e-12):
    for part, arrays in params.items():
        theirs = dict(parts[part].named_parameters())
        for name, array in arrays.items():
            np.testing.assert_allclose(
                array, theirs[name].detach().numpy(), atol=atol, err_msg=f"{part}.{name}"
            )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", RNNS)
def test_outputs_are_pytorch_s(kind, layers):
    parts, b = network(kind, num_layers=layers), batch()
    state = state_of(parts, optax.sgd(0.1))
    x = parts["encoder"](torch.as_tensor(b.inputs)).transpose(0, 1)
    outputs = parts["readout"](parts["rnn"](x)[0].transpose(0, 1))
    np.testing.assert_allclose(tbptt.predict(state, b), outputs.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("marks", [(), ("mask", "reset", "weights")])
@pytest.mark.parametrize("kind", RNNS)
def test_an_update_is_pytorch_s(kind, marks):
    parts, b = network(kind, num_layers=2), batch(marks)
    state = state_of(parts, optax.sgd(0.5))
    start = jax.tree.map(np.array, state.params)
    state, metrics = tbptt.train_step(state, b, tbptt.Truncation(3, 3))
    losses = torch_updates(parts, b, 3, torch.optim.SGD(trainable(parts), 0.5))
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-10)
    same(state.params, parts, 1e-11)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-6
    # The row of padding is not trained.
    np.testing.assert_array_equal(
        state.params["encoder"]["weight"][0], start["encoder"]["weight"][0]
    )


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_adam_moves_two_biases_as_pytorch_does(kind):
    parts, b = network(kind), batch()
    state = state_of(parts, optax.adam(1e-2))
    state, _ = tbptt.train_step(state, b, tbptt.Truncation(3, 3))
    torch_updates(parts, b, 3, torch.optim.Adam(trainable(parts), 1e-2))
    same(state.params, parts, 1e-7)  # where epsilon is added differs


@pytest.mark.parametrize("kind", RNNS)
def test_folded_biases_give_the_same_outputs_and_half_the_step(kind):
    parts, b = network(kind, num_layers=2), batch(("mask", "reset"))
    kept, folded = (state_of(parts, optax.sgd(0.5), fold_biases=f) for f in (False, True))
    assert len(jax.tree.leaves(folded.params)) < len(jax.tree.leaves(kept.params)) + (kind == "gru")
    np.testing.assert_allclose(tbptt.predict(folded, b), tbptt.predict(kept, b), atol=1e-12)
    plan = tbptt.Truncation(3, 5)
    a, c = (tbptt.gradient(state, b, plan)["rnn"] for state in (kept, folded))
    for layer in range(2):
        np.testing.assert_allclose(c[f"bias_l{layer}"], a[f"bias_ih_l{layer}"], atol=1e-12)
        if kind == "gru":
            n = a[f"bias_hh_l{layer}"][2 * HIDDEN :]
            np.testing.assert_allclose(c[f"bias_hn_l{layer}"], n, atol=1e-12)
    # The sum of two biases moves twice as far.
    assert np.abs(c["bias_l0"]).max() > 1e-4


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", RNNS)
def test_trained_weights_go_back(kind, fold):
    parts, b = network(kind, num_layers=2), batch()
    state = state_of(parts, optax.sgd(0.5), fold_biases=fold)
    state, _ = tbptt.train_step(state, b, tbptt.Truncation(3, 5))
    others = network(kind, seed=1, num_layers=2)
    for target in (parts, others):
        to_torch(state.params, **target)
        outputs, _ = torch_steps(target, states(target["rnn"], B), b.inputs, *marks_of(b)[:2])
        np.testing.assert_allclose(tbptt.predict(state, b), outputs.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru", "relu"])
def test_every_plan_of_a_fused_layer_has_the_gradient_of_its_step(kind):
    parts, b = network(kind, num_layers=2), batch(("mask", "reset"))
    model, params = from_torch(**parts)
    tbptt.check_unroll(model, params, b.inputs)


def test_dropout_is_between_the_layers_and_in_training_alone():
    parts, b = network("lstm", num_layers=3, dropout=0.4), batch()
    model, params = from_torch(**parts)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    window = tbptt.Window(jnp.asarray(b.inputs), jnp.asarray(b.targets))
    rng = jax.random.key(1)
    value, grads = tbptt.window_value_and_grad(model, loss, params, None, window, rng=rng)
    encode_rng, _ = jax.random.split(rng)
    none, *factors = model.encode(params, b.inputs, encode_rng).factors
    assert none is None
    noise = [torch.as_tensor(np.array(factor)) for factor in factors]
    assert [set(np.unique(f.numpy())) for f in noise] == [{0, 1 / 0.6}] * 2
    x = parts["encoder"](torch.as_tensor(b.inputs)).transpose(0, 1)
    for layer in range(3):
        single = nn.LSTM(x.shape[-1], HIDDEN).double()
        named = {
            name.replace("_l0", f"_l{layer}"): parameter
            for name, parameter in single.named_parameters()
        }
        own = dict(parts["rnn"].named_parameters())
        arrays = {name.replace(f"_l{layer}", "_l0"): own[name] for name in named}
        x = torch.func.functional_call(single, arrays, (x,))[0]
        x = x * noise[layer].transpose(0, 1) if layer < 2 else x
    outputs = parts["readout"](x.transpose(0, 1))
    total = nn.functional.cross_entropy(
        outputs.flatten(0, 1), torch.as_tensor(b.targets).flatten(), reduction="sum"
    )
    total.backward()
    np.testing.assert_allclose(value.loss, total.item(), rtol=1e-12)
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(grads[part][name], parameter.grad.numpy(), atol=1e-10)


def test_a_tied_weight_is_one_parameter_and_a_frozen_one_none():
    torch.manual_seed(0)
    encoder, rnn, readout = nn.Embedding(WORDS, FEATURES), nn.GRU(FEATURES, FEATURES), nn.Linear(
        FEATURES, WORDS
    )  # fmt: skip
    readout.weight = encoder.weight
    rnn.weight_hh_l0.requires_grad_(False)
    parts = {"encoder": encoder.double(), "rnn": rnn.double(), "readout": readout.double()}
    rng = np.random.default_rng(0)
    b = tbptt.Batch(rng.integers(0, WORDS, (B, T)), rng.integers(0, WORDS, (B, T)))
    state = state_of(parts, optax.sgd(0.5))
    assert list(state.params["readout"]) == ["bias"]
    assert "weight_hh_l0" not in state.params["rnn"]
    frozen = rnn.weight_hh_l0.detach().clone()
    state, _ = tbptt.train_step(state, b, tbptt.Truncation(3, 3))
    torch_updates(parts, b, 3, torch.optim.SGD(trainable(parts), 0.5))
    same(state.params, parts, 1e-11)
    encoder.weight.data.zero_()
    to_torch(state.params, **parts)
    np.testing.assert_array_equal(readout.weight.detach(), state.params["encoder"]["weight"])
    assert torch.equal(rnn.weight_hh_l0, frozen)


def test_parameters_are_copies_and_the_layout_is_pytorch_s():
    parts = network("lstm", bias=False)
    _, params = from_torch(**parts)
    assert {part: set(arrays) for part, arrays in params.items()} == {
        part: set(module.state_dict()) for part, module in parts.items()
    }
    before = np.array(params["rnn"]["weight_ih_l0"])
    parts["rnn"].weight_ih_l0.data.zero_()
    np.testing.assert_array_equal(params["rnn"]["weight_ih_l0"], before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rnn": nn.Linear(2, 2)}, TypeError, "rnn must be an nn.LSTM, nn.GRU or nn.RNN, got Lin"),
        ({"rnn": nn.LSTM(4, 5, bidirectional=True)}, ValueError, "reads the future"),
        ({"rnn": nn.LSTM(4, 5).half()}, TypeError, "rnn.weight_ih_l0 must be float32 or float64"),
        ({"readout": nn.Sequential(nn.BatchNorm1d(5))}, TypeError, r"readout\[0\] must be made of"),
        ({"readout": nn.Softmax(1)}, ValueError, "readout: Softmax must have dim=-1, got 1"),
        ({"readout": nn.LayerNorm((2, 5))}, ValueError, "must normalize the last axis alone"),
        ({"encoder": nn.Embedding(5, 4, max_norm=1.0)}, ValueError, "must have max_norm=None"),
    ],
)
def test_what_is_not_supported_is_named(change, error, message):
    with pytest.raises(error, match=message):
        from_torch(**{**network("lstm"), **change})


def test_parameters_of_other_modules_are_refused():
    _, params = from_torch(**network("lstm"))
    with pytest.raises(ValueError, match=r"with rnn.bias_hh_l1 of shape \[20\], got \(none\)"):
        to_torch(params, **network("lstm", num_layers=2))
