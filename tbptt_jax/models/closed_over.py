"""Functions that reach a layer which is not an argument: its parameters would never be trained.

A function is searched as Python would run it: its closure, its defaults, the globals that its code
reads, the function that it wraps, and those attributes of plain objects that the searched code
names.
"""

import collections
import contextlib
import dis
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx

# Their globals are many, and hold no layers of a user's.
_LIBRARIES = {
    *("builtins", "flax", "functools", "jax", "jaxlib", "keras", "math", "numpy", "optax"),
    *("torch", "typing"),
}
# Objects of these hold no nnx layers, and reach thousands of others: a search takes minutes.
_PEERS = {"haiku", "keras", "torch"}
_PLAIN = (
    *(str, bytes, bool, int, float, complex, type(None), range, slice, np.ndarray, np.generic),
    *(np.dtype, jax.Array, jax.ShapeDtypeStruct, nnx.GraphDef),
)
_COLLECTIONS = list, tuple, set, frozenset, collections.deque
_GLOBAL_READS = "LOAD_GLOBAL", "LOAD_NAME"
_ATTRIBUTE_READS = "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"
# Methods that are called without being named, and the function that a decorated one holds.
_CALLED = {"__call__", "initialize_carry", "unroll", "__wrapped__"}
LOSS_ADVICE = (
    "put what is to be trained into the model, and pass constants as arrays: inside the loss "
    "nnx.merge(graph, arrays), with graph, state = nnx.split(layer) and arrays = "
    "nnx.to_pure_dict(state)"
)
# A search of more objects has left the function's surroundings.
_MOST = 50_000
# A name for the message, and the value.
Named: TypeAlias = tuple[str, Any]


def check_closed_over(owner: str, function: object, advice: str) -> None:
    """Raise if a function reaches an nnx module or variable that is not one of its arguments.

    Args:
      owner: how the message names the function, for instance "SequenceModel: readout".
      function: a function, or another callable object.
      advice: what to do, the end of the message.

    Raises:
      TypeError: it does.
    """
    _raise_if_found(owner, lambda names: [("its own parameters", function)], advice)


def check_module(owner: str, module: nnx.Module, advice: str) -> None:
    """Check the methods of a module and the functions among its attributes.

    The layers that it holds, at any depth, are its own. Arguments and errors as
    `check_closed_over`.
    """
    for path, value in nnx.iter_graph(module):
        name = ".".join([owner, *map(str, path)])
        if isinstance(value, nnx.Module):
            methods = functools.partial(_members, value, type(value).__mro__)
            _raise_if_found(name, lambda names, of=methods: of(names | _CALLED), advice)
        elif not (isinstance(value, nnx.Variable) or nnx.graph.is_node(value)):
            check_closed_over(name, value, advice)


def _raise_if_found(owner: str, start: Callable[[set[str]], Iterable[Named]], advice: str) -> None:
    names: set[str] = set()
    while True:
        search = _Search(names)
        found = search.run(start(names))
        if found is not None:
            break
        if search.names == names:
            return
        # Code that is found late may name attributes of objects that were found early.
        names = search.names
    name, value = found
    what = type(value).__name__
    raise TypeError(
        f"{owner} uses {name}, {'an' if what[0] in 'AEIOU' else 'a'} {what} that is not among its "
        f"arguments: its parameters would be constants, never trained; {advice}"
    )


class _Search:
    """One walk over the objects that a function reaches; `names`: attributes that code reads."""

    def __init__(self, names: set[str]):
        self.names = set(names)
        # Of each id the value too: once an object is gone, its id may be another's.
        self.seen: dict[int, object] = {}

    def run(self, reached: Iterable[Named]) -> Named | None:
        """The name and value of the first module or variable."""
        queue = collections.deque(reached)
        while queue and len(self.seen) < _MOST:
            name, value = queue.popleft()
            if id(value) in self.seen or isinstance(value, _PLAIN):
                continue
            self.seen[id(value)] = value
            if _holds_variables(value):
                return name, value
            queue.extend(self._reached(name, value))
        return None

    def _reached(self, name: str, value: object) -> Iterator[Named]:
        if isinstance(value, Mapping):
            yield from ((name, v) for v in value.values() if not isinstance(v, _PLAIN))
        elif isinstance(value, _COLLECTIONS):
            yield from ((name, v) for v in value if not isinstance(v, _PLAIN))
        elif isinstance(value, types.MethodType):
            yield name, value.__func__
            # Only this method of the object is called.
            if _holds_variables(value.__self__):
                yield f"`{value.__func__.__name__}`", value.__self__
            yield from _members_of(value.__self__, self.names)
        elif isinstance(value, staticmethod | classmethod):
            yield name, value.__func__
        elif isinstance(value, property):
            yield name, value.fget
        elif isinstance(value, functools.partial):
            held = value.func, *value.args, *value.keywords.values()
            yield from (("an argument of a partial", v) for v in held)
        elif _root(type(value).__module__) in _PEERS:
            return
        elif not isinstance(value, type | types.ModuleType):
            if isinstance(value, types.FunctionType):
                yield from self._function(value)
            yield from _members_of(value, self.names | _CALLED)

    def _function(self, function: types.FunctionType) -> Iterator[Named]:
        closure = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, closure, strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                yield f"`{name}`", cell.cell_contents
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from (("a default argument", default) for default in defaults)
        if not _is_library(function.__globals__.get("__name__")):
            yield from self._code(function.__code__, function.__globals__)

    def _code(self, code: types.CodeType, scope: dict[str, Any]) -> Iterator[Named]:
        """The globals that code reads, and the attributes that it reads of Python modules."""
        last: object = None
        for instruction in dis.get_instructions(code):
            name, read = instruction.argval, None
            if instruction.opname in _GLOBAL_READS:
                read = scope.get(name)
                yield f"`{name}`", read
            elif instruction.opname in _ATTRIBUTE_READS:
                self.names.add(name)
                if isinstance(last, types.ModuleType) and not _is_library(last.__name__):
                    read = vars(last).get(name)
                    yield f"`{last.__name__}.{name}`", read
            last = read
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self._code(constant, scope)


def _members_of(value: object, names: set[str]) -> Iterator[Named]:
    """The attributes of these names of a plain object and of its classes."""
    return _members(value, (getattr(value, "__dict__", None), *type(value).__mro__), names)


def _members(value: object, places: Iterable[object], names: set[str]) -> Iterator[Named]:
    """The attributes of these names in an object's dict and in its classes, overridden ones too.

    None is computed: no property and no `__getattr__` runs.
    """
    for place in places:
        members = place if isinstance(place, dict) else getattr(place, "__dict__", {})
        for name in sorted(names & members.keys()):
            member = members[name]
            if isinstance(member, types.MemberDescriptorType):  # of __slots__
                member = getattr(value, name, None)
            yield f"`{name}`", member


def _is_library(module: str | None) -> bool:
    return _root(module or "") in _LIBRARIES


def _root(module: str) -> str:
    return module.split(".")[0]


def _holds_variables(value: object) -> bool:
    """Whether a value is a variable or holds some: a module, or its state from `nnx.split`.

    Of a state only parameters count: a user who splits a module may hold the rest as constants.
    """
    if isinstance(value, nnx.Variable):
        return True
    if isinstance(value, nnx.State):
        return any(isinstance(leaf, nnx.Param) for _, leaf in nnx.to_flat_state(value))
    return isinstance(value, nnx.Module | nnx.Rngs | nnx.RngStream) and any(
        isinstance(leaf, nnx.Variable) for _, leaf in nnx.iter_graph(value)
    )
