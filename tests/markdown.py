"""The Python examples of a Markdown page: found, executed, and what they print compared."""

import contextlib
import io
import pathlib
import re
from typing import Any, NamedTuple

# A fence of Python, and the fence of text right under it, which is what it prints.
_EXAMPLE = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n+^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


class Example(NamedTuple):
    """A fence of Python.

    Attributes:
      code: what stands in it.
      output: what it prints, where the page says so.
      path, line: where it stands, which a traceback names.
    """

    code: str
    output: str | None
    path: pathlib.Path
    line: int

    def run(self, names: dict[str, Any]) -> None:
        """Execute it with these names, which it may add to, and compare what it prints."""
        printed = io.StringIO()
        # Behind as many empty lines as stand before it: a traceback has the page's lines.
        code = compile("\n" * self.line + self.code, str(self.path), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if self.output is not None:
            assert printed.getvalue() == self.output, f"{self.path}:{self.line}"


def examples(path: pathlib.Path, start: int = 0, stop: int | None = None) -> list[Example]:
    """The examples of a page, or of a part of its text, in order."""
    text = path.read_text(encoding="utf-8")
    found = _EXAMPLE.finditer(text, start, len(text) if stop is None else stop)
    return [
        Example(m["code"], m["output"], path, line=text.count("\n", 0, m.start("code")))
        for m in found
    ]
