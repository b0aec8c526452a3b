"""What users get on the machines they have: ordinary accounts, containers, old kernels. Played, see hosts.py."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.sandbox import landlock
from rlhf.sandbox.policy import UNSAFE
from rlhf.sandbox.self_test import ATTACKS
from tests.unit.sandbox import programs
from tests.unit.sandbox.hosts import (
    DOCKER,
    DOCKER_CAPABILITIES,
    LANDLOCK,
    POD,
    PYTHON,
    UID,
    Host,
    on,
    why_not_here,
)

USER = Host(uid=UID)
WHICH = "with Sandbox() as sandbox: answer = sandbox.tier"
MASKED = "mount --make-rprivate / && mount -t tmpfs -o ro none /proc/sys"
LIMITS = """
low = Limits(cpu_s=0.3, wall_s=60, memory_mb=256, processes=8, file_mb=4, disk_mb=8, output_kb=64)
ended = lambda name: sandbox.run(Program(code=PROGRAMS[name]), limits=replace(low, wall_s=1) if name == "time" else low)
with Sandbox() as sandbox, ThreadPoolExecutor(3) as pool:
    ends = pool.map(ended, PROGRAMS)
    answer = {name: (end.status, end.exit_code) for name, end in zip(PROGRAMS, ends)}
"""
OVER_A_LIMIT = {
    "CPU": "while True: pass",
    "time": "import time; time.sleep(100)",
    "output": "import os\nwhile True: os.write(1, b'x' * 4096)",
    "memory": "x = bytearray(1 << 30)",
    "disk": "import time\nfor i in range(50): open(f'f{i}', 'wb').write(b'x' * (2 << 20))\ntime.sleep(2)",
    "processes": "import os, time\nfor _ in range(100): os.fork() or (time.sleep(5), os._exit(0))\ntime.sleep(2)",
}
FAILED = ("exited", 1)
"""With an error of Python: the kernel said no."""
BATTERY = """
report = self_test.examine(TIER)
answer = [report.stopped, report.escaped, report.broken, report.unavailable]
"""
# What other users than the client's own could not do anyway, and Landlock does not see.
UNSEEN = """
import socket
key, folder = os.environ["HOME"] + "/key", os.environ["HOME"]
open(key, "w").write("secret")
os.chmod(key, 0o644)
os.utime(key, (1, 1))
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(folder + "/listener")
listener.setblocking(False)
signals = []
signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
code = ATTEMPTS
with Sandbox() as sandbox:
    done = sandbox.run(Program(code=code.replace("PID", str(os.getpid())).replace("KEY", key)))
status = os.stat(key)
answer = [done.stdout.decode().splitlines(), oct(status.st_mode), status.st_mtime, status.st_size, signals]
"""
ATTEMPTS = """
import ctypes, fcntl, os, resource, socket
os.utime("KEY", (2, 2))  # answered as done
def owner():
    r, w = os.pipe()
    fcntl.fcntl(r, fcntl.F_SETOWN, PID)
    fcntl.fcntl(r, 10, 10)
    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
    os.write(w, b"x")
def watch():
    libc = ctypes.CDLL(None)
    if libc.inotify_add_watch(libc.inotify_init(), os.path.dirname("KEY").encode(), 0x100) < 0: raise PermissionError
for name, action in {
    "mode": lambda: os.chmod("KEY", 0o777),
    "attribute": lambda: os.setxattr("KEY", "user.a", b"x"),
    "length": lambda: os.truncate("KEY", 0),
    "watch": watch,
    "limits": lambda: resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1)),
    "cores": lambda: os.sched_setaffinity(PID, [0]),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, PID, 19),
    "datagram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "KEY/../listener"),
    "signal": lambda: os.kill(PID, 10),
    "owner of a pipe": owner,
}.items():
    try: action()
    except PermissionError: continue
    print(name)
"""
NEIGHBOURS = """
code = "import os, time\\nfor _ in range(6): os.fork() or (time.sleep(0.5), os._exit(0))\\ntime.sleep(0.4)"
with Sandbox() as sandbox, ThreadPoolExecutor(16) as pool:
    run = lambda _: sandbox.run(Program(code=code), limits=Limits(cpu_s=5, processes=8))
    answer = [done.stderr.decode() for done in pool.map(run, range(16)) if not done.succeeded]
"""
BOMB = """
import resource
# Should the bomb get away, it stays a small one.
resource.setrlimit(resource.RLIMIT_NPROC, (120, 120))
code = "import os\\nwhile True:\\n  try: os.setsid(); os.fork()\\n  except OSError: pass"
with Sandbox() as sandbox:
    done = sandbox.run(Program(code=code), limits=Limits(cpu_s=1, processes=8))
    answer = [done.status, sandbox.run(Program(code="print(1)")).status]
"""
WORKS = """
answer = []
with Sandbox() as sandbox:
    for name, program in PROGRAMS.items():
        files = {k: v.encode() for k, v in program.pop("files", {}).items()}
        done = sandbox.run(Program(files=files, **program))
        if done.stdout.split()[-1:] != [b"works"]:
            answer.append([name, done.status, done.stderr.decode()[-300:]])
"""
REFUSED = """
try:
    with Sandbox(Policy(**POLICY)) as sandbox: answer = sandbox.tier
except SandboxError as error: answer = str(error)
"""
LOW = "--nofile=100 --nproc=300 --stack=4194304 --as=4294967296 --fsize=2097152 --cpu=1000"
NOT_IN_LANDLOCK = ("pool of processes",)
"""Its locks lie in the host's /dev/shm."""
NOT_BEFORE_ABI_6 = ("ended child",)
"""Signals go to oneself only, where nothing else keeps them inside."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="host-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _can_play() -> None:
    if reason := why_not_here(USER):
        pytest.skip(reason)
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")


HOSTS = {
    "ordinary user": (USER, "namespaces"),
    "user, masked /proc": (replace(USER, before=MASKED), "namespaces"),
    "root in a pod without a profile": (
        Host(capabilities=DOCKER_CAPABILITIES, before=MASKED, is_pid_namespace=True),
        "namespaces",
    ),
    "root in Docker's profile": (DOCKER, "landlock"),
    "restricted pod": (POD, "landlock"),
    "restricted pod, kernel 5.13": (replace(POD, landlock_abi=1), "landlock"),
}
each_host = pytest.mark.parametrize("name", HOSTS)
WEAK = {"minimum": "read-only", "unsafe": UNSAFE}


@each_host
def test_host_gets_its_tier_and_every_attack_is_stopped(folder, name):
    host, tier = HOSTS[name]
    assert on(host, WHICH, folder) == tier
    assert on(host, BATTERY, folder, TIER=tier) == [list(ATTACKS), [], [], ""]


@each_host
def test_limits_hold_on_every_host(folder, name):
    answer = on(HOSTS[name][0], LIMITS, folder, PROGRAMS=OVER_A_LIMIT)
    found = {limit: FAILED if tuple(end) == FAILED else end[0] for limit, end in answer.items()}
    assert [found[limit] for limit in ("CPU", "time", "output")] == [
        "cpu_limit",
        "wall_limit",
        "output_limit",
    ]
    assert found["memory"] in (FAILED, "memory_limit")
    assert found["disk"] in (FAILED, "disk_limit")
    assert found["processes"] in (FAILED, "process_limit")


@each_host
def test_programs_work_on_every_host(folder, name):
    host, tier = HOSTS[name]
    wanted = {
        k: {"code": v} for k, v in programs.PYTHON.items() if tier == "namespaces" or k not in NOT_IN_LANDLOCK
    }
    wanted |= {k: {"argv": ["sh", "-ec", v]} for k, v in programs.SHELL.items()}
    if shutil.which("gcc"):
        wanted["C"] = {"argv": ["sh", "-ec", programs.COMPILED], "files": {"main.c": programs.C}}
    if shutil.which("node"):
        wanted["node"] = {"argv": ["node", "-e", programs.NODE], "limits_address_space": False}
    if host.landlock_abi and host.landlock_abi < landlock.SCOPED_SIGNALS:
        wanted = {name: program for name, program in wanted.items() if name not in NOT_BEFORE_ABI_6}
    assert on(host, WORKS, folder, PROGRAMS=wanted) == []


@pytest.mark.parametrize("abi", [1, 2, 3, 6])
def test_landlock_of_an_ordinary_user_leaves_nothing_of_his_open(folder, abi):
    host = replace(POD, landlock_abi=min(abi, landlock.abi()))
    assert on(host, UNSEEN, folder, ATTEMPTS=ATTEMPTS) == [[], "0o100644", 1.0, 6, []]


def test_processes_of_neighbours_do_not_count_against_a_program(folder):
    """Also those that cannot be seen: in another container, of the same user id."""
    others = [subprocess.Popen(["sleep", "60"], user=UID, group=UID, extra_groups=[]) for _ in range(40)]
    try:
        assert on(POD, NEIGHBOURS, folder) == []
        assert on(replace(POD, is_pid_namespace=True), NEIGHBOURS, folder) == []
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize("host", [USER, POD], ids=["namespaces", "landlock"])
def test_fork_bomb_of_an_ordinary_user_is_ended(folder, host):
    status, after = on(host, BOMB, folder)
    assert status in ("process_limit", "cpu_limit")
    assert after == "exited"


def test_limits_of_the_machine_itself_are_kept(folder):
    host = replace(POD, before=f"prlimit --pid $$ {LOW}")
    assert on(host, WHICH, folder) == "landlock"


def test_interpreter_in_roots_folder_serves_in_docker(folder):
    hidden = folder / "hidden"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", hidden / "venv"], check=True, timeout=60)
    hidden.chmod(0o700)
    host = replace(DOCKER, python=str(hidden / "venv/bin/python"))
    assert on(host, WHICH, folder) == "landlock"
    assert on(host, BATTERY, folder, TIER="landlock") == [list(ATTACKS), [], [], ""]
    refused = on(host, REFUSED, folder, POLICY={"tier": "uid", "unsafe": UNSAFE})
    assert "name another interpreter in sandbox.python" in refused


@pytest.mark.parametrize(("host", "weak_tier"), [(DOCKER, "uid"), (POD, "read-only")], ids=["root", "user"])
def test_without_landlock_it_refuses_with_reasons_and_ways_out(folder, host, weak_tier):
    old = replace(host, absent=f"clone3 {LANDLOCK}")
    refusal = on(old, REFUSED, folder, POLICY={})
    assert "namespaces: [Errno 1] unshare: Operation not permitted" in refusal
    assert "landlock: this kernel has no Landlock" in refusal
    for way in ("sandbox.remote", "sandbox.minimum: read-only", "sandbox.unsafe: i-know", "unshare"):
        assert way in refusal
    assert on(old, REFUSED, folder, POLICY=WEAK) == weak_tier
    stopped, escaped, broken, _ = on(old, BATTERY, folder, TIER=weak_tier)
    assert not broken
    assert set(escaped) <= {"read a host file", "list host processes", "write outside the scratch folder"}
    if weak_tier == "read-only":
        assert "write outside the scratch folder" in stopped
