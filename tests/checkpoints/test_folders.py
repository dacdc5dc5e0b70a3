"""A folder of checkpoints is the user's: what is not ours stays, and one at a time writes."""

import contextlib
import errno
import gc
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tbptt_jax import Checkpoints
from tbptt_jax.checkpoints import arrays, lock, manager, metadata, store
from tests.checkpoints.test_manager import bits, read_only
from tests.command_line import ROOT

TREE = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.int32)}
CONFIG = {"k1": 2}


def tree(number):
    return {"a": TREE["a"] + number, "b": TREE["b"] * number}


def fill(folder, count=2):
    """Save as many checkpoints, number i with progress i."""
    with Checkpoints(folder, CONFIG) as checkpoints:
        for i in range(count):
            checkpoints.save(tree(i), i)


def restored(folder) -> Any:
    with Checkpoints(folder, CONFIG) as checkpoints:
        return checkpoints.restore(TREE)


def fill_as_before(folder, count=2):
    """As `fill`, in the form of the first version: arrays of their dtypes, no mark."""
    with ocp.CheckpointManager(folder) as writer:
        for number in range(count):
            described, saved = {}, {}
            for i, (name, leaf) in enumerate(tree(number).items()):
                saved[str(i)] = np.asarray(leaf)
                described[str(i)] = {
                    "name": f"['{name}']",
                    "dtype": str(leaf.dtype),
                    "shape": list(leaf.shape),
                    "sha256": hashlib.sha256(saved[str(i)].tobytes()).hexdigest(),
                    "kind": arrays.kind(leaf),
                }
            content = {
                "progress": number,
                "config": CONFIG,
                "versions": metadata.versions(),
                "arrays": described,
            }
            args: Any = ocp.args
            writer.save(
                number,
                args=args.Composite(
                    arrays=args.PyTreeSave(saved),
                    record=args.JsonSave({**content, "sha256": metadata.digest(content)}),
                ),
            )


def everything(folder):
    """Every name below a folder, with what is in it or what it leads to."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------- what is not ours


def users_own(folder):
    """What a user may keep beside checkpoints, under names that look like ours."""
    for name in ("2021", "2022", "2023", "0", "3", "007", "damaged-1", "5.orbax-checkpoint-tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "diary.txt").write_text(f"of {name}")
    (folder / "damaged-2").mkdir()  # empty
    (folder / "4").mkdir()
    (folder / "1").write_text("a file")
    (folder / "damaged-6").write_text("a file")
    (folder / "7.orbax-checkpoint-tmp").write_text("a file")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "photo").write_bytes(b"\xff\xd8")
    (folder / "8").symlink_to("elsewhere")
    (folder / "9").symlink_to("nowhere")
    with ocp.CheckpointManager(folder / "theirs") as writer:  # another's checkpoints
        writer.save(0, args=ocp.args.StandardSave({"a": np.ones(2)}))  # pyright: ignore
    shutil.copytree(folder / "theirs" / "0", folder / "12")
    (folder / "13" / "record").mkdir(parents=True)
    (folder / "13" / "record" / "metadata").write_text('{"title": "of an LP"}')
    (folder / "13" / "arrays").mkdir()
    (folder / "13" / "_CHECKPOINT_METADATA").write_text("{}")


def test_what_a_user_keeps_in_the_folder_stays_as_it_is(tmp_path):
    users_own(tmp_path)
    before = everything(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.numbers() == []
        assert checkpoints.restore(TREE) is None
        for i in range(9):
            checkpoints.save(tree(i), i)
            checkpoints.wait()
        kept = checkpoints.numbers()
        assert len(kept) == 2
        # Damage, and what is saved after it.
        next((tmp_path / str(kept[-1]) / "arrays").rglob("*/*")).write_bytes(b"")
        found = checkpoints.restore(TREE)
        assert found is not None
        assert (found.number, found.progress) == (kept[0], 7)
        assert bits(found.tree) == bits(tree(7))
        checkpoints.save(tree(9), 9)
        checkpoints.wait()
        ours = [f"damaged-{kept[-1]}", *map(str, checkpoints.numbers())]
    after = everything(tmp_path)
    theirs = {n: c for n, c in after.items() if n.split("/")[0] not in ours}
    assert theirs == before
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.clear()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", [fill, fill_as_before])
def test_a_link_to_a_checkpoint_is_neither_followed_nor_moved(form, tmp_path):
    form(tmp_path / "archive")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "0").symlink_to(tmp_path / "archive" / "0")
    before = everything(tmp_path)
    with Checkpoints(tmp_path / "here", CONFIG) as checkpoints:
        assert checkpoints.numbers() == []
        checkpoints.save(TREE)
        checkpoints.wait()
        assert checkpoints.numbers() == [1]
        checkpoints.clear()
    assert everything(tmp_path) == before


def test_one_that_is_set_aside_replaces_nothing(tmp_path):
    fill(tmp_path)
    (tmp_path / "damaged-1").mkdir()
    (tmp_path / "damaged-1-2").write_text("a user's")
    (tmp_path / "1" / "record" / "metadata").write_text("{}")
    assert restored(tmp_path).number == 0
    assert names(tmp_path) == ["0", "damaged-1", "damaged-1-2", "damaged-1-3"]
    assert names(tmp_path / "damaged-1") == []
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.damaged() == ["damaged-1-3"]
        checkpoints.save(TREE)
        checkpoints.wait()
        assert checkpoints.numbers() == [0, 2]


def test_half_of_one_is_removed_only_where_it_is_ours(tmp_path):
    fill(tmp_path)
    shutil.copytree(tmp_path / "1", tmp_path / "7.orbax-checkpoint-tmp")
    (tmp_path / "8.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp" / "thesis.tex").write_text("x")
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(TREE)
        checkpoints.wait()
    assert names(tmp_path) == ["1", "8.orbax-checkpoint-tmp", "9"]


def test_one_that_is_half_removed_is_still_ours(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.setattr(store.shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.remove(tmp_path / "0")
    monkeypatch.undo()
    assert names(tmp_path) == ["0.orbax-checkpoint-tmp", "1"]
    assert restored(tmp_path).number == 1
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(TREE)
    assert names(tmp_path) == ["1", "2"]


def test_what_a_failed_write_left_makes_room_for_the_next(tmp_path, monkeypatch):
    fill(tmp_path)
    shutil.copytree(tmp_path / "1", tmp_path / "7.orbax-checkpoint-tmp")

    def usage(path):
        free = 0 if (path / "7.orbax-checkpoint-tmp").exists() else 1 << 30
        return type("Usage", (), {"free": free})()

    monkeypatch.setattr(manager.shutil, "disk_usage", usage)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(TREE)
    assert names(tmp_path) == ["1", "8"]


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_checkpoint_of_the_first_version_is_restored(tmp_path):
    fill_as_before(tmp_path)
    found = restored(tmp_path)
    assert (found.number, found.progress) == (1, 1)
    assert bits(found.tree) == bits(tree(1))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(tree(2), 2)
        checkpoints.wait()
        assert checkpoints.numbers() == [1, 2]


@pytest.mark.filterwarnings("ignore")  # what libraries make of a damaged file is theirs to say
@pytest.mark.parametrize("hurt", ["halve", "remove", "empty"])
def test_damage_to_one_of_the_first_version_is_noticed(hurt, tmp_path):
    fill_as_before(tmp_path / "whole")
    files = [p for p in (tmp_path / "whole" / "1").rglob("*") if p.is_file()]
    for i, file in enumerate(files):
        shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        victim = tmp_path / str(i) / "1" / file.relative_to(tmp_path / "whole" / "1")
        content = victim.read_bytes()
        victim.unlink() if hurt == "remove" else victim.write_bytes(
            content[: len(content) // 2] if hurt == "halve" else b""
        )
        found = restored(tmp_path / str(i))
        assert bits(found.tree) == bits(tree(found.number)), file
        assert ("damaged-1" in names(tmp_path / str(i))) == (found.number == 0)


# ------------------------------------------------------------------------ what is no damage


@pytest.mark.parametrize("form", [fill, fill_as_before])
def test_after_no_checkpoint_can_be_read_nothing_is_restored_in_silence(form, tmp_path):
    form(tmp_path)
    for number in "01":
        (tmp_path / number / "record" / "metadata").write_bytes(b"{")
    message = r"no checkpoint .*: 1 \(.*metadata .+\), 0 \(.*metadata .+\)"
    if form is fill:
        message = r"no checkpoint .*: 1 \(record/metadata .+\), 0 \(.+\)"
    with pytest.raises(OSError, match=message):
        restored(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="no checkpoint .*: damaged-0, damaged-1"):
            restored(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(tree(2), 2)  # who restarts all the same may
    assert restored(tmp_path).number == 2
    assert names(tmp_path) == ["2", "damaged-0", "damaged-1"]


NO_DAMAGE = [
    MemoryError(),
    KeyboardInterrupt(),
    *(
        OSError(code, os.strerror(code))
        for code in (
            errno.EIO,
            errno.EACCES,
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOMEM,
            errno.ESTALE,
        )
    ),
]


@pytest.mark.parametrize("form", [fill, fill_as_before])
@pytest.mark.parametrize("where", ["bytes", "arrays", "device"])
@pytest.mark.parametrize("error", NO_DAMAGE, ids=lambda e: f"{type(e).__name__}{e.args[:1]}")
def test_what_says_nothing_of_a_checkpoint_is_raised_as_it_is(
    error, where, form, tmp_path, monkeypatch
):
    form(tmp_path)
    before = everything(tmp_path)

    def fail(*_, **__):
        raise error

    owner: Any = {"bytes": hashlib, "arrays": ocp.Checkpointer, "device": manager}[where]
    name = {"bytes": "file_digest", "arrays": "restore", "device": "unpack"}[where]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)) as raised:
        restored(tmp_path)
    assert raised.value is error
    monkeypatch.undo()
    assert everything(tmp_path) == before
    assert restored(tmp_path).number == 1


def restore_with_few_files(folder):
    """What the next test does, in a process of its own: Orbax leaves coroutines behind."""
    before, limits = everything(folder), resource.getrlimit(resource.RLIMIT_NOFILE)
    failed = []
    for extra in range(12):
        with Checkpoints(folder, CONFIG) as checkpoints:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + extra, limits[1]))
            try:
                found = checkpoints.restore(TREE)
                assert found is not None
                assert found.number == 1
            except OSError as error:
                failed.append(error.errno)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert everything(folder) == before
    assert len(failed) >= 2
    assert set(failed) == {errno.EMFILE}


@pytest.mark.parametrize("form", [fill, fill_as_before])
def test_too_many_open_files_are_no_damage(form, tmp_path):
    form(tmp_path)
    code = "import sys; t.restore_with_few_files(t.pathlib.Path(sys.argv[1]))"
    process = elsewhere(code, str(tmp_path))
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors


@contextlib.contextmanager
def for_anyone():
    """A folder that another user may look into; tmp_path is its owner's."""
    with tempfile.TemporaryDirectory() as root:
        pathlib.Path(root).chmod(0o755)
        yield pathlib.Path(root)


@pytest.mark.parametrize("form", [fill, fill_as_before])
@pytest.mark.parametrize("what", ["", "record", "record/metadata", "arrays", "arrays/_METADATA"])
def test_what_may_not_be_read_is_no_damage(what, form):
    with for_anyone() as folder:
        form(folder)
        before = everything(folder)
        (folder / "1" / what).chmod(0)
        with read_only(folder), pytest.raises(PermissionError, match="Permission denied"):
            restored(folder)
        (folder / "1" / what).chmod(0o755)
        assert everything(folder) == before


def test_a_folder_that_can_only_be_read_is_restored_from(caplog):
    with for_anyone() as folder:
        fill(folder)
        with read_only(folder), Checkpoints(folder, CONFIG) as checkpoints:
            found = checkpoints.restore(TREE)
            assert found is not None
            assert found.number == 1
            with pytest.raises(PermissionError, match="checkpoint 2 .*read-only"):
                checkpoints.save(TREE)
        # Damage is found there too, again and again, and nothing is taken for nothing.
        (folder / "1" / "record" / "metadata").write_bytes(b"")
        with read_only(folder):
            assert restored(folder).number == 0
        assert "(Permission denied)" in caplog.text
        (folder / "0" / "record" / "metadata").write_bytes(b"")
        for _ in range(2):
            with (
                read_only(folder),
                pytest.raises(OSError, match=r"no checkpoint .*: 1 \("),
            ):
                restored(folder)
        assert names(folder) == ["0", "1"]


def test_one_that_another_process_removes_meanwhile_is_no_damage(tmp_path, monkeypatch, caplog):
    fill(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        read = store.check_files

        def remove_and_read(path):
            if path.name == "1":
                shutil.rmtree(path)
            return read(path)

        monkeypatch.setattr(store, "check_files", remove_and_read)
        found = checkpoints.restore(TREE)
        assert found is not None
        assert found.number == 0
    assert caplog.records == []
    assert names(tmp_path) == ["0"]


# ---------------------------------------------------------------------------- one at a time


def elsewhere(code, *arguments, **options):
    """A process that runs code of this module."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import {__name__} as t\n{code}",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HOLD = """
import sys, time
with t.Checkpoints(sys.argv[1], t.CONFIG) as checkpoints:
    checkpoints.save(t.TREE, 0)
    checkpoints.wait()
    print("held", flush=True)
    sys.stdin.readline()
"""


def held_by(process):
    host = re.escape(socket.gethostname())
    return (
        rf"Checkpoints: the folder .* process {process} on {host}"
        r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    )


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_a_folder_is_one_process_s_until_it_ends(ending, tmp_path):
    other = elsewhere(HOLD, str(tmp_path))
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n", other.communicate()
    with pytest.raises(BlockingIOError, match=held_by(other.pid)):
        Checkpoints(tmp_path, CONFIG)
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(BlockingIOError, match=held_by(other.pid)):
        Checkpoints(tmp_path / "linked", CONFIG)
    if ending == "killed":
        other.kill()
    other.communicate("\n")
    assert restored(tmp_path).progress == 0
    assert names(tmp_path) == ["0", "linked"]


def test_a_folder_is_one_object_s_in_a_process(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(BlockingIOError, match=f"this process .*{os.getpid()} on"):
            Checkpoints(tmp_path)
        checkpoints.save(TREE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.close()  # and once more at the end of the block
        with pytest.raises(ValueError, match=f"Checkpoints: {tmp_path} .*closed"):
            checkpoints.save(TREE)
        with pytest.raises(ValueError, match=f"Checkpoints: {tmp_path} .*closed"):
            checkpoints.restore(TREE)
        checkpoints.wait()
        with Checkpoints(tmp_path):
            checkpoints.close()  # which is not the other's
            with pytest.raises(BlockingIOError):
                Checkpoints(tmp_path)
    Checkpoints(tmp_path)  # dropped without a word
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.numbers() == [0]


def test_a_lock_that_a_killed_process_left_locks_nothing(tmp_path):
    (tmp_path / lock.NAME).write_text(json.dumps({"pid": 1, "host": "h", "since": "s"}))
    fill(tmp_path)
    assert names(tmp_path) == ["0", "1"]


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / lock.NAME).symlink_to("precious")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match="symbolic links"):
        checkpoints.save(TREE)
    assert (tmp_path / "precious").read_text() == "x"


def test_a_folder_that_cannot_be_locked_is_said(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    fill(tmp_path)
    assert restored(tmp_path).number == 1
    assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
checkpoints = t.Checkpoints(sys.argv[1], t.CONFIG)
checkpoints.save(t.TREE, 0)
checkpoints.wait()
child = os.fork()
"""


def test_a_forked_process_neither_writes_nor_unlocks(tmp_path):
    code = """
if not child:
    try:
        checkpoints.save(t.TREE, 1)
    except BlockingIOError as error:
        print(error.strerror, flush=True)
    checkpoints.close()
    sys.exit()
os.waitpid(child, 0)
checkpoints.save(t.TREE, 1)
checkpoints.wait()
print(*t.names(t.pathlib.Path(sys.argv[1])))
"""
    parent = elsewhere(FORK + code, str(tmp_path))
    output, errors = parent.communicate(timeout=100)
    assert parent.returncode == 0, errors
    assert f"in use by process {parent.pid} on " in output
    assert output.splitlines()[-1] == f"{lock.NAME} 0 1"


def test_a_forked_process_that_lives_on_does_not_keep_the_folder(tmp_path):
    code = """
if child:
    os._exit(0)
print("forked", flush=True)
sys.stdin.readline()
"""
    parent = elsewhere(FORK + code, str(tmp_path))
    assert parent.wait(timeout=100) == 0
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    assert restored(tmp_path).number == 0
    parent.communicate("\n")


TURNS = """
import sys, time
for i in range(4):
    while True:
        try:
            checkpoints = t.Checkpoints(sys.argv[1], t.CONFIG)
            break
        except BlockingIOError:
            time.sleep(0.01)
    with checkpoints:
        found = checkpoints.restore(t.TREE)
        number = found.progress + 1 if found else 0
        assert not found or t.bits(found.tree) == t.bits(t.tree(found.progress))
        checkpoints.save(t.tree(number), number)
"""


@pytest.mark.slow
def test_processes_that_take_turns_lose_nothing(tmp_path):
    processes = [elsewhere(TURNS, str(tmp_path)) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    found = restored(tmp_path)
    assert (found.number, found.progress) == (11, 11)
    assert names(tmp_path) == ["10", "11"]


def test_threads_with_a_folder_each_save_and_restore(tmp_path):
    errors = []

    def work(folder):
        try:
            for i in range(4):
                with Checkpoints(folder, CONFIG) as checkpoints:
                    checkpoints.save(tree(i), i)
                    checkpoints.save(tree(i + 100), i)
                    checkpoints.wait()
                    found = checkpoints.restore(TREE)
                    assert found is not None
                    assert bits(found.tree) == bits(tree(i + 100))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(tmp_path / str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for i in range(4):
        assert names(tmp_path / str(i)) == ["6", "7"]


# ------------------------------------------------------------------------------- what goes wrong


def test_a_folder_that_is_gone_is_said(tmp_path):
    with Checkpoints(tmp_path / "a", CONFIG) as checkpoints:
        checkpoints.save(TREE)
        checkpoints.wait()
        shutil.rmtree(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match=f"gone.* '{tmp_path}/a'"):
            checkpoints.save(TREE)
        fill(tmp_path / "a")  # another's now
        with Checkpoints(tmp_path / "a", CONFIG), pytest.raises(BlockingIOError):
            checkpoints.save(TREE)
    assert names(tmp_path / "a") == ["0", "1"]


def test_waiting_may_end_before_the_write_does(tmp_path, monkeypatch):
    proceed = threading.Event()
    write = store.write

    def slowly(*arguments):
        proceed.wait(60)
        write(*arguments)

    monkeypatch.setattr(store, "write", slowly)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(TREE)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"checkpoint 0 .* 0\.2 seconds"):
            checkpoints.wait(timeout=0.2)
        assert time.monotonic() - begun < 10
        proceed.set()
        checkpoints.wait()
        assert checkpoints.numbers() == [0]


REFUSED = """
import sys, time
with t.Checkpoints(sys.argv[1], t.CONFIG) as checkpoints:
    t.resource.setrlimit(t.resource.RLIMIT_FSIZE, (100, 4000))
    checkpoints.save({"a": t.np.random.default_rng(0).normal(size=20_000)}, 0)
    try:
        checkpoints.wait()
    except OSError as error:
        print(error)
print(time.time())
"""

LEFT = """
import sys, time
checkpoints = t.Checkpoints(sys.argv[1], t.CONFIG)
checkpoints.save({"a": t.np.zeros(20_000)}, 0)
print(time.time())
"""


@pytest.mark.parametrize("code", [REFUSED, LEFT], ids=["refused", "not closed"])
def test_the_process_ends_after_a_write_that_failed_or_was_left(code, tmp_path):
    process = elsewhere(code, str(tmp_path))
    output, errors = process.communicate(timeout=100)
    assert time.time() - float(output.splitlines()[-1]) < 20
    assert process.returncode == 0, errors
    if code == REFUSED:
        assert "checkpoint 0 could not be written: " in output
    elif "0" in names(tmp_path):
        assert "is lost" not in errors
    else:
        assert "checkpoint 0 in" in errors
        assert "is lost: " in errors


LATE = """
import concurrent.futures, sys, threading, time
executor = concurrent.futures.ThreadPoolExecutor(1)

def write(*_):
    executor.submit(threading.current_thread().join)  # holds up the exit hook of executors
    while True:
        executor.submit(int)  # refused as soon as that hook runs
        time.sleep(0.01)

t.store.write = write
checkpoints = t.Checkpoints(sys.argv[1], t.CONFIG)
checkpoints.save(t.TREE, 0)
"""


def test_a_write_that_fails_while_python_shuts_executors_down_is_reported(tmp_path):
    process = elsewhere(LATE, str(tmp_path))
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert f"checkpoint 0 in {tmp_path} is lost: cannot schedule new futures after" in errors
    assert "; use `with Checkpoints(...)`, or call close() before the program ends" in errors


def fail_to_write(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_an_error_is_raised_or_reported_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "write", fail_to_write)
    checkpoints = Checkpoints(tmp_path / "raised")
    checkpoints.save(TREE)
    with pytest.raises(OSError, match="checkpoint 0 could not be written"):
        checkpoints.wait()
    del checkpoints
    gc.collect()
    assert caplog.messages == []
    checkpoints = Checkpoints(tmp_path / "dropped")
    checkpoints.save(TREE)
    del checkpoints
    deadline = time.monotonic() + 60
    while not caplog.messages and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    (message,) = caplog.messages
    assert f"checkpoint 0 in {tmp_path / 'dropped'} is lost: [Errno 5] Input/output" in message
