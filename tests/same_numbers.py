"""Hold the library to the numbers that it returned before.

python -m tests.same_numbers record FILE [NAME ...]    save every array of every case (.npz)
python -m tests.same_numbers compare FILE [NAME ...]   run the cases again, report what differs
python -m tests.same_numbers write FILE    digests of a record, for tests/test_same_numbers.py

NAME is part of the names of some cases. `compare` exits with 1 where a case raises, an array is
missing, or one differs by more than TOLERANCES.
Record and compare on one machine, with one JAX and the same XLA_FLAGS: then bits are compared.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import pathlib
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import conftest  # noqa: F401  # float64 on CPU, as the tests have it
import tbptt_jax as tbptt
from tests.number_cases import GRID, LENGTHS, Case, all_cases

DIGESTS = pathlib.Path(__file__).with_suffix(".json")
# Of an array's largest magnitude, by the dtype in its name.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}
# Random numbers are JAX's own, and their bits may change with its version.
RANDOM = ("zoneout", "dropout")
Arrays = dict[str, np.ndarray]


def run(case: Case) -> Arrays:
    """The arrays that a case returns, by path and dtype.

    NumPy's files have no bfloat16; float32 holds its values.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of streams, which are meant
        result = jax.device_get(case())
    found = {}
    for path, leaf in jax.tree.leaves_with_path(result):
        array = np.asarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype}"
        found[name] = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    return found


def difference(new: np.ndarray, old: np.ndarray) -> float:
    """0 for the same bits; else the largest difference, relative to the largest magnitude."""
    if new.shape != old.shape or new.dtype != old.dtype:
        return np.inf
    if new.tobytes() == old.tobytes():
        return 0.0
    finite = np.isfinite(old)
    if not np.array_equal(np.where(finite, 0, new), np.where(finite, 0, old), equal_nan=True):
        return np.inf
    new, old = (np.where(finite, a, 0).astype(np.float64) for a in (new, old))
    size = np.abs(old).max()
    # Another bit pattern of equal numbers (the sign of a zero) is a difference, though a small one.
    return max(float(np.abs(new - old).max() / size), 1e-300) if size else np.inf


def digest(found: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Of each group of arrays its product with a fixed vector, and the scale of that."""
    groups: dict[str, list[np.ndarray]] = {}
    for name, array in found.items():
        groups.setdefault(name.split("'")[1], []).append(np.ravel(array).astype(np.float64))
    digests = {}
    for name, parts in groups.items():
        values = np.nan_to_num(np.concatenate(parts), nan=-1.0, posinf=-2.0, neginf=-3.0)
        # No entry of the vector is near 0, which would hide a change, and no two are equal.
        product = values @ (2 + np.cos(np.arange(len(values))))
        digests[name] = float(product), float(np.abs(values).sum())
    return digests


def check_that_cases_differ(results: Mapping[str, Arrays]) -> None:
    """Raise where plans of different credit trained alike: then nothing would be compared."""
    for length in set(LENGTHS):
        found: dict[bytes, dict[bytes, str]] = {}
        for k1, k2, anchor in GRID:
            name = f"sequences /{k1},{k2} {anchor}/T={length}"
            if name not in results:
                continue
            matrix = tbptt.credit_matrix(tbptt.Truncation(k1, k2, anchor), length)
            updates = len(next(v for k, v in results[name].items() if "'loss'" in k))
            scheme = matrix.tobytes() + bytes([updates])
            params = b"".join(v.tobytes() for k, v in results[name].items() if "'params'" in k)
            found.setdefault(scheme, {})[params] = name
        by_params = [params for same in found.values() for params in same]
        assert len(set(by_params)) == len(by_params), f"plans train alike, T={length}"
        assert len(found) >= 5, f"too few plans, T={length}"
    # Some plans are the same scheme: a block, or a reach beyond the sequence, changes no number.
    assert share_that_differs([case.values() for case in results.values()]) > 0.9


def share_that_differs(results: Sequence[Iterable[Any]]) -> float:
    """The share of results that are left when those equal to another are counted once."""
    whole = {b"".join(np.asarray(a).tobytes() for a in result) for result in results}
    return len(whole) / len(results)


@functools.cache
def _cases() -> dict[str, Case]:
    return all_cases()


_started = itertools.count(1)


def run_by_name(name: str) -> Arrays:
    """The arrays of a case that runs in this process; none, and a message, if it raises."""
    if next(_started) % 75 == 0:  # as in conftest
        jax.clear_caches()
    try:
        return run(_cases()[name])
    except Exception:
        print(f"{name} raised\n{traceback.format_exc()}", file=sys.stderr)
        return {}


def run_all(parts: Sequence[str]) -> dict[str, Arrays]:
    """The arrays of the cases whose names hold one of these, on two cores; none: of all."""
    names = [n for n in _cases() if not parts or any(part in n for part in parts)]
    spawn = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would not
    with concurrent.futures.ProcessPoolExecutor(2, spawn) as pool:
        found = pool.map(run_by_name, names)
        return dict(zip(names, tqdm(found, total=len(names), mininterval=5), strict=True))


def flat(results: Mapping[str, Arrays]) -> Arrays:
    """All arrays, by the names that they have in a file."""
    return {f"{name}: {part}": a for name, case in results.items() for part, a in case.items()}


def load(path: str) -> dict[str, Arrays]:
    """The arrays of a file, by case."""
    results: dict[str, Arrays] = {}
    with np.load(path) as file:
        for key in file.files:
            name, part = key.split(": ")
            results.setdefault(name, {})[part] = file[key]
    return results


def record(path: str, parts: Sequence[str]) -> int:
    results = run_all(parts)
    np.savez_compressed(path, **flat(results))  # pyright: ignore[reportArgumentType]
    print(f"{len(results)} cases, {len(flat(results))} arrays")
    if not parts:
        check_that_cases_differ(results)
    return 0 if all(results.values()) else 1


def compare(path: str, parts: Sequence[str]) -> int:
    old, new = load(path), run_all(parts)
    names = dict.fromkeys([*new, *(() if parts else old)])
    failed, arrays_same, largest = 0, 0, 0.0
    for name in names:
        before, now = old.get(name, {}), new.get(name, {})
        missing = sorted(before.keys() ^ now.keys())
        found = {part: difference(now[part], before[part]) for part in before if part in now}
        over = any(d > TOLERANCES.get(part.split()[-1], 0) for part, d in found.items())
        worst = max(found, key=lambda part: found[part], default="")
        said = "same bits"
        if missing or not found:
            said = f"{len(missing)} arrays are only in one of the two: {missing[:1]}"
        elif found[worst]:
            said = f"{found[worst]:.1e} in {worst}"
        bad = over or bool(missing) or not found
        print(f"{name} | {'FAILED ' * bad}{said}")
        failed += bad
        arrays_same += sum(d == 0 for d in found.values())
        largest = max([largest, *found.values()])
    print("cases | failed | arrays | same bits | largest difference")
    print(f"{len(names)} | {failed} | {len(flat(new))} | {arrays_same} | {largest:.1e}")
    return 1 if failed else 0


def has_digest(name: str) -> bool:
    """Whether a case's numbers are those of any JAX: float64, and nothing random."""
    return not any(word in name for word in (*RANDOM, "float32", "bfloat16"))


def write(path: str) -> int:
    digests = {
        name: [float(f"{product:.12g}") for product, _ in digest(found).values()]
        for name, found in load(path).items()
        if has_digest(name)
    }
    lines = [f"{json.dumps(name)}:{json.dumps(numbers)}" for name, numbers in digests.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    DIGESTS.write_text(text, encoding="utf-8")
    print(f"{len(lines)} cases in {len(text)} bytes")
    return 0


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("command", choices=["record", "compare", "write"])
    parser.add_argument("file")
    parser.add_argument("names", nargs="*", help="parts of names of cases; none: all cases")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.command == "write":
        status = write(arguments.file)
    else:
        command = {"record": record, "compare": compare}[arguments.command]
        status = command(arguments.file, arguments.names)
    print(f"{time.monotonic() - began:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
