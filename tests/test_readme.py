"""What the README shows runs as printed, what it names is there, and it stays short."""

import re
import tomllib

import pytest

from tests.command_line import ROOT
from tests.markdown import examples

MOST_WORDS = 900
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
RAW = SOURCE.replace("github.com", "raw.githubusercontent.com")
OURS = re.compile(
    rf"(?:{SOURCE}/(?:blob|tree)/main|{RAW}/main"
    rf"|https://colab\.research\.google\.com/github/{SOURCE.removeprefix('https://github.com/')}"
    r"/blob/main)/(.+)"
)
# Pages of GitHub's that no file of the repository stands for.
PAGES = {SOURCE, f"{SOURCE}/issues", f"{SOURCE}/security/policy"}
WORKFLOW = re.compile(rf"{SOURCE}/actions/workflows/(\w+\.yml)(?:/badge\.svg)?")


@pytest.fixture(scope="module")
def text():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def links(text):
    """Every target of a Markdown link or image."""
    return re.findall(r"\]\(([^)\s]+)\)", text)


def missing(url):
    """What an address within the project lacks here; None where all is well."""
    if url in PAGES:
        return None
    if workflow := WORKFLOW.fullmatch(url):
        path = f".github/workflows/{workflow[1]}"
    elif ours := OURS.fullmatch(url):
        path = ours[1]
    else:
        return url
    return None if (ROOT / path).exists() else path


def test_the_example_has_ten_lines_and_learns_as_it_says():
    (example,) = examples(ROOT / "README.md")
    assert len([line for line in example.code.splitlines() if line]) == 10
    names = {}
    example.run(names)
    first, last = names["metrics"].loss[0], names["metrics"].loss[-1]
    stated = re.search(r"# from about ([\d.]+) to ([\d.]+)", example.code)
    assert stated
    assert first == pytest.approx(float(stated[1]), abs=0.1)
    assert last == pytest.approx(float(stated[2]), abs=0.02)


def test_it_stays_short(text):
    assert len(text.split()) <= MOST_WORDS


def test_every_link_is_absolute_and_names_what_is_there(text):
    # PyPI shows the README without the repository around it.
    targets = links(text)
    assert len(targets) > 10
    assert [url for url in targets if not url.startswith("https://")] == []
    project = [url for url in targets if SOURCE.removeprefix("https://") in url or RAW in url]
    assert f"{RAW}/main/docs/figures/credit_matrices.png" in project
    assert [found for found in map(missing, project) if found] == []


def test_the_commands_clone_and_install_from_the_address_of_the_project(text):
    addresses = re.findall(r"(?:git\+|git clone )(https://[^\s`]+)", text)
    assert set(addresses) == {SOURCE}
    assert len(addresses) == 2


@pytest.mark.parametrize("name", ["Homepage", "Documentation", "Source", "Changelog", "Issues"])
def test_the_addresses_of_the_project_name_what_is_there(name):
    assert missing(PROJECT["urls"][name]) is None


def test_a_link_to_a_file_that_is_not_there_is_found():
    assert missing(f"{SOURCE}/blob/main/docs/none.md") == "docs/none.md"
    assert missing(f"{RAW}/main/docs/none.png") == "docs/none.png"
    assert missing(f"{SOURCE}/actions/workflows/none.yml/badge.svg") == ".github/workflows/none.yml"
    assert missing("https://github.com/other/other/blob/main/README.md") is not None
