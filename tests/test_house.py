"""The rooms of the library: imports go down, functions are short, private names stay private."""

import ast
import functools
import io
import pathlib
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY, OTHERS = "tbptt_jax", ("experiments", "tests", "benchmarks")
# From the ground up: a room imports from those before it.
ROOMS = (
    *("version", "types", "arguments", "axes", "processes", "sums", "cells", "models"),
    "adapters",
    *(
        "estimators",
        "plans",
        "validation",
        "training",
        "diagnostics",
        "data",
        "checkpoints",
        "__init__",
    ),
)
MOST_LINES = 45
NOT_PRIVATE = {"_", "_replace", "_asdict", "_fields", "_make"}  # most are of named tuples
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


@functools.cache
def sources(folder: str) -> dict[str, str]:
    """Dotted name of each module to its text; a package's is that of its folder."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text("utf-8")
    return found


@functools.cache
def tree(folder: str, module: str) -> ast.Module:
    return ast.parse(sources(folder)[module])


def imported(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of every import, at the top or within a function."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def below(folder: str, module: str) -> set[str]:
    """The modules of a folder that one of its modules imports."""
    names = imported(tree(folder, module))
    both = {part for source, name in names for part in (source, f"{source}.{name}")}
    found = both & sources(folder).keys() - {module}
    # `from package import module` is no import of what else the package gathers.
    return {m for m in found if not any(other.startswith(f"{m}.") for other in found)}


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def upward() -> list[str]:
    """Imports from a room above."""
    return [
        f"{module} imports {target}"
        for module in sources(LIBRARY)
        for target in sorted(below(LIBRARY, module))
        if ROOMS.index(room(module)) < ROOMS.index(room(target))
    ]


def circles() -> list[str]:
    """Modules that a circle of imports leads back to."""

    def reached(module: str) -> set[str]:
        found, due = set(), [module]
        while due:
            new = below(LIBRARY, due.pop()) - found
            found |= new
            due.extend(new)
        return found

    return [module for module in sources(LIBRARY) if module in reached(module)]


def functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions and methods, not those within functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from functions(child)


def lines_of_code(text: str) -> set[int]:
    """The numbers of the lines with code: no docstring, no comment, not blank."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def long_functions() -> list[str]:
    found = []
    for module, text in sources(LIBRARY).items():
        lines = lines_of_code(text)
        for function in functions(ast.parse(text)):
            count = len(lines & set(range(function.lineno, (function.end_lineno or 0) + 1)))
            if count > MOST_LINES:
                found.append(f"{module}.{function.name} has {count} lines")
    return found


def unannotated() -> list[str]:
    """Arguments of functions and methods without a type."""
    found = []
    for module in sources(LIBRARY):
        for function in functions(tree(LIBRARY, module)):
            a = function.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
            found += [
                f"{module}.{function.name}: {argument.arg}"
                for argument in every
                if argument and not argument.annotation and argument.arg not in ("self", "cls")
            ]
    return found


def is_private(name: str) -> bool:
    return name[0:1] == "_" != name[1:2] and name not in NOT_PRIVATE


@functools.cache
def private_names(folder: str, module: str) -> tuple[set[str], set[str]]:
    """The private names that a module defines, and those that it uses."""
    defined, used = set(), set()
    for node in ast.walk(tree(folder, module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            (defined if isinstance(node.ctx, ast.Store) else used).add(name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            # setattr, getattr and monkeypatch.setattr take names as strings.
            strings = (a.value for a in node.args if isinstance(a, ast.Constant))
            used |= {str(value).rpartition(".")[2] for value in strings}
    used |= {name for _, name in imported(tree(folder, module))}
    return set(filter(is_private, defined)), set(filter(is_private, used))


def private_uses() -> list[str]:
    """Private names of one of the four packages that stand in a module of another."""
    folders, found = (LIBRARY, *OTHERS), []
    defined = {f: set().union(*(private_names(f, m)[0] for m in sources(f))) for f in folders}
    for folder in folders:
        foreign = set().union(*(names for other, names in defined.items() if other != folder))
        for module in sources(folder):
            near = {module, *below(folder, module)}
            own = set().union(*(private_names(folder, m)[0] for m in near))
            used = private_names(folder, module)[1] & foreign - own
            found += [f"{module}: {name}" for name in sorted(used)]
    return found


# How much there is: lower a number with each that goes, and never raise one.
@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (upward, 0),
        (circles, 0),
        (long_functions, 0),
        (private_uses, 0),
        (unannotated, 0),
    ],
)
def test_the_house_is_in_order(rule, most):
    found = rule()
    assert len(found) <= most, "\n".join(found)


def test_every_file_has_a_room():
    assert {room(module) for module in sources(LIBRARY)} == set(ROOMS)
