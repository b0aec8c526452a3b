"""Each mechanism matters: without it an attack works. Where another one still stops it, both are taken away in turn.

The attacks are small and bounded: they show that a door is open, and do not go through.
"""

import ctypes
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program, Tier
from tests.unit.sandbox.attacks import LIBC
from tests.unit.sandbox.conftest import policy

TIGHT = Limits(
    cpu_s=5, wall_s=60, memory_mb=200, processes=10, file_mb=4, disk_mb=10, output_kb=64, open_files=100
)
MOMENT_S, LONG_S = "0.1", "600"
"""How long an attack holds what it got, without and with its mechanisms: whoever watches has all the time he needs."""
WORKED = '\nprint("WORKED")\n'


@dataclass(frozen=True)
class Door:
    """An attack that works in a tier without some mechanisms, and not while one of them is there."""

    tier: Tier
    without: tuple[str, ...]
    code: str
    limits: Mapping[str, float] = field(default_factory=dict)


_SOCKET = "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)" + WORKED
_TCP = "import socket\nsocket.create_connection(('127.0.0.1', PORT), 30)" + WORKED
_CHILDREN = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        x = bytearray(b"x") * (70 << 20)
        time.sleep(600)
        os._exit(0)
time.sleep(HELD)
"""
_MANY = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
time.sleep(HELD)
"""
_BURN = "import time\nend = time.process_time() + 2.3\nwhile time.process_time() < end: pass" + WORKED
_ROOM = "x = bytearray(b'x') * (310 << 20)\nimport time\ntime.sleep(HELD)" + WORKED
_UNSHARE = LIBC + "if libc.unshare({}): raise OSError" + WORKED
_VANISHING_DISK = """
import time
for i in range(6): open(str(i), "wb").write(bytes(3 << 20))
time.sleep(HELD)
"""
DOORS = {
    "a network of its own": Door("namespaces", ("network", "network namespace"), _TCP),
    "sockets in a network of its own": Door("namespaces", ("network",), _SOCKET),
    "sockets beside the host's": Door("landlock", ("network",), _SOCKET),
    "connections": Door("landlock", ("network", "landlock"), _TCP),
    "connections of another user": Door("uid", ("network",), _TCP),
    "tracing": Door(
        "namespaces",
        ("trace",),
        LIBC
        + """
pid = os.fork() or time.sleep(600)
if libc.ptrace(16, pid, 0, 0): raise OSError
os.kill(pid, 9)"""
        + WORKED,
    ),
    "handles of files": Door(
        "namespaces",
        ("mounts",),
        LIBC
        + "handle, mount = (ctypes.c_uint * 40)(128), ctypes.c_int()\n"
        + "if system(303, 264, -100, b'.', handle, ctypes.byref(mount), 0): raise OSError"
        + WORKED,
    ),
    "user namespaces": Door("namespaces", ("namespaces",), _UNSHARE.format("0x10000000")),
    "mounts in a namespace of its own": Door(
        "namespaces",
        ("namespaces", "mounts"),
        LIBC
        + "if libc.unshare(0x10020000) or libc.mount(b'x', b'.', b'tmpfs', 0, b'size=4k'): raise OSError"
        + WORKED,
    ),
    "rights": Door("namespaces", ("capabilities", "namespaces"), _UNSHARE.format("0x20000")),
    "personality": Door(
        "namespaces", ("kernel",), LIBC + "if libc.personality(0x0400000) < 0: raise OSError" + WORKED
    ),
    "nameless files": Door("namespaces", ("hidden memory",), "import os\nos.memfd_create('x')" + WORKED),
    "nameless shared memory": Door("landlock", ("hidden memory",), LIBC + "mapped(1 << 20, 0x21)" + WORKED),
    "shared memory of the host": Door(
        "landlock",
        ("hidden memory",),
        LIBC
        + "segment = system(29, 194, 0, 4096, 0o1600)\nif segment < 0: raise OSError\nsystem(31, 195, segment, 0, 0)"
        + WORKED,
    ),
    "descriptors on their way": Door(
        "landlock",
        ("hidden memory",),
        "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])" + WORKED,
    ),
    "limits of the parent": Door(
        "namespaces",
        ("other processes",),
        "import os, resource\nresource.prlimit(os.getppid(), 4, (1, 1))" + WORKED,
    ),
    "the parent's turn": Door(
        "namespaces", ("other processes",), "import os\nos.setpriority(0, os.getppid(), 1)" + WORKED
    ),
    "clones with hidden flags": Door(
        "namespaces",
        ("clone",),
        LIBC + "if libc.syscall(435, 0, 0) and ctypes.get_errno() == 38: raise OSError" + WORKED,
    ),
    "owners of pipes": Door(
        "namespaces",
        ("signals",),
        "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getpid())" + WORKED,
    ),
    "the host's files": Door("landlock", ("landlock",), "print(open('SECRET').read()[:0])" + WORKED),
    "writing": Door("read-only", ("files",), "open('file', 'w').write('x')" + WORKED),
    "children": Door("read-only", ("fork",), "import os\nos.fork() or os._exit(0)\nos.wait()" + WORKED),
    "memory of all together": Door("namespaces", ("watcher",), _CHILDREN + WORKED),
    "memory of one": Door("namespaces", ("rlimit_9", "watcher"), _ROOM),
    "processes": Door("namespaces", ("rlimit_6", "watcher"), _MANY + WORKED),
    "processes of another user": Door("landlock", ("rlimit_6", "watcher"), _MANY + WORKED),
    "processor time": Door("namespaces", ("rlimit_0", "watcher"), _BURN, {"cpu_s": 0.3}),
    "time": Door(
        "landlock",
        ("watcher",),
        "import time\ntime.sleep(1 + HELD)" + WORKED,
        {"cpu_s": 0.2, "wall_s": 0.8},
    ),
    "one large file": Door("namespaces", ("rlimit_1",), "open('f', 'wb').write(bytes(6 << 20))" + WORKED),
    "disk of all files": Door("landlock", ("watcher",), _VANISHING_DISK + WORKED),
    "open files": Door("landlock", ("rlimit_7",), "kept = [open('/dev/null') for _ in range(150)]" + WORKED),
    "locked memory": Door(
        "namespaces",
        ("rlimit_8",),
        LIBC
        + "if libc.mlock(ctypes.c_void_p(mapped(4096, 0x22)), ctypes.c_size_t(4096)): raise OSError"
        + WORKED,
    ),
    "shared memory of another IPC namespace": Door(
        "namespaces",
        ("hidden memory", "IPC namespace"),
        LIBC + "if system(29, 194, SEGMENT, 0, 0) < 0: raise OSError" + WORKED,
    ),
    "core dumps": Door(
        "namespaces", ("rlimit_4",), "import resource\nresource.setrlimit(4, (2, 2))" + WORKED
    ),
}


@pytest.fixture(scope="module")
def host() -> Iterator[dict[str, str]]:
    """A file that every user can read, and a port that somebody listens on."""
    with (
        tempfile.TemporaryDirectory(prefix="behind-") as name,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        Path(name).chmod(0o755)
        (Path(name) / "secret").write_text("secret")
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        libc, segment = ctypes.CDLL(None), int.from_bytes(os.urandom(3), "big") + 1
        identifier = libc.shmget(segment, 4096, 0o1666)
        yield {"SECRET": f"{name}/secret", "PORT": str(server.getsockname()[1]), "SEGMENT": str(segment)}
        libc.shmctl(identifier, 0, None)
        server.shutdown(socket.SHUT_RDWR)


def _greet(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def attack(door: Door, without: tuple[str, ...], host: dict[str, str]) -> Execution:
    code = door.code
    for name, value in host.items():
        code = code.replace(name, value)
    with Sandbox(policy(door.tier), without=without) as sandbox:
        return sandbox.run(Program(code=code), limits=replace(TIGHT, **door.limits))


@pytest.mark.parametrize("name", DOORS)
def test_attack_works_without_its_mechanisms_and_with_none_less(name: str, host: dict[str, str]) -> None:
    door = DOORS[name]
    opened = attack(door, door.without, host | {"HELD": MOMENT_S})
    if name == "user namespaces" and os.getuid() and b"WORKED" not in opened.stdout:
        pytest.skip("this kernel lets no user make namespaces in namespaces")
    assert b"WORKED" in opened.stdout, opened
    for kept in door.without:
        left_out = tuple(mechanism for mechanism in door.without if mechanism != kept)
        stopped = attack(door, left_out, host | {"HELD": LONG_S})
        assert b"WORKED" not in stopped.stdout, f"{kept} alone does not stop it"
        assert stopped.status != "wall_limit" or name == "time", f"{kept} alone does not stop it: {stopped}"


def test_every_group_of_calls_stands_for_an_attack() -> None:
    from rlhf.sandbox.seccomp import _ALWAYS

    assert {mechanism for door in DOORS.values() for mechanism in door.without} >= _ALWAYS.keys()
