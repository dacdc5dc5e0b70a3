"""The notebooks, executed: what a test compares, and what a reader sees before running a cell.

    python -m tests.notebooks [NAME ...]

executes all notebooks, or those named, and stores their outputs in them.
"""

import os
import re
import sys

import nbclient
import nbformat

from tests.command_line import ROOT

NAMES = ["quickstart", "six_techniques", "what_truncation_loses"]

# Of an output that is executed anew, numbers may differ, and where it runs.
NUMBER = re.compile(r"-?\d[\d.,]*(e[-+]?\d+)?")


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def cell(notebook, name):
    (found,) = [c for c in notebook.cells if c.id == name]
    return found


def execute(notebook):
    """Run all cells in a fresh kernel that begins in the folder of the notebooks."""
    # Few programs that run for long: here full code generation pays, other than in conftest.py.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(ROOT / "notebooks")}},
    )
    client.execute(env=environment)
    return notebook


def printed(c):
    return "".join(out.text for out in c.outputs if out.output_type == "stream")


def figures(c):
    """Its figures, PNG in base64."""
    shown = [out.data.get("image/png") for out in c.get("outputs", []) if "data" in out]
    return [figure for figure in shown if figure]


def kinds(c):
    """What a cell shows, without its numbers: lines of text, and how many figures."""
    lines = printed(c).replace(" on gpu", " on cpu").splitlines()
    return [" ".join(NUMBER.sub("#", line).split()) for line in lines], len(figures(c))


def tidy(outputs):
    """Lines that were printed one after the other in one piece, and of a figure the PNG alone."""
    kept = []
    for out in outputs:
        if out.output_type == "stream" and kept and kept[-1].get("name") == out.name:
            kept[-1].text += out.text
        else:
            kept.append(out)
        if "image/png" in out.get("data", {}):
            out.data = {"image/png": out.data["image/png"]}
    return kept


def store(name):
    """Execute a notebook, and write it with its outputs."""
    notebook = read(name)
    metadata = notebook.metadata.copy()
    execute(notebook)
    notebook.metadata = metadata  # nbclient adds the version of Python that it ran
    for c in notebook.cells:
        if c.get("outputs"):
            c.outputs = tidy(c.outputs)
    nbformat.write(notebook, ROOT / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        store(chosen)
