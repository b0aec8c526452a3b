"""Each mechanism, taken away, lets an attack through that it stops: none of them is there for show."""

import ctypes
from pathlib import Path

import pytest

from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program, Tier
from tests.unit.sandbox.conftest import policy

TIGHT = Limits(cpu_s=0.3, wall_s=2, memory_mb=200, processes=10, file_mb=4, disk_mb=8, output_kb=64)

# Tier, what is taken away, the attack. Where two mechanisms stop it, both are taken away.
REMOVED: dict[str, tuple[Tier, tuple[str, ...], str]] = {
    "seccomp": ("namespaces", ("seccomp",), "import socket\nsocket.socket()\nprint('ESCAPED')"),
    "seccomp, by Landlock": ("landlock", ("seccomp",), "import socket\nsocket.socket()\nprint('ESCAPED')"),
    "network": (
        "landlock",
        ("network",),
        "import socket\nsocket.socket(socket.AF_INET, 2)\nprint('ESCAPED')",
    ),
    "network of its own": (
        "uid",
        ("network",),
        "import socket\ns = socket.socket()\ns.settimeout(1)\ntry: s.connect(('127.0.0.1', 9))\n"
        "except ConnectionRefusedError: print('ESCAPED')",
    ),
    "namespaces": (
        "landlock",
        ("namespaces",),
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('ESCAPED')",
    ),
    "clone": (
        "namespaces",
        ("clone",),
        "import ctypes, os\na = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)\n"
        "pid = ctypes.CDLL(None).syscall(435, a, 64)\nif pid == 0: os._exit(0)\nif pid > 0: print('ESCAPED')",
    ),
    "trace": (
        "namespaces",
        ("trace",),
        "import ctypes, os, time\npid = os.fork()\nif pid == 0: time.sleep(1); os._exit(0)\n"
        "if ctypes.CDLL(None).ptrace(16, pid, None, None) == 0: print('ESCAPED', flush=True)\nos.kill(pid, 9)",
    ),
    "kernel": (
        "namespaces",
        ("kernel",),
        "import ctypes, os\nnumber = 250 if os.uname().machine == 'x86_64' else 219\n"
        "if ctypes.CDLL(None).syscall(number, 0, -3, 1) >= 0: print('ESCAPED')",
    ),
    "hidden memory": ("namespaces", ("hidden memory",), "import os\nos.memfd_create('x')\nprint('ESCAPED')"),
    "other processes": (
        "landlock",
        ("other processes",),
        "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nprint('ESCAPED')",
    ),
    "Landlock": ("landlock", ("landlock",), "if open({secret!r}).read(): print('ESCAPED')"),
    "Landlock, writing": (
        "landlock",
        ("landlock",),
        "open({secret!r} + '/../open/mark', 'w') if 0 else open({open!r} + '/mark', 'w').close()\nprint('ESCAPED')",
    ),
    "root of its own": ("uid", (), "if open({secret!r}).read(): print('ESCAPED')"),
    "files": ("read-only", ("files",), "open('mark', 'w').write('x')\nprint('ESCAPED')"),
    "fork": (
        "read-only",
        ("fork",),
        "import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint('ESCAPED')",
    ),
    "limit of addresses and watcher": (
        "namespaces",
        ("rlimit_9", "watcher"),
        "x = bytearray(1 << 30)\nprint('ESCAPED')",
    ),
    "limit of processes and watcher": (
        "namespaces",
        ("rlimit_6", "watcher"),
        "import os, time\nfor _ in range(40):\n    if os.fork() == 0:\n        time.sleep(0.3)\n        os._exit(0)\n"
        "print('ESCAPED')",
    ),
    "limit of a file": (
        "namespaces",
        ("rlimit_1",),
        "open('f', 'wb').write(b'x' * (6 << 20))\nprint('ESCAPED')",
    ),
    "limit of CPU time and watcher": (
        "namespaces",
        ("rlimit_0", "watcher"),
        "import time\nend = time.process_time() + 2.2\nwhile time.process_time() < end: pass\nprint('ESCAPED')",
    ),
    "watcher: memory of children": (
        "namespaces",
        ("watcher",),
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        x = bytearray(b'x' * (60 << 20))\n"
        "        time.sleep(0.4)\n        os._exit(0)\nfor _ in range(5): os.wait()\nprint('ESCAPED')",
    ),
    "watcher: sleep": ("namespaces", ("watcher",), "import time\ntime.sleep(2.3)\nprint('ESCAPED')"),
    "watcher: disk": (
        "landlock",
        ("watcher",),
        "import time\nfor i in range(5): open(f'f{{i}}', 'wb').write(b'x' * (3 << 20))\ntime.sleep(0.3)\n"
        "print('ESCAPED')",
    ),
}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "unshare"), reason="the sandbox needs Linux")
@pytest.mark.parametrize("name", REMOVED)
def test_attack_succeeds_only_without_its_mechanism(name: str, tmp_path: Path) -> None:
    tier, without, attack = REMOVED[name]
    place = _open_to_all(tmp_path)
    program = Program(code=attack.format(secret=str(place / "secret"), open=str(place / "open")))
    # Of a weaker tier, the stronger one is what is taken away.
    whole: Tier = tier if without else "namespaces"
    assert b"ESCAPED" not in _run(whole, (), program)
    assert b"ESCAPED" in _run(tier, without, program)


def _open_to_all(folder: Path) -> Path:
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    (folder / "secret").write_text("secret")
    (folder / "open").mkdir(mode=0o777)
    (folder / "open").chmod(0o777)
    return folder


def _run(tier: Tier, without: tuple[str, ...], program: Program) -> bytes:
    with Sandbox(policy(tier), without=without) as sandbox:
        try:
            return sandbox.run(program, limits=TIGHT).stdout
        except SandboxError as error:
            pytest.skip(str(error))
