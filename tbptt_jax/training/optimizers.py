"""Updates: of one window or several, with any optax transformation."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tbptt_jax.arguments import check_count, first_line
from tbptt_jax.sums import Mean, wide, widest
from tbptt_jax.training.windows import Scored
from tbptt_jax.types import Params, Tree
from tbptt_jax.validation.shapes import Shapes


class Learner(NamedTuple):
    """What an update changes.

    Attributes:
      params: the parameters.
      opt_state: the optimizer's state.
      step: int32 [], updates made so far.
    """

    params: Params
    opt_state: Tree
    step: jax.Array


class Accumulated(NamedTuple):
    """The state of an `Accumulation`.

    Attributes:
      inner: the state of the optimizer.
      mean: of the gradients and losses since its last update, by the weight of their losses.
      done: int32 []; windows or batches since then.
    """

    inner: Tree
    mean: Mean
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class Accumulation:
    """An optimizer that makes one update of several windows or batches; see `accumulate`."""

    optimizer: optax.GradientTransformation
    windows: int | None
    batches: int | None

    def init(self, params: Params) -> Accumulated:
        """The state before the first window."""
        nothing = Mean.of_nothing((params, jnp.zeros((), _value_dtype(params))))
        return Accumulated(self.optimizer.init(params), nothing, jnp.zeros((), jnp.int32))

    def update(self, learner: Learner, every: int) -> Learner:
        """Count one window or batch, and make the update if it is the last of so many."""
        state: Accumulated = learner.opt_state
        state = state._replace(done=state.done + 1)
        due = (state.done >= every) & (state.mean.weight > 0)
        counted = learner._replace(opt_state=state)
        return jax.lax.cond(due, self._apply, lambda same: same, counted)

    def _apply(self, learner: Learner) -> Learner:
        """Make the update, and start the next mean."""
        state: Accumulated = learner.opt_state
        grads, value = state.mean.tree
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, learner.params)
        inner = learner._replace(opt_state=state.inner)
        after = _update(self.optimizer, inner, grads, value=value, grad=grads)
        nothing = jax.tree.map(jnp.zeros_like, (state.mean, state.done))
        return after._replace(opt_state=Accumulated(after.opt_state, *nothing))


def accumulate(
    optimizer: optax.GradientTransformation,
    *,
    windows: int | None = None,
    batches: int | None = None,
) -> Accumulation:
    """One update of an optimizer for several windows, or batches, instead of one for each.

    The update takes the mean of all losses since the last one, by their weights: its gradient is
    that of one window with all of them, also where windows are short or padded. `optax.MultiSteps`
    takes the mean of the windows' means. Windows without losses and windows that are not finite do
    not count; `TrainState.step` counts updates.

    Args:
      optimizer: an optax transformation.
      windows: how many scored windows make an update; or
      batches: how many calls of `train_step`, whatever their number of windows.

    Returns:
      What `TrainState.create` takes as its optimizer.

    Raises:
      TypeError: none of the two is given, or both; or not as an integer.
      ValueError: it is below 1.

    Examples:
      >>> import optax
      >>> optimizer = accumulate(optax.adam(1e-3), windows=4)
    """
    if (windows is None) == (batches is None):
        raise TypeError(
            f"accumulate: give windows or batches, got windows={windows}, batches={batches}"
        )
    for name, value in (("windows", windows), ("batches", batches)):
        if value is not None:
            check_count("accumulate", name, value)
    return Accumulation(optimizer, windows, batches)


def learn(
    optimizer: optax.GradientTransformation | Accumulation, learner: Learner, found: Scored
) -> Learner:
    """The learner after a window."""
    dtype = _value_dtype(learner.params)
    value = found.mean.astype(dtype)
    if not isinstance(optimizer, Accumulation):

        def mean_at(params: Params) -> jax.Array:
            return found.mean_at(params).astype(dtype)

        extra = {"value": value, "grad": found.grads, "value_fn": mean_at}
        return _update(optimizer, learner, found.grads, **extra)
    state: Accumulated = learner.opt_state
    mean = state.mean.add((found.grads, value), found.weight)
    learner = learner._replace(opt_state=state._replace(mean=mean))
    return learner if optimizer.windows is None else optimizer.update(learner, optimizer.windows)


def learn_at_batch_end(
    optimizer: optax.GradientTransformation | Accumulation, learner: Learner
) -> Learner:
    """The learner after a batch."""
    if isinstance(optimizer, Accumulation) and optimizer.batches is not None:
        return optimizer.update(learner, optimizer.batches)
    return learner


def _update(
    optimizer: optax.GradientTransformation,
    learner: Learner,
    grads: Params,
    **extra: Tree | Callable,
) -> Learner:
    params, opt_state, step = learner
    update = optax.with_extra_args_support(optimizer).update
    known = inspect.signature(update).parameters
    if not any(p.kind == p.VAR_KEYWORD for p in known.values()):
        extra = {name: value for name, value in extra.items() if name in known}
    updates, opt_state = update(grads, opt_state, params, **extra)
    params = optax.apply_updates(params, updates)
    # The count stays where it would overflow.
    return Learner(params, opt_state, jnp.asarray(optax.safe_increment(step)))


def _value_dtype(params: Params) -> jnp.dtype:
    """The dtype of the loss that an optimizer gets: it holds numbers of the parameters' dtypes."""
    return wide(jnp.finfo(widest(*(p.dtype for p in jax.tree.leaves(params)))).dtype)


def check_optimizer(optimizer: optax.GradientTransformation | Accumulation, params: Params) -> None:
    """Raise unless `train_step` can make updates with this optimizer.

    Raises:
      TypeError: it is no optax transformation.
      ValueError: it fails on the arguments that `train_step` passes.
    """
    inner = _inner(optimizer)
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            "TrainState.create: optimizer must be an optax transformation, for instance "
            f"optax.adam(1e-3), got {type(inner).__name__}"
        )
    _try_optimizer(optimizer, Shapes.of(params))


@functools.lru_cache(maxsize=64)
def _try_optimizer(
    optimizer: optax.GradientTransformation | Accumulation, of_params: Shapes
) -> None:
    """Trace an update; nothing is computed."""
    params = of_params.tree()
    name = _name(_inner(optimizer).update)

    def one(params: Params) -> tuple[tuple, tuple]:
        def mean_at(params: Params) -> jax.Array:
            return optax.tree.norm(params).astype(dtype)

        dtype = _value_dtype(params)
        grads, one = jax.tree.map(jnp.ones_like, params), jnp.ones((), dtype)
        state = optimizer.init(params)
        learner = Learner(params, state, jnp.zeros((), jnp.int32))
        after = learn_at_batch_end(
            optimizer, learn(optimizer, learner, Scored(one, one, grads, mean_at))
        )
        return (params, state), after[:2]

    try:
        before, after = jax.eval_shape(one, params)
    except Exception as error:  # whatever an optimizer makes of arguments that it was not made for
        raise ValueError(
            f"TrainState.create: optimizer {name} fails: {first_line(error)}; train_step "
            "gives it the gradient of the mean loss, the parameters and, by name, value, grad and "
            "value_fn (value and grad with accumulate); take one that needs no more"
        ) from error
    if Shapes.of(before) != Shapes.of(after):
        raise ValueError(
            f"TrainState.create: optimizer {name} changes the shapes or dtypes of its state or of "
            "the parameters in an update; take one that keeps them"
        )


def _inner(
    optimizer: optax.GradientTransformation | Accumulation,
) -> optax.GradientTransformation:
    """The transformation that makes the updates."""
    return optimizer.optimizer if isinstance(optimizer, Accumulation) else optimizer


def _name(update: Callable) -> str:
    """The name of a transformation in optax, or of those in a chain, by its update function."""
    within = inspect.getclosurevars(update).nonlocals if inspect.isfunction(update) else {}
    if "update_fns" in within:
        return f"chain({', '.join(map(_name, within['update_fns']))})"
    if "tx" in within:  # of optax.with_extra_args_support
        return _name(within["tx"].update)
    return getattr(update, "__qualname__", type(update).__name__).split(".")[0]
