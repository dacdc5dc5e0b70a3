"""Cores and modules of Haiku."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tbptt_jax.adapters.parts import Apply, peer, switches
from tbptt_jax.types import Carry, Model, Params, Tree

# What makes a module; Haiku's modules are made inside of a transformed function.
Make = Callable[[], Any]


def from_haiku(
    core: Make,
    *,
    encoder: Make | None = None,
    readout: Make | None = None,
    params: Params = None,
    inputs: Tree = None,
    seed: int = 0,
) -> tuple[Model, Params]:
    """A core of Haiku, with an encoder and a readout, as a `Model` and its parameters.

    Args:
      core: makes an `hk.RNNCore`: `lambda: hk.LSTM(32)`, say.
      encoder, readout: make modules, or functions, of one step, [B, K, ...] to [B, K, ...]; or
        None. If a call takes `is_training`, `training` or `train`, it is set; random numbers
        (`hk.next_rng_key`) are drawn in training only.
      params: {"encoder": ..., "core": ..., "readout": ...}, each what `init` of
        `hk.transform(lambda x: make()(x))` returns; those without parameters may be missing. None:
        they are initialized.
      inputs: with params=None: the inputs of a batch, [B, T, ...], or their
        `jax.ShapeDtypeStruct`s.
      seed: of the initialization.

    Returns:
      The functions and the parameters. Make the pair once: another one compiles new programs.

    Raises:
      TypeError: neither `params` nor `inputs`.
      ValueError: Haiku's, of a module with state (running statistics), which training by windows
        cannot update.
    """
    hk = peer("haiku")

    start = hk.transform(lambda rows: core().initial_state(rows))
    step = hk.transform(functools.partial(_one_step, core))
    layers = {
        name: None if make is None else hk.transform(functools.partial(_call, make))
        for name, make in (("encoder", encoder), ("readout", readout))
    }
    if params is None:
        if inputs is None:
            raise TypeError("from_haiku: params or inputs must be given, got neither")
        params = _initialize(start, step, layers, inputs, seed)

    def initialize_carry(params: Params, input_shape: tuple[int, ...]) -> Carry:
        rows = jax.tree.leaves(input_shape)[0]
        return start.apply(params.get("core", {}), None, rows)

    def random_step(params: Params, carry: Carry, x: Tree, rng: jax.Array) -> tuple[Carry, Tree]:
        return step.apply(params.get("core", {}), rng, True, carry, x)

    def layer(name: str) -> Apply:
        function = layers[name]
        if function is None:
            return lambda params, x, rng: x
        return lambda params, x, rng: function.apply(params.get(name, {}), rng, rng is not None, x)

    model = Model(
        initialize_carry,
        layer("encoder"),
        lambda params, carry, x: step.apply(params.get("core", {}), None, False, carry, x),
        layer("readout"),
    )
    if _takes_mode(core):
        model = model._replace(random_step=random_step)
    return model, params


def _call(make: Make, training: bool, *arguments: Tree) -> Tree:
    module = make()
    return module(*arguments, **switches(module, training))


def _one_step(core: Make, training: bool, carry: Carry, x: Tree) -> tuple[Carry, Tree]:
    y, carry = _call(core, training, x, carry)
    return carry, y


def _takes_mode(make: Make) -> bool:
    """Whether the call of a module takes a mode argument."""
    hk = peer("haiku")

    told: list[bool] = []
    hk.transform(lambda: told.append(bool(switches(make(), True)))).init(jax.random.key(0))
    return told[0]


def _initialize(start: Any, step: Any, layers: dict[str, Any], inputs: Tree, seed: int) -> Params:
    hk = peer("haiku")

    params: dict[str, Params] = {}
    keys = jax.random.split(jax.random.key(seed), 4)

    def init(part: str, function: Any, key: jax.Array, *arguments: Tree) -> Tree:
        if function is None:
            return arguments[-1]
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments)
        found = jax.jit(lambda key, zeros: function.init(key, False, *zeros))(key, zeros)
        if found:
            # A learnt initial state is in the core's own module.
            params[part] = hk.data_structures.merge(params.get(part, {}), found)
        return jax.eval_shape(lambda: function.apply(found, None, False, *zeros))

    xs = init("encoder", layers["encoder"], keys[0], inputs)
    rows, steps = jax.tree.leaves(xs)[0].shape[:2]
    learnt = start.init(keys[1], rows)
    if learnt:
        params["core"] = learnt
    carry = jax.eval_shape(lambda: start.apply(learnt, None, rows))
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), xs)
    _, y = init("core", step, keys[2], carry, x)
    ys = jax.tree.map(lambda y: jax.ShapeDtypeStruct((rows, steps, *y.shape[1:]), y.dtype), y)
    init("readout", layers["readout"], keys[3], ys)
    return params
