"""Whether a layer is as flax makes it, attribute for attribute.

A user may change a layer after it is made: another precision of its product, a quantised product,
an adapter in its place. The change is part of the network, so code that writes the layer's
arithmetic out again, or relies on it, must know that there is none.
"""

from typing import Any

from flax import nnx

# The known layers, and the arguments that a user chooses.
_CHOSEN: dict[type, tuple[str, ...]] = {
    nnx.Linear: ("in_features", "out_features", "use_bias", "dtype", "param_dtype"),
    nnx.Embed: ("num_embeddings", "features", "dtype", "param_dtype"),
    nnx.LayerNorm: ("num_features", "epsilon", "dtype", "param_dtype", "use_bias", "use_scale"),
    nnx.RMSNorm: ("num_features", "epsilon", "dtype", "param_dtype", "use_scale"),
}
# Attributes that change no result: initializers, and flax's own records.
_IGNORED_PREFIX, _IGNORED_SUFFIX = "_pytree__", "_init"


def is_plain(layer: object) -> bool:
    """Whether a layer is a known one of flax's with nothing changed but the chosen arguments."""
    kind: Any = type(layer)
    if kind not in _CHOSEN:
        return False
    try:
        chosen = {name: getattr(layer, name) for name in _CHOSEN[kind]}
        made = nnx.eval_shape(lambda: kind(**chosen, rngs=nnx.Rngs(0)))
    except (AttributeError, TypeError):  # an attribute that flax itself refuses
        return False
    found, expected = _attributes(layer), _attributes(made)
    return found.keys() == expected.keys() and all(
        _is_same(found[name], expected[name]) for name in expected
    )


def is_plain_linear(layer: object) -> bool:
    """Whether a layer is an `nnx.Linear`, itself and not a subclass, and plain."""
    return type(layer) is nnx.Linear and is_plain(layer)


def _attributes(layer: object) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(layer).items()
        if not (name.startswith(_IGNORED_PREFIX) or name.endswith(_IGNORED_SUFFIX))
    }


def _is_same(found: object, expected: object) -> bool:
    """Whether an attribute is the same; of a parameter the shape, since its dtype may be cast."""
    if isinstance(expected, nnx.Variable):
        return type(found) is type(expected) and getattr(found, "shape", None) == expected.shape
    return found is expected or (isinstance(expected, int | float) and found == expected)
