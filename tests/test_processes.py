"""Several processes compute together: the numbers of one, and checkpoints that any number restores.

The processes are real ones, with gloo between them.
"""

import json
import pathlib

import numpy as np
import pytest

import tbptt_jax as tbptt
from tbptt_jax import processes
from tests import cluster
from tests.command_line import ROOT
from tests.markdown import examples

PRELUDE = """
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
import tbptt_jax as tbptt
from tbptt_jax import processes

WORDS, HIDDEN, ROWS, STEPS = 12, 4, 10, 6
plan = tbptt.Truncation(2, 5)
mesh = jax.make_mesh((jax.device_count() // {other}, {other}), ("rows", "other"))

def start(dropout=0.5):
    rngs = nnx.Rngs(0)
    encoder = nnx.Sequential(nnx.Embed(WORDS, 4, rngs=rngs), nnx.Dropout(dropout, rngs=rngs))
    core = tbptt.LSTM(4, HIDDEN, rngs=rngs)
    model = tbptt.SequenceModel(encoder, core, nnx.Linear(HIDDEN, 4, rngs=rngs))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return tbptt.TrainState.create(model, optax.adam(0.1), loss)

def put(leaf):
    # A large embedding is spread over the second axis, with its moments; all else is everywhere.
    spec = PartitionSpec(*["other"] * (leaf.shape[:1] == (WORDS,)))
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    made = jax.make_array_from_callback(data.shape, NamedSharding(mesh, spec), data.__getitem__)
    return jax.random.wrap_key_data(made) if is_key else made

def batch(seed):
    rng = np.random.default_rng(seed)
    words, labels = rng.integers(0, WORDS, (ROWS, STEPS)), rng.integers(0, 4, (ROWS, STEPS))
    reset = rng.random((ROWS, STEPS)) < 0.2
    # A process has the rows of its devices.
    lines = [[d.process_index for d in line] for line in mesh.devices]
    mine = [i for i, line in enumerate(lines) if jax.process_index() in line]
    each = ROWS // len(lines)
    own = slice(mine[0] * each, (mine[-1] + 1) * each)
    made = tbptt.Batch(words[own], labels[own], reset=reset[own])
    return tbptt.data.spread(made, mesh, "rows")

def whole(tree):
    '''Every number of a tree, in every process.'''
    gathered = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def one(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(gathered(leaf))
    return {{jax.tree_util.keystr(p): one(x) for p, x in jax.tree.leaves_with_path(tree)}}

def save_numbers(name, tree):
    found = whole(tree)
    if jax.process_index() == 0:
        np.savez(name, **found)

def train(state, seeds):
    for seed in seeds:
        state, metrics = tbptt.train_step(state, batch(seed), plan)
    return state, metrics
"""

TRAIN_AND_SAVE = """
state, folder = jax.tree.map(put, start()), pathlib.Path(sys.argv[1])
with tbptt.Checkpoints(folder / "saved", {"of": "a test"}) as checkpoints:
    state, _ = train(state, [0, 1])
    checkpoints.save(state, {"batches": 2})
    checkpoints.wait()
    save_numbers(folder / "saved.npz", state)
    state, metrics = train(state, [2])
    save_numbers(folder / "end.npz", (state.params, metrics))
"""

RESTORE = """
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with tbptt.Checkpoints(folder / "saved", {"of": "a test"}) as checkpoints:
    like = tbptt.state_after(jax.tree.map(put, start()), batch(0), plan)
    state, progress, number = checkpoints.restore(like)
for one, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
    assert wanted.sharding or mesh.size == 1  # a single device: the default one
    assert wanted.sharding is None or one.sharding.is_equivalent_to(wanted.sharding, one.ndim)
print(json.dumps([progress, number]))
save_numbers(folder / f"{name}-restored.npz", state)
state, metrics = train(state, [2])
save_numbers(folder / f"{name}-end.npz", (state.params, metrics))
"""


def run(code: str, *words: str, count: int = 2, devices: int = 1, other: int = 1) -> list[str]:
    """What each process prints."""
    begin = cluster.START if count > 1 else ""
    text = begin + PRELUDE.format(other=other) + code
    return cluster.finish(cluster.start(["-c", text, *map(str, words)], count, devices))


def numbers(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def assert_same(found: pathlib.Path, expected: pathlib.Path, exact: bool = False) -> None:
    one, other = numbers(found), numbers(expected)
    assert one.keys() == other.keys()
    for name, value in other.items():
        rows = min(len(one[name]), len(value)) if value.ndim else None
        if exact:
            np.testing.assert_array_equal(one[name], value, err_msg=name)
        else:  # rows of padding differ in number
            np.testing.assert_allclose(
                one[name][:rows], value[:rows], rtol=2e-5, atol=2e-6, err_msg=name
            )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes of two devices saved, the embedding spread over both."""
    folder = tmp_path_factory.mktemp("saved")
    run(TRAIN_AND_SAVE, folder, count=2, devices=2, other=2)
    return folder


@pytest.mark.slow
def test_processes_train_as_one_does(saved, tmp_path):
    run(TRAIN_AND_SAVE, tmp_path, count=1, devices=1)
    assert_same(saved / "end.npz", tmp_path / "end.npz")
    start = numbers(tmp_path / "saved.npz")
    end = numbers(tmp_path / "end.npz")
    assert any(
        not np.allclose(value, end[f"[0]{name.removeprefix('.params')}"])
        for name, value in start.items()
        if name.startswith(".params")
    )


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices", "other"), [(2, 2, 2), (1, 1, 1), (4, 1, 2)])
def test_any_number_of_processes_restores_what_another_saved(saved, count, devices, other):
    name = f"{count}-{devices}-{other}"
    printed = run(RESTORE, saved, name, count=count, devices=devices, other=other)
    assert [json.loads(line) for line in printed] == [[{"batches": 2}, 0]] * count
    assert_same(saved / f"{name}-restored.npz", saved / "saved.npz", exact=True)
    same = (count, devices, other) == (2, 2, 2)
    assert_same(saved / f"{name}-end.npz", saved / "end.npz", exact=same)


SAVE_TWICE = """
state, folder = jax.tree.map(put, start()), pathlib.Path(sys.argv[1])
with tbptt.Checkpoints(folder, {"of": "a test"}) as checkpoints:
    for number in range(2):
        state, _ = train(state, [number])
        checkpoints.save(state, {"batches": number + 1})
"""

RESTORE_OLDER = """
with tbptt.Checkpoints(sys.argv[1], {"of": "a test"}) as checkpoints:
    like = tbptt.state_after(jax.tree.map(put, start()), batch(0), plan)
    state, progress, number = checkpoints.restore(like)
    print(json.dumps([progress, number, checkpoints.damaged()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_bit_lost_of_one_process_s_part_is_noticed_by_all(tmp_path, count):
    run(SAVE_TWICE, tmp_path, count=2, other=2)
    files = [f for f in (tmp_path / "1").rglob("*") if "process_1" in str(f) and f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    assert largest.stat().st_size > 200  # half of the embedding and of its averages
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    printed = run(RESTORE_OLDER, tmp_path, count=count, other=count)
    assert [json.loads(line) for line in printed] == [[{"batches": 1}, 0, ["damaged-1"]]] * count


IN_USE = """
try:
    tbptt.Checkpoints(sys.argv[1])
except BlockingIOError as error:
    print(error.strerror)
"""


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(tmp_path):
    with tbptt.Checkpoints(tmp_path):
        first, second = run(IN_USE, tmp_path, count=2)
    assert "the folder is in use by process" in first
    assert second == first


RECIPE = """
def read(number):
    return [sequences(3 + 2 * number, 12, seed) for seed in range(4)]

state = train_together(sys.argv[1], read)
print(int(state.step), jax.process_count())
"""


@pytest.mark.slow
def test_the_recipe_for_several_processes_runs_as_it_stands(tmp_path):
    page = ROOT / "docs" / "recipes.md"
    text = page.read_text(encoding="utf-8")
    where = text.index("\n## Several processes\n"), text.index("\n## Streams larger than memory\n")
    found = [*examples(page, 0, text.index("\n## ")), *examples(page, *where)]
    code = "\n".join(one.code for one in found)
    words = ["-c", cluster.START + code + RECIPE, str(tmp_path)]
    assert cluster.finish(cluster.start(words, 2)) == ["12 2\n"] * 2
    assert cluster.finish(cluster.start(words, 2)) == ["12 2\n"] * 2  # restored


@pytest.mark.parametrize("call", [processes.on_first, processes.together])
@pytest.mark.parametrize(
    "error", [BlockingIOError(11, "it is in use", "/folder"), ValueError("no", 3), SystemExit("no")]
)
def test_what_one_process_raises_all_raise(call, error, monkeypatch):
    """As in a program of two processes, of which this is the second."""
    said = []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "gather", lambda value: said.append(value) or [value])

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as own:
        call(fail)
    assert own.value is error
    (first,) = json.loads(json.dumps(said))
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "gather", lambda value: [first, value])
    with pytest.raises(type(error)) as raised:
        call(lambda: 3)
    assert raised.value.args == error.args
    assert getattr(raised.value, "filename", None) == getattr(error, "filename", None)
    result = [5, None] if call is processes.on_first else None
    monkeypatch.setattr(processes, "gather", lambda value: [result, value])
    assert call(lambda: 3) == (5 if call is processes.on_first else 3)


def test_with_one_process_functions_are_only_called():
    assert processes.on_first(lambda: 3) == processes.together(lambda: 3) == 3
    assert processes.gather("a") == ["a"]
    for call in (processes.on_first, processes.together):
        with pytest.raises(ZeroDivisionError):
            call(lambda: 1 / 0)
