"""Checkpoints: every bit comes back; what is damaged, full or another's is reported."""

import contextlib
import functools
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tbptt_jax as tbptt
from tbptt_jax import Checkpoints
from tbptt_jax.checkpoints import lock, manager
from tests.command_line import ROOT
from tests.networks import ENCODED, F64, HIDDEN, LOSSES, cut, make_batch, make_model

CONFIG = {"model": "lstm", "k1": 2}
PLANS = [tbptt.Truncation(2, 5), tbptt.Truncation(2, 3, "loss"), tbptt.Truncation(4, 2)]


def make(hidden=HIDDEN):
    """A network with dropout, so that its key is part of what it is."""
    rngs = nnx.Rngs(0)
    model = make_model()
    model.core = tbptt.LSTM(ENCODED, hidden, rngs=rngs, **F64)
    model.readout = nnx.Sequential(
        nnx.Dropout(0.5, rngs=rngs), nnx.Linear(hidden, 2, rngs=rngs, **F64)
    )
    return tbptt.TrainState.create(model, optax.adam(0.1), LOSSES["xent"], seed=3)


def batches():
    whole = make_batch(24, "mw", rows=3)
    whole = whole._replace(reset=np.arange(24) == np.zeros((3, 1)))
    return [cut(whole, t, t + 4) for t in range(0, 24, 4)]


def train(state, some, plan):
    metrics = None
    for batch in some:
        state, metrics = tbptt.train_step(state, batch, plan)
    return state, metrics


def save_and_wait(checkpoints, state):
    checkpoints.save(state, {})
    checkpoints.wait()


def like(plan, hidden=HIDDEN):
    state = make(hidden)
    return jax.eval_shape(functools.partial(tbptt.train_step, truncation=plan), state, batches()[0])


def bits(tree):
    """Every leaf's dtype, shape and bytes; a key's are its data's."""
    found = []
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.append((array.dtype, array.shape, array.tobytes()))
    return found


@pytest.fixture
def two(tmp_path):
    """A folder with two checkpoints, after 1 and after 2 batches, and those states' bits."""
    plan, state, known = PLANS[0], make(), []
    with Checkpoints(tmp_path / "two", CONFIG) as checkpoints:
        for i, batch in enumerate(batches()[:2]):
            state, _ = tbptt.train_step(state, batch, plan)
            known.append(bits(state))
            checkpoints.save(state, {"batches": i + 1})
    return tmp_path / "two", known


# ------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.k1}-{p.k2}-{p.anchor}")
def test_training_goes_on_in_the_middle_of_a_stream_with_the_same_bits(plan, tmp_path):
    expected = train(make(), batches(), plan)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        state, _ = train(make(), batches()[:3], plan)
        checkpoints.save((state, jnp.zeros(())), {"batches": 3, "history": [{"loss": 0.5}]})
        # The state is donated while it is written.
        jax.block_until_ready(train(state, batches()[3:4], plan))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        found = checkpoints.restore((like(plan)[0], jnp.ones(())))
    assert found is not None
    state, zero = found.tree
    assert (zero, found.number) == (0, 0)
    assert found.progress == {"batches": 3, "history": [{"loss": 0.5}]}
    assert state.stream.lookback is not None or plan.k2 <= plan.k1
    assert bits(train(state, batches()[3:], plan)) == bits(expected)


def test_nothing_was_ever_saved(tmp_path):
    with Checkpoints(tmp_path / "new", CONFIG) as checkpoints:
        assert checkpoints.restore(like(PLANS[0])) is None
        assert checkpoints.numbers() == []


def test_the_last_two_are_kept_and_the_newest_is_taken(two):
    folder, _ = two
    state = make()
    with Checkpoints(folder, CONFIG) as checkpoints:
        state, _ = train(state, batches()[:3], PLANS[0])
        checkpoints.save(state, {"batches": 3})
        checkpoints.wait()
        assert checkpoints.numbers() == [1, 2]
        found = checkpoints.restore(like(PLANS[0])[0])
    assert found is not None
    assert (found.number, found.progress) == (2, {"batches": 3})
    assert bits(found.tree) == bits(state)


def test_evaluating_predicting_and_saving_leave_the_training_as_it_is(tmp_path):
    plan, (first, second, *others) = PLANS[0], batches()
    expected = train(make(), [first, second], plan)
    state, _ = tbptt.train_step(make(), first, plan)
    before = bits(state)
    with Checkpoints(tmp_path) as checkpoints:
        for batch in others:
            tbptt.evaluate(state, [batch])
            tbptt.predict(state, batch)
            tbptt.gradient(state, batch, plan)
            checkpoints.save(state)
        assert bits(state) == before
    assert bits(train(state, [second], plan)) == bits(expected)


# ----------------------------------------------------------------------------------- what is hurt


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content), max(1, len(content) // 4)):
        content[i] ^= 0x10
    path.write_bytes(content)


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.filterwarnings("ignore")  # what libraries make of a damaged file is theirs to say
@pytest.mark.parametrize("hurt", [halve, flip, remove, empty])
def test_a_damaged_file_never_gives_other_bits(hurt, two, tmp_path):
    folder, known = two
    fell_back = 0
    files = files_of(folder / "1")
    assert len(files) > 3
    for i, file in enumerate(files):
        damaged = tmp_path / str(i)
        shutil.copytree(folder, damaged)
        hurt(damaged / "1" / file)
        content = {p: (damaged / "1" / p).read_bytes() for p in files_of(damaged / "1")}
        with Checkpoints(damaged, CONFIG) as checkpoints:
            found = checkpoints.restore(like(PLANS[0])[0])
            assert found is not None
            assert bits(found.tree) == known[found.number]
            assert found.progress == {"batches": found.number + 1}
            if found.number == 1:
                continue  # a file that nothing depends on
            fell_back += 1
            # It is out of the way, and stays what it was whatever is saved later.
            for _ in range(3):
                checkpoints.save(found.tree, {})
            checkpoints.wait()
            assert checkpoints.numbers() == [3, 4]
        aside = damaged / "damaged-1"
        assert {p: (aside / p).read_bytes() for p in files_of(aside)} == content
    assert fell_back >= 2  # the arrays and the record at least


def test_what_is_damaged_is_told_and_where_nothing_is_whole_it_ends(two, caplog):
    folder, _ = two
    for number in (0, 1):
        for file in files_of(folder / str(number)):
            halve(folder / str(number) / file)
    with (
        Checkpoints(folder, CONFIG) as checkpoints,
        pytest.raises(OSError, match=r"no checkpoint .*: 1 \(.+\), 0 \(.+\)"),
    ):
        checkpoints.restore(like(PLANS[0])[0])
    logged = [record.getMessage() for record in caplog.records]
    assert sum("is damaged" in message for message in logged) == 2
    assert f"checkpoint 1 in {folder} is damaged" in logged[0]
    assert "damaged-1" in logged[0]


def test_closing_removes_nothing_where_nothing_was_written(two):
    folder, _ = two
    shutil.copytree(folder / "1", folder / "2")
    with Checkpoints(folder, CONFIG) as checkpoints:
        checkpoints.wait()
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2"]


def test_half_a_checkpoint_is_none(two):
    folder, known = two
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    with Checkpoints(folder, CONFIG) as checkpoints:
        found = checkpoints.restore(like(PLANS[0])[0])
    assert found is not None
    assert bits(found.tree) == known[1]


# ----------------------------------------------------------------------------- what is another's


def test_another_training_is_refused_and_what_differs_is_listed(two):
    folder, _ = two
    other = {"model": "gru", "k1": 2, "data": {"texts": 3}}
    with (
        Checkpoints(folder, other) as checkpoints,
        pytest.raises(ValueError, match="^checkpoint 1 in ") as refused,
    ):
        checkpoints.restore(like(PLANS[0])[0])
    assert re.search(r"\n  model: lstm\b.* gru\b", str(refused.value))
    assert re.search(r"\n  data: nothing\b.* {'texts': 3}", str(refused.value))
    with (
        Checkpoints(folder, CONFIG) as checkpoints,
        pytest.raises(ValueError, match="^checkpoint 1 in ") as refused,
    ):
        checkpoints.restore(like(PLANS[0], hidden=5)[0])
    assert re.search(r"\.carry\[0\]: float64\[3, 3\] .* float64\[3, 5\]", str(refused.value))
    with (
        Checkpoints(folder, CONFIG) as checkpoints,
        pytest.raises(
            ValueError,
            match=r"lookback\.inputs: float64\[3, 4, 3\] .* float64\[3, 1, 3\]",
        ),
    ):
        checkpoints.restore(like(PLANS[2])[0])
    # None of this was taken for damage.
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1"]


def test_other_versions_are_told(two, caplog, monkeypatch):
    folder, known = two
    found = manager.versions()
    monkeypatch.setattr(manager, "versions", lambda: {**found, "jax": "0.0.1"})
    with Checkpoints(folder, CONFIG) as checkpoints:
        state = checkpoints.restore(like(PLANS[0])[0])
    assert state is not None
    assert bits(state.tree) == known[1]
    (logged,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"jax: {re.escape(jax.__version__)} .* 0\.0\.1\b", logged)


unpickled = []


def note_unpickling(event, arguments):
    if event == "pickle.find_class":
        unpickled.append(arguments)


def test_loading_executes_nothing(two, monkeypatch):
    folder, _ = two
    sys.addaudithook(note_unpickling)  # it stays until the process ends
    sys.audit("pickle.find_class", "builtins", "int")  # as unpickling does
    assert unpickled, "the hook must see an unpickling for this test to show"
    unpickled.clear()
    with Checkpoints(folder, CONFIG) as checkpoints:
        checkpoints.restore(like(PLANS[0])[0])
    assert unpickled == []


# ------------------------------------------------------------------------ what cannot be written


@contextlib.contextmanager
def files_up_to(size):
    """As on a disk that is full: what would make a file larger fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def read_only(folder):
    """Nothing can be written into the folder, not even by root, who is someone else meanwhile."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def fail_to_write(folder):
    """What the next test does, in a process of its own: Orbax leaves threads and tasks behind."""
    with Checkpoints(folder, CONFIG) as checkpoints:
        before = checkpoints.restore(like(PLANS[0])[0])
        assert before is not None
        message = "checkpoint 2 .+Checkpoint 1 stays"
        for _ in range(2):
            with files_up_to(100), pytest.raises(OSError, match=message):
                save_and_wait(checkpoints, make())
            assert checkpoints.numbers() == [0, 1]
            found = checkpoints.restore(like(PLANS[0])[0])
            assert found is not None
            assert found.number == 1
            assert bits(found.tree) == bits(before.tree)
            message = message.replace("checkpoint 2", "checkpoint 3")
        # And when there is room again it saves.
        checkpoints.save(before.tree, {})
        checkpoints.wait()
        assert sorted(p.name for p in folder.iterdir()) == [lock.NAME, "1", "4"]


def test_a_write_that_fails_is_told_once_and_the_older_checkpoints_stay(two):
    call = f"import {__name__} as t; t.fail_to_write(t.pathlib.Path('{two[0]}'))"
    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_told_before_anything_is_written(two, monkeypatch):
    folder, _ = two
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with Checkpoints(folder, CONFIG) as checkpoints:
        message = r"checkpoint 2 .* [\d,]{5,} bytes .* 1,000 .* Checkpoint 1"
        with pytest.raises(OSError, match=message):
            checkpoints.save(make(), {})
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1"]


def test_a_read_only_folder_is_told():
    # Not in tmp_path, which only its owner may look into.
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        folder.chmod(0o755)
        state = make()
        with Checkpoints(folder, CONFIG) as checkpoints:
            checkpoints.save(state, {})
            checkpoints.wait()
            message = "checkpoint 1 .* read-only.* Checkpoint 0 stays"
            with read_only(folder), pytest.raises(PermissionError, match=message):
                checkpoints.save(state, {})
            assert checkpoints.numbers() == [0]
