"""Write `messages.txt`: python -m tests.bad_input."""

import conftest  # noqa: F401  (the settings of the tests: float64, on CPU)
from tests.bad_input.messages import CASES, FILE, raised, read, write

before = read() if FILE.exists() else {}
after = {case[0]: raised(case) for case in CASES}
write(after)
changed = sum(before.get(name) != after.get(name) for name in before | after)
print(f"{changed} of {len(after)} messages changed")
