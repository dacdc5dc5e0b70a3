"""A bound on the compiled programs that a process holds.

On a CPU a program takes some 250 memory maps and 9 MB. Linux grants a process 65,530 maps, and XLA
crashes without them, as in a training whose batches have ever new lengths. A program that is
dropped is compiled again when it is needed, or read from JAX's persistent cache.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax

MANY, MOST = 64, 128  # programs: at the first number users are warned, at the second all go

# Any: JAX has no type for a jitted function that can drop its programs, nor for jit's options.
_functions: list[Any] = []
traced = {"ever": 0, "kept": 0}  # programs compiled so far, and those held now


def jit(function: Callable, **options: Any) -> Any:
    """`jax.jit`, with a count of the compiled programs."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _count()
        return function(*args, **kwargs)

    jitted = jax.jit(counted, **options)
    _functions.append(jitted)
    return jitted


def _count() -> None:
    traced["ever"] += 1
    traced["kept"] += 1
    if traced["ever"] == MANY:
        warnings.warn(
            f"tbptt_jax has compiled {MANY} programs, one for each plan, shape and dtype of a "
            f"batch; at {MOST} they are dropped, and compiled again when needed. Pad sequences to "
            "few lengths (data.bucketed_batches, data.pad), and make models, optimizers and losses "
            "once",
            stacklevel=2,
        )


def bound() -> None:
    """Drop the programs if there are too many; to be called before a function of `jit`."""
    if traced["kept"] >= MOST:
        clear()


def clear() -> None:
    """Drop all programs; they are compiled again when needed."""
    for function in _functions:
        function.clear_cache()
    traced["kept"] = 0
