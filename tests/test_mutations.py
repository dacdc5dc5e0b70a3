"""The faults of `tests.mutations` are up to date, and the tests notice them.

All of them, `python -m tests.mutations`, take minutes; the slow test here takes one of each file.
"""

import pytest

from tests.command_line import ROOT
from tests.mutations import FAULTS, try_all


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_one_place_in_its_file_and_its_tests_are_there(fault):
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.old) == 1
    assert fault.new != fault.old
    # Not a syntax error, which every test would notice.
    compile(source.replace(fault.old, fault.new), fault.file, "exec")
    for test in fault.tests:
        file, name = test.split("::")
        assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_fault_has_a_name_of_its_own_and_most_of_the_core_has_one():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    core = {"cells", "credit", "fused", "gradients", "layout", "per_loss", "train", "windows"}
    assert {f"tbptt_jax/{name}.py" for name in core} <= {fault.file for fault in FAULTS}


@pytest.mark.slow
def test_the_tests_notice_a_fault_in_each_file():
    chosen = {fault.file: fault for fault in FAULTS}
    outcomes = try_all(list(chosen.values()))
    assert len(outcomes) == len(chosen)
    assert {name for name, outcome in outcomes.items() if outcome.caught_by is None} == set()
