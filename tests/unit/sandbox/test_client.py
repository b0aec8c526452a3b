"""Programs in every tier: what they get, what they leave, how their end is told."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rlhf.errors import ConfigError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import Policy

SHORT = Limits(cpu_s=0.3, wall_s=1.0, memory_mb=256, processes=8, file_mb=4, disk_mb=8, output_kb=64)


def writes(sandbox: Sandbox) -> bool:
    return sandbox.tier != "read-only"


def test_code_sees_its_input_and_is_heard(sandbox: Sandbox) -> None:
    execution = sandbox.run(Program(code="import sys\nprint(input()[::-1])\nsys.exit(3)", stdin=b"abc\n"))
    assert (execution.status, execution.exit_code, execution.stdout) == ("exited", 3, b"cba\n")
    assert execution.tier == sandbox.tier
    assert execution.cpu_s > 0


def test_code_behaves_as_in_an_interpreter_of_its_own(sandbox: Sandbox) -> None:
    code = """
import atexit, threading
atexit.register(print, "third")
threading.Thread(target=lambda: print(*["second"] * (threading.main_thread().join() is None))).start()
print("first", __name__, __file__, exit, sorted(n for n in globals() if n[0] != "_"))
1 / 0
"""
    execution = sandbox.run(Program(code=code))
    assert execution.exit_code == 1
    assert [line.split()[0] for line in execution.stdout.splitlines()] == [b"first", b"second", b"third"]
    assert b"__main__ main.py" in execution.stdout
    assert execution.stderr.decode().splitlines()[1:3] == [
        '  File "main.py", line 6, in <module>',
        "    1 / 0",
    ]
    assert b"rlhf" not in execution.stderr


def test_jobs_draw_the_same_numbers(sandbox: Sandbox) -> None:
    program = Program(code="import random; print(random.random(), hash('x'))")
    assert sandbox.run(program).stdout == sandbox.run(program).stdout


def test_argv_is_executed_with_files(sandbox: Sandbox) -> None:
    program = Program(argv=("cat", "a/b"), files={"a/b": b"text\n"})
    execution = sandbox.run(program)
    assert execution.stdout == b"text\n", execution


def test_files_come_back_but_no_link_does(sandbox: Sandbox) -> None:
    if not writes(sandbox):
        pytest.skip("read-only: programs cannot write")
    code = (
        "import os\nopen('out', 'wb').write(b'x' * 5)\nos.symlink('/etc/passwd', 'link')\nos.mkfifo('pipe')"
    )
    execution = sandbox.run(Program(code=code, collect=("out", "link", "pipe", "absent")))
    assert execution.files == {"out": b"xxxxx"}, execution


def test_unknown_program_is_refused(sandbox: Sandbox) -> None:
    execution = sandbox.run(Program(argv=("no-such-program",)))
    assert execution.status == "refused"
    assert "no-such-program" in execution.detail


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: pass", "cpu_limit"),
        ("import time; time.sleep(1000)", "wall_limit"),
        ("import os\nwhile True: os.write(1, b'x' * 4096)", "output_limit"),
        ("import os\nos.kill(os.getpid(), 9)", "signalled"),
    ],
)
def test_limit_ends_a_program_and_is_named(sandbox: Sandbox, code: str, status: str) -> None:
    limits = SHORT if status == "wall_limit" else replace(SHORT, wall_s=60.0)
    execution = sandbox.run(Program(code=code), limits=limits)
    assert execution.status == status, execution
    assert execution.wall_s < 20


def test_memory_limit_holds(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        Program(code="x = bytearray(1 << 30)\nprint('got it')"), limits=replace(SHORT, wall_s=60.0)
    )
    assert execution.stdout == b""
    assert b"MemoryError" in execution.stderr


def test_watcher_ends_shared_memory_that_no_process_limit_sees(sandbox: Sandbox) -> None:
    if not writes(sandbox):
        pytest.skip("read-only: one process only")
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(100 << 20)
        for i in range(0, len(x), 4096): x[i] = 1
        time.sleep(600)
        os._exit(0)
time.sleep(600)
"""
    execution = sandbox.run(Program(code=code), limits=replace(SHORT, cpu_s=10, wall_s=60.0))
    assert execution.status == "memory_limit", execution


def test_process_limit_holds(sandbox: Sandbox) -> None:
    code = """
import os, time
count = 0
try:
    while count < 100:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        count += 1
except OSError: pass
print(count, flush=True)
"""
    execution = sandbox.run(Program(code=code), limits=replace(SHORT, wall_s=60.0))
    assert execution.status == "process_limit" or int(execution.stdout) < SHORT.processes, execution


def test_daemon_does_not_outlive_its_job(sandbox: Sandbox) -> None:
    if not writes(sandbox):
        pytest.skip("read-only: one process only")
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(86399)
    os._exit(0)
os.wait()
"""
    assert sandbox.run(Program(code=code)).status == "exited"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and b"86399" in _command(pid)]


def _command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_channel_joins_program_and_client(sandbox: Sandbox) -> None:
    code = "import socket\ns = socket.socket(fileno=3)\ns.sendall(s.recv(10).upper())"
    with sandbox.start(Program(code=code), channel=True) as job:
        assert job.channel is not None
        job.channel.settimeout(60)
        job.channel.sendall(b"abc")
        assert job.channel.recv(10) == b"ABC"
        assert job.wait().status == "exited"


def test_caller_can_kill(sandbox: Sandbox) -> None:
    with sandbox.start(Program(code="import time\ntime.sleep(1000)")) as job:
        execution = job.kill()
    assert execution.status == "killed"


def test_many_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda i: sandbox.run(Program(code=f"print({i})")).stdout, range(60)))
    assert results == [b"%d\n" % i for i in range(60)]


def test_program_finds_none_of_the_callers_environment(sandbox: Sandbox) -> None:
    os.environ["PLANTED_SECRET"] = "secret"
    try:
        execution = sandbox.run(Program(code="import os\nprint(sorted(os.environ))"))
    finally:
        del os.environ["PLANTED_SECRET"]
    assert b"PATH" in execution.stdout
    assert b"PLANTED" not in execution.stdout


def test_program_inherits_no_descriptor(sandbox: Sandbox) -> None:
    code = """
import os
left_open = []
for number in range(3, 200):
    try: left_open.append(os.fstat(number))
    except OSError: pass
print(left_open)
"""
    assert sandbox.run(Program(code=code)).stdout == b"[]\n"


def test_own_interpreter_can_be_executed() -> None:
    with Sandbox() as sandbox:
        execution = sandbox.run(Program(argv=(sys.executable, "-c", "import json, sys; print(sys.prefix)")))
    assert execution.stdout.decode().strip() == sys.prefix, execution


def test_weak_tier_needs_a_confession() -> None:
    with pytest.raises(ConfigError, match=r"sandbox.tier is 'uid'.*i-know"):
        Policy(tier="uid")


def test_file_outside_the_scratch_folder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\.\./x'"):
        Program(code="pass", files={"../x": b""})
