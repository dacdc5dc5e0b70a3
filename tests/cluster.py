"""Programs in several processes that compute together: `jax.distributed` on this machine's CPUs.

Where the system allows it, they have a network of their own.
"""

import atexit
import functools
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
START = """
import os, sys
import jax
jax.distributed.initialize(
    num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
)
"""


@functools.cache
def network() -> list[str]:
    """What starts a command in a network of ours, in which no other program has a port.

    Nothing where the system has no such networks, or does not let us make one.
    """
    tools = [shutil.which(name) for name in ("unshare", "nsenter", "ip")]
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    if None in tools or subprocess.run(["unshare", "--net", *user, "true"], check=False).returncode:
        return []
    holder = subprocess.Popen(
        ["unshare", "--net", *user, "sh", "-c", "ip link set lo up && echo up && exec sleep 1d"],
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(holder.kill)
    assert holder.stdout is not None
    if holder.stdout.readline() != "up\n":
        return []
    enter = ["nsenter", f"--target={holder.pid}", "--net"]
    return [*enter, "--user", "--preserve-credentials"] if user else enter


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(
    words: list[str], processes: int, devices: int = 1, alone: bool = False
) -> list[subprocess.Popen]:
    """Start a command in several processes that find each other; `alone`: in one that does not."""
    address = f"127.0.0.1:{free_port()}"

    def found(number: int) -> dict[str, str]:
        names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
        return dict(zip(names, (address, str(processes), str(number)), strict=True))

    inside = network() if processes > 1 else []
    return [
        subprocess.Popen(
            [*inside, sys.executable, *words],
            env={**environment(devices), **({} if alone else found(number))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(processes)
    ]


def finish(running: list[subprocess.Popen], timeout: float = 300) -> list[str]:
    """What each process printed; all must have ended well."""
    outputs = [process.communicate(timeout=timeout) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-5000:]
    # Gloo says on standard output whom it is connected to.
    return [re.sub(r"^\[Gloo\].*\n", "", printed, flags=re.M) for printed, _ in outputs]


def run(code: str, processes: int, devices: int = 1) -> list[str]:
    """What each of several processes prints that run a program together; or the only one."""
    code = (START if processes > 1 else "") + textwrap.dedent(code)
    return finish(start(["-c", code], processes, devices))
