"""The pages of the documentation: their examples run, and the API pages name all that is public."""

import collections
import functools
import importlib.util
import re
import warnings

import jax
import pytest

import tbptt_jax
from tests.command_line import ROOT
from tests.markdown import examples

DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def parts(page):
    """Where each part of a page starts and ends, by its title; the beginning has none."""
    text = text_of(page)
    titles = [(m[1], m.start()) for m in re.finditer(r"^## (.+)$", text, flags=re.MULTILINE)]
    starts = [("", 0), *titles]
    ends = [*(start for _, start in titles), len(text)]
    return {title: (start, end) for (title, start), end in zip(starts, ends, strict=True)}


def parts_with_examples():
    for page in PAGES:
        for title, where in parts(page).items():
            if examples(DOCS / page, *where):
                yield pytest.param(page, title, id=f"{page}: {title or 'the beginning'}")


@functools.cache
def names_of_beginning(page):
    """What the examples before a page's first part define, for all of its parts."""
    names = {}
    for example in examples(DOCS / page, *parts(page)[""]):
        example.run(names)
    return names


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """JAX's defaults, as a reader has them, and an empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize(("page", "title"), list(parts_with_examples()))
def test_the_examples_print_what_the_page_says(page, title, reader):
    start, end = parts(page)[title]
    needed = re.findall(r"<!-- needs (\w+) -->", text_of(page)[start:end])
    for package in needed:
        # Not imported here: Keras takes its backend from the environment, which the page sets.
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    # What other libraries broadcast, and warn of, is theirs.
    promotion = jax.numpy_rank_promotion("allow" if needed else "raise")
    with promotion, warnings.catch_warnings():
        if needed:
            warnings.simplefilter("ignore")
        names = dict(names_of_beginning(page))
        for example in examples(DOCS / page, start, end) if title else []:
            example.run(names)


@pytest.mark.parametrize("page", PAGES)
def test_all_python_of_a_page_is_an_example(page):
    fences = re.findall(r"^ *(?:```|~~~)[ {.]*(?:py|python|pycon)\b", text_of(page), re.MULTILINE)
    assert len(fences) == len(examples(DOCS / page))


def test_the_api_pages_hold_every_public_name_once():
    pages = "".join(text_of(page) for page in PAGES if page.startswith("api/"))
    found = collections.Counter(re.findall(r"^::: tbptt_jax\.(\S+)$", pages, re.MULTILINE))
    rooms = {"adapters": tbptt_jax.adapters, "data": tbptt_jax.data}
    names = [name for name in tbptt_jax.__all__ if name not in rooms]
    names += [f"{room}.{name}" for room, module in rooms.items() for name in module.__all__]
    assert found == collections.Counter(names)


def test_the_references_are_those_of_the_bibtex_file():
    entries = re.findall(r"^@\w+\{(\w+),$", text_of("references.bib"), re.MULTILINE)
    listed = re.findall(r"^<a id=\"(\w+)\"></a>", text_of("references.md"), re.MULTILINE)
    assert listed == entries == sorted(set(entries))
