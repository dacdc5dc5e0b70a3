"""The state of a training: parameters, optimizer, random key and stream."""

import collections
import dataclasses
import functools
import weakref
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer

from tbptt_jax.arguments import check_integer
from tbptt_jax.models.closed_over import LOSS_ADVICE, check_closed_over
from tbptt_jax.models.functional import Parts, check_functions, split
from tbptt_jax.models.sequence_model import SequenceModel
from tbptt_jax.training.optimizers import Accumulation, check_optimizer
from tbptt_jax.training.stream import Stream
from tbptt_jax.types import Array, LossFn, Model, Params, Tree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "opt_state", "step", "rng", "stream"),
    meta_fields=("functions", "optimizer", "loss", "to_module"),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a training carries from step to step, as one pytree; see `TrainState.create`.

    `train_step` donates it: use the state that it returns, and drop the one that you passed. Its
    arrays are deleted, wherever else they are held. Copy a state that you need later, for a target
    network or the best parameters so far, with `state.copy()`. Arrays that you put in with
    `dataclasses.replace` are copied and stay yours.

    Attributes:
      params: the parameters.
      opt_state: the optimizer's state.
      step: int32 [], updates made so far; it stays at the largest int32.
      rng: key that dropout draws from; None where the model draws nothing.
      stream: what the next batch of a stream resumes; None before the first batch.
      functions: the network as pure functions.
      optimizer: the optax transformation.
      loss: `(outputs, targets) -> losses [B, T]`.
      to_module: parameters to nnx module; None for a network given as pure functions.
    """

    params: Params
    opt_state: Tree
    step: jax.Array
    rng: jax.Array | None
    stream: Stream | None
    functions: Model
    optimizer: optax.GradientTransformation | Accumulation
    loss: LossFn
    to_module: Callable[[Params], nnx.Module] | None

    @classmethod
    def create(
        cls,
        model: SequenceModel | Model,
        optimizer: optax.GradientTransformation | Accumulation,
        loss: LossFn,
        *,
        params: Params = None,
        seed: int = 0,
    ) -> "TrainState":
        """A state before the first batch.

        Args:
          model: a `SequenceModel`, or pure functions together with `params`.
          optimizer: an optax transformation, or the result of `accumulate`. Its `update` gets the
            gradient and, by name, what line searches need: `value`, `grad` and `value_fn`, of the
            mean loss of the window. States that are to share compiled code need the same object.
          loss: `(outputs [B, T, ...], targets [B, T, ...]) -> losses [B, T]`, as
            `optax.losses.softmax_cross_entropy_with_integer_labels`.
          params: the parameters, when `model` is a `Model`; copied.
          seed: of the dropout.

        Returns:
          The state. It holds copies: `train_step` donates nothing that you pass here.

        Raises:
          TypeError: a wrong kind of model, optimizer, loss or seed; params missing, superfluous or
            not floating point; or a loss, or a function of a `Model`, that reaches an nnx layer
            which would not be trained.
          ValueError: an optimizer that needs more than `train_step` gives it, such as the gradient
            of each example or another form of the parameters.
        """
        if not callable(loss):
            raise TypeError(
                "TrainState.create: loss must be a function (outputs, targets) -> losses [B, T], "
                f"got {type(loss).__name__}"
            )
        check_closed_over("TrainState.create: loss", loss, LOSS_ADVICE)
        seed = check_integer("TrainState.create", "seed", seed)
        parts = _parts(model, params)
        check_optimizer(optimizer, parts.params)
        state = cls(
            params=parts.params,
            # An optimizer may hand the same array to two places, which cannot both be donated.
            opt_state=_copy(optimizer.init(parts.params)),
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key(seed) if parts.draws else None,
            stream=None,
            functions=parts.functions,
            optimizer=optimizer,
            loss=loss,
            to_module=parts.to_module,
        )
        return claim(state)

    def copy(self) -> "TrainState":
        """A state with copies of the arrays, which training with this one does not delete.

        Raises:
          ValueError: this state was donated.
        """
        check_state(self)
        return claim(_copy(self))

    def restart(self) -> "TrainState":
        """A state whose next batch starts new streams; all else is this state's."""
        return dataclasses.replace(self, stream=None)

    def model(self) -> nnx.Module:
        """The nnx model with copies of the trained parameters, in evaluation mode.

        Raises:
          TypeError: the state was made from pure functions; use `state.params` with them.
        """
        if self.to_module is None:
            raise TypeError(
                "TrainState.model: this state was made from pure functions, there is no nnx "
                "module; use state.params"
            )
        return self.to_module(self.params)


def _parts(model: SequenceModel | Model, params: Params | None) -> Parts:
    """The functions and parameters of a network."""
    if not isinstance(model, Model):
        if params is not None:
            raise TypeError(
                "TrainState.create: params are the SequenceModel's own; give them only with a "
                "Model of pure functions"
            )
        return split(model)
    if params is None:
        raise TypeError("TrainState.create: params must be given with a Model, got None")
    check_functions(model)
    params = jax.tree.map_with_path(_parameter, params)
    return Parts(model, params, to_module=None, draws=True)


def _parameter(path: jax.tree_util.KeyPath, value: Array | float) -> jax.Array:
    """A copy of a parameter, which must be floating point to have a gradient."""
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), np.inexact):
        raise TypeError(
            f"TrainState.create: params{jax.tree_util.keystr(path)} must be floating point, got "
            f"{getattr(value, 'dtype', type(value).__name__)}; make what is not trained part of "
            "the functions"
        )
    return jnp.array(value, copy=True)


def _copy(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.array(a, copy=True), tree)


# The arrays of the latest states that the library made, by identity: `train_step` may donate them.
_ours: collections.deque[dict[int, weakref.ref[jax.Array]]] = collections.deque(maxlen=256)


def claim(state: TrainState) -> TrainState:
    """Mark a state whose arrays the library made, and return it."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if not isinstance(leaf, Tracer)]
    _ours.append(dict(zip(map(id, leaves), map(weakref.ref, leaves), strict=True)))
    # `own` reads this mark. `dataclasses.replace` drops it, since it makes another state.
    object.__setattr__(state, "_claimed", True)
    return state


def own(state: TrainState) -> TrainState:
    """The state with copies of the arrays that a user put in, which must not be donated."""
    if vars(state).get("_claimed"):
        return state

    def mine(leaf: Array) -> Array:
        known = (refs[id(leaf)] for refs in _ours if id(leaf) in refs)
        if isinstance(leaf, Tracer) or any(ref() is leaf for ref in known):
            return leaf
        return jnp.array(leaf, copy=True)

    return jax.tree.map(mine, state)


def check_state(state: TrainState, *fields: str) -> None:
    """Raise unless this is a state whose fields were not donated.

    Args:
      state: the state.
      fields: names of the fields to check; none: all of them.

    Raises:
      TypeError: it is no state.
      ValueError: one of the fields has an array that is deleted.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be a tbptt_jax.TrainState, got {type(state).__name__}; make it with "
            "TrainState.create, and continue with the state that train_step returns"
        )
    for field in fields or ("params", "opt_state", "step", "rng", "stream"):
        for leaf in jax.tree.leaves(getattr(state, field)):
            is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
            if is_array and leaf.is_deleted():
                raise ValueError(
                    f"state.{field} was given to train_step before, which donates it; continue "
                    "with the state that it returned: state, metrics = train_step(state, batch, "
                    "truncation), and keep state.copy() of one that you need later"
                )
