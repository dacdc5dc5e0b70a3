"""What a fault is, where the library has it, and which tests notice it."""

import ast
import functools
import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.command_line import ROOT


class Fault(NamedTuple):
    """An expression or a statement of the library, made wrong.

    It is found by what it says: its file may move, and its format and comments may change.

    Attributes:
      name: what is wrong.
      function: the function or method that it is in, by the end of its qualified name.
      old: the expression or statement, which occurs once in that function.
      new: what stands there instead.
      tests: the fewest and fastest that fail; where they are parametrized, with the case.
      needs: the package without which these tests are skipped; none: "".
    """

    name: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]
    needs: str = ""

    def can_be_tried(self) -> bool:
        """Whether the package that its tests need is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


class Place(NamedTuple):
    """The file that a fault is in, from the root of the repository, and its text with the fault."""

    file: pathlib.Path
    faulty: str


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def library() -> list[pathlib.Path]:
    """The files of the library."""
    return sorted((ROOT / "tbptt_jax").rglob("*.py"))


def find(fault: Fault) -> Place:
    """The one place of a fault.

    Raises:
      LookupError: there is none, or more than one.
    """
    (old,), (new,) = ast.parse(fault.old).body, ast.parse(fault.new).body
    if isinstance(old, ast.Expr) and isinstance(new, ast.Expr):
        old, new = old.value, new.value
    said = ast.dump(old)
    found = {}  # by identity: functions of one name may be nested
    for path in library():
        source = path.read_text(encoding="utf-8")
        if f"def {fault.function.rpartition('.')[2]}(" not in source:
            continue
        tree = ast.parse(source)
        for name, function in _functions(tree):
            if f".{name}".endswith(f".{fault.function}"):
                for node in ast.walk(function):
                    if type(node) is type(old) and ast.dump(node) == said:
                        found[id(node)] = path, tree, node
    if len(found) != 1:
        raise LookupError(
            f"{fault.name}: `{fault.old}` must occur once in `{fault.function}`, got {len(found)}"
        )
    ((path, tree, node),) = found.values()
    return Place(path.relative_to(ROOT), ast.unparse(_Replace(node, new).visit(tree)))


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The functions and classes of a module, by their qualified names."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{prefix}{node.name}", node
            name = f"{prefix}{node.name}."
        yield from _functions(node, name)


@functools.cache
def _files_of_tests() -> dict[str, list[str]]:
    """The files that define each test function, from the root of the repository."""
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(
            r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            files.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    return files


def node_id(test: str) -> str:
    """What pytest calls a test of a fault.

    Raises:
      LookupError: no file has a test of that name, or several have.
    """
    files = _files_of_tests().get(test.partition("[")[0], [])
    if len(files) != 1:
        raise LookupError(f"{test}: one file must define it, got {files}")
    return f"{files[0]}::{test}"


def trained(case: str) -> str:
    """The test that compares a step of training with the oracle."""
    return f"test_train_step_equals_the_oracle[{case}]"
