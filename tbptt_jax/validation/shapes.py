"""The shapes of what a model and a loss make of a batch. Functions are traced, nothing is run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from tbptt_jax.arguments import first_line
from tbptt_jax.cells.scan import check_pair, step_shape
from tbptt_jax.estimators.window import check_encoded, check_initial, check_losses, check_outputs
from tbptt_jax.types import Carry, LossFn, Model, Tree


class Shapes(NamedTuple):
    """The structure of a pytree, and shape and dtype of each leaf: a key for a cache."""

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, tree: Tree) -> "Shapes":
        """The shapes of a pytree of arrays."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple([(x.shape, x.dtype) for x in leaves]))

    def tree(self) -> Tree:
        """The pytree, with `jax.ShapeDtypeStruct`s for arrays."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.leaves]
        return self.structure.unflatten(leaves)

    def __str__(self) -> str:
        return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in self.leaves)


class Forms(NamedTuple):
    """What a model makes of a batch, as pytrees of `jax.ShapeDtypeStruct`s.

    Attributes:
      carry: the initial carry, [B, ...].
      ys: the core's outputs, [B, T, ...].
      outputs: the readout's, [B, T, ...].
    """

    carry: Carry
    ys: Tree
    outputs: Tree


def with_leading(leading: tuple[int, ...], tree: Tree) -> Tree:
    """Shapes [B, T, ...] with other sizes in the place of B and T."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[2:]), x.dtype), tree)


@functools.lru_cache(maxsize=256)
def model_forms(model: Model, of_params: Shapes, of_inputs: Shapes) -> Forms:
    """Trace a model on inputs [B, T, ...]; raise if its parts do not fit them or each other.

    Raises:
      TypeError: a step does not return a carry and an output.
      ValueError: a part fails on these shapes, or returns arrays of another leading shape.
    """
    params, inputs = of_params.tree(), of_inputs.tree()

    def part(name: str, function: Callable, *args: Tree) -> Tree:
        try:
            return jax.eval_shape(function, *args)
        except Exception as error:  # whatever Flax, JAX or a user's function makes of a shape
            found = f"Batch: inputs {of_inputs} fail in the model's encoder"
            if name != "encoder":
                found = f"model: the {name} fails on {Shapes.of(args[1:])}"
            raise ValueError(
                f"{found}: {first_line(error)}; inputs, encoder, core and readout must fit each "
                "other"
            ) from error

    xs = part("encoder", lambda p, x: model.encode(p, x, None), params, inputs)
    check_encoded(xs, inputs)
    shape = step_shape(xs)
    carry = part("initialize_carry", lambda p: model.initialize_carry(p, shape), params)
    check_initial(carry, shape)
    rows, length = jax.tree.leaves(xs)[0].shape[:2]
    after = part("core", model.step, params, carry, with_leading((rows,), xs))
    check_pair(after)
    ys = jax.tree.map(
        lambda y: jax.ShapeDtypeStruct((y.shape[0], length, *y.shape[1:]), y.dtype), after[1]
    )
    outputs = part("readout", lambda p, y: model.readout(p, y, None), params, ys)
    check_outputs(outputs, inputs)
    return Forms(carry, ys, outputs)


@functools.lru_cache(maxsize=256)
def check_loss_form(name: str, loss: LossFn, outputs: Shapes, targets: Shapes) -> None:
    """Raise unless a loss, or a metric, returns a number for every step, [B, T].

    Raises:
      TypeError: it returns no array, or the loss is not floating point.
      ValueError: it fails on these shapes, or returns another shape than [B, T].
    """
    try:
        losses = jax.eval_shape(loss, outputs.tree(), targets.tree())
    except Exception as error:  # whatever a user's function makes of a shape
        raise ValueError(
            f"{name} fails on outputs {outputs} and targets {targets}: {first_line(error)}; it is "
            "called as (outputs, targets) -> losses [B, T]"
        ) from error
    check_losses(name, losses, targets.leaves[0][0][:2])
    _check_no_broadcast(name, loss, outputs, targets)


def _check_no_broadcast(name: str, loss: LossFn, outputs: Shapes, targets: Shapes) -> None:
    """Raise if [B, T, 1] against [B, T] is a loss of [B, T] only because B is 1 or T.

    A loss of single steps takes any B and T; one of arrays that broadcast does not take these.
    """
    of_5_and_7 = [with_leading((5, 7), shapes.tree()) for shapes in (outputs, targets)]
    try:
        if jax.eval_shape(loss, *of_5_and_7).shape == (5, 7):
            return
        reason = "its shape depends on B and T"
    except Exception as error:  # whatever a user's function makes of a shape
        reason = first_line(error)
    try:
        with jax.numpy_rank_promotion("raise"):
            jax.eval_shape(loss, outputs.tree(), targets.tree())
    except Exception:  # a loss of arrays of this B and T alone does not promote ranks
        raise ValueError(
            f"{name} broadcasts outputs {outputs} against targets {targets}: {reason}; give both "
            "the same shape, for instance lambda y, t: optax.squared_error(y[..., 0], t)"
        ) from None
