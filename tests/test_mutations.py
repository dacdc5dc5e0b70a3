"""The faults of `tests.faults` are up to date, and the tests notice them.

All of them, `python -m tests.mutations`, take minutes; the slow test here takes a sample of at most
`SAMPLE`, always the same.
"""

import ast
import re

import pytest

from tests.command_line import ROOT
from tests.faults import FAULTS
from tests.faults.fault import Fault, find, library, node_id
from tests.mutations import copy, run, try_all

SAMPLE = 12


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_has_one_place_and_its_tests_are_there(fault):
    place = find(fault)
    sound = ast.parse((ROOT / place.file).read_text(encoding="utf-8"))
    assert place.faulty != ast.unparse(sound)
    compile(place.faulty, place.file, "exec")  # every test would notice a syntax error
    assert all(map(node_id, fault.tests))


def test_the_tests_of_every_fault_are_collected_with_their_cases(tmp_path):
    copy(tmp_path)
    tried = filter(Fault.can_be_tried, FAULTS)
    done = run(tmp_path, (test for fault in tried for test in fault.tests), "--collect-only")
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_fault_has_a_name_of_its_own_and_every_file_of_the_library_has_one():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 127
    files = {path for path in library() if re.search(r"^ *def ", path.read_text("utf-8"), re.M)}
    files -= {ROOT / "tbptt_jax" / "types.py"}  # its methods are those of protocols
    assert {ROOT / find(fault).file for fault in FAULTS} == files


@pytest.mark.parametrize("old", ["b + c", "nowhere"])
def test_a_fault_of_two_places_or_none_is_refused(old, tmp_path, monkeypatch):
    (tmp_path / "tbptt_jax").mkdir()
    code = "class A:\n    def f(a, b, c):\n        return b+c, (b  + c)  # twice\n"
    (tmp_path / "tbptt_jax" / "a.py").write_text(code)
    monkeypatch.setattr("tests.faults.fault.ROOT", tmp_path)
    assert find(Fault("one", "A.f", "return (b + c, b + c)", "return b", ())).faulty == (
        "class A:\n\n    def f(a, b, c):\n        return b"
    )
    with pytest.raises(LookupError, match="must occur once"):
        find(Fault("not one", "f", old, "b", ()))


@pytest.mark.slow
def test_the_tests_notice_a_sample_of_the_faults():
    tried = list(filter(Fault.can_be_tried, FAULTS))
    chosen = tried[:: -(-len(tried) // SAMPLE)]
    outcomes = try_all(chosen)
    assert len(outcomes) == len(chosen)
    assert {name for name, outcome in outcomes.items() if outcome.caught_by is None} == set()
