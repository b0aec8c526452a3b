"""Killed and stopped at any moment: launcher, monitor, init, client. What ran beside goes on; nothing is left."""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.sandbox import launcher
from rlhf.sandbox.client import Job, Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program, Tier
from rlhf.sandbox.policy import ISOLATED
from rlhf.sandbox.session import Session
from rlhf.sandbox.tree import ProcessTree, children
from tests.unit.sandbox.conftest import policy
from tests.unit.sandbox.leftovers import command, launcher_pid, left_by, scratch_folders

ROOT = Path(__file__).parents[3]
LIMITS = Limits(cpu_s=5.0, wall_s=60.0, memory_mb=256, processes=10, file_mb=4, disk_mb=8, output_kb=64)
WRITES_AND_SLEEPS = (
    "import time\nopen('file', 'wb').write(bytes(1 << 20))\nprint('up', flush=True)\ntime.sleep({})"
)
WRITES_AND_WAITS = WRITES_AND_SLEEPS.replace("time.sleep({})", "import os; os.read(3, 1)")
PROMPT_S = 30.0
"""Above anything a stalled machine adds, below what waits for a verdict that never comes."""
CLIENT = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import UNSAFE, Policy
from rlhf.sandbox.session import Session
sandbox = Sandbox(Policy(tier={tier!r}, unsafe=UNSAFE))
sessions = [Session(sandbox, kind) for kind in ("shell", "python")]
sessions[0].exec("sleep 86396 & sleep 86396 &")
sessions[1].exec("import os, time\\nif os.fork() == 0: time.sleep(86396)")
for _ in range(3):
    threading.Thread(target=sandbox.run, args=(Program(argv=("sleep", "86396")),), daemon=True).start()
if {forks}:
    # Holds every socket of its parent.
    if os.fork() == 0: time.sleep({forks})
print(sandbox._launcher.pid, flush=True)
time.sleep(86396)
"""
NUM_SLEEPS = 5
"""Programs of that client whose command lines show that they run."""


@pytest.fixture
def own(sandbox: Sandbox) -> Iterator[Sandbox]:
    """A sandbox that nobody else uses."""
    with Sandbox(policy(sandbox.tier)) as own:
        yield own


pytestmark = pytest.mark.parametrize("sandbox", ISOLATED, indirect=True)


def eventually(condition: Callable[[], object], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def monitors(sandbox: Sandbox) -> set[int]:
    return children(launcher_pid(sandbox))


def started(sandbox: Sandbox) -> tuple[Job, int]:
    """A job that runs until `finished` is asked about it, and the process that monitors it."""
    before = monitors(sandbox)
    job = sandbox.start(Program(code=WRITES_AND_WAITS), limits=LIMITS, channel=True)
    eventually(lambda: monitors(sandbox) - before)
    (monitor,) = monitors(sandbox) - before
    eventually(lambda: len(ProcessTree(monitor).pids()) >= (2 if sandbox.tier == "namespaces" else 1))
    return job, monitor


def finished(job: Job) -> Execution:
    """How a job ends that is told to."""
    assert job.channel is not None
    job.channel.sendall(b"x")
    return job.wait()


def alive(pids: set[int]) -> set[int]:
    """Those that are neither gone nor zombies."""
    return {pid for pid in pids if command(pid)}


def test_killed_monitor_is_noticed_and_what_it_watched_ends(own: Sandbox) -> None:
    other, _ = started(own)
    job, monitor = started(own)
    below = set(ProcessTree(monitor).pids())
    os.kill(monitor, signal.SIGKILL)
    began = time.monotonic()
    end = job.wait()
    assert (end.status, time.monotonic() - began < PROMPT_S) == ("broken", True), end
    assert "monitor" in end.detail
    eventually(lambda: not alive(below))
    assert finished(other).succeeded
    assert left_by(own) == []
    eventually(lambda: not scratch_folders(monitor))
    assert own.run(Program(code="print(1)")).stdout == b"1\n"


def test_stopped_monitor_is_given_up(own: Sandbox) -> None:
    job, monitor = started(own)
    below = set(ProcessTree(monitor).pids())
    os.kill(monitor, signal.SIGSTOP)
    began = time.monotonic()
    assert job.wait().status == "broken"
    assert time.monotonic() - began < PROMPT_S
    eventually(lambda: not alive(below))
    assert left_by(own) == []
    eventually(lambda: not scratch_folders(monitor))


def test_killed_init_is_noticed(own: Sandbox) -> None:
    if own.tier != "namespaces":
        pytest.skip("there is an init in the namespaces tier only")
    job, monitor = started(own)
    (init,) = children(monitor)
    os.kill(init, signal.SIGKILL)
    end = job.wait()
    assert (end.status, "init" in end.detail) == ("broken", True), end
    assert left_by(own) == []


def test_killed_launcher_takes_no_job_with_it(own: Sandbox) -> None:
    first = launcher_pid(own)
    job, monitor = started(own)
    with Session(own, limits=LIMITS) as session:
        session.exec("echo kept > file; sleep 86395 >/dev/null 2>&1 &")
        os.kill(first, signal.SIGKILL)
        # What it had just been asked for is lost with it.
        eventually(
            lambda: own.run(Program(code="print(1)")).stdout == b"1\n",
        )
        assert finished(job).stdout == b"up\n"
        assert session.exec("cat file").stdout == b"kept\n"
        assert launcher_pid(own) != first
    eventually(lambda: not alive({monitor}) and not scratch_folders(monitor))
    assert left_by(own) == []
    eventually(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and "86395" in command(int(p))])


def test_monitor_that_has_just_ended_is_not_a_stopped_one(sandbox: Sandbox) -> None:
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    eventually(lambda: launcher._is_stopped(pid))
    assert not launcher._is_stopped(pid)
    os.kill(pid, signal.SIGCONT)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not launcher._is_stopped(pid)
    os.waitpid(pid, 0)


def test_stopped_launcher_does_not_stay(own: Sandbox) -> None:
    pid = launcher_pid(own)
    os.kill(pid, signal.SIGSTOP)
    own.close()
    eventually(lambda: not alive({pid}))


@pytest.mark.parametrize("forks", [0, 600])
def test_killed_client_leaves_nothing(sandbox: Sandbox, forks: int) -> None:
    code = CLIENT.format(root=str(ROOT), tier=sandbox.tier, forks=forks)
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        started_by_it = int(client.stdout.readline())
        tree = ProcessTree(started_by_it)
        eventually(lambda: sum("86396" in command(pid) for pid in tree.pids()) == NUM_SLEEPS)
        below = set(tree.pids())
        assert len(below) > 8
        folders = [folder for pid in below for folder in scratch_folders(pid)]
        assert bool(folders) == (sandbox.tier != "namespaces")
    finally:
        forked = children(client.pid) - {started_by_it}
        client.kill()
        client.wait()
    try:
        eventually(lambda: not alive({started_by_it, *below}))
        eventually(lambda: not [folder for folder in folders if os.path.exists(folder)])
        assert bool(alive(forked)) == bool(forks)
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)


def in_child(work: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether a forked process finds that it works."""
    pid = os.fork()
    if pid == 0:
        is_well = False
        try:
            signal.alarm(int(seconds))
            is_well = work()
        finally:
            os._exit(0 if is_well else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_fork_of_a_client_has_a_sandbox_of_its_own(own: Sandbox) -> None:
    job, _ = started(own)
    theirs = launcher_pid(own)

    def work() -> bool:
        is_own = own.run(Program(code="print(2)")).stdout == b"2\n" and launcher_pid(own) != theirs
        own.close()
        return is_own

    assert in_child(work)
    assert finished(job).stdout == b"up\n"
    assert launcher_pid(own) == theirs
    assert own.run(Program(code="print(1)")).stdout == b"1\n"


def test_fork_in_the_midst_of_jobs_and_locks(sandbox: Sandbox) -> None:
    with Sandbox(policy(sandbox.tier), max_jobs=3) as own, ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(own.run, Program(code="import time; time.sleep(0.05)")) for _ in range(30)]
        own._lock.acquire()
        try:
            assert in_child(lambda: own.run(Program(code="print(2)")).stdout == b"2\n")
        finally:
            own._lock.release()
        for _ in range(2):
            assert in_child(
                lambda: [own.run(Program(code="print(2)")).stdout for _ in range(4)] == [b"2\n"] * 4
            )
        assert {run.result().status for run in runs} == {"exited"}


def test_parent_ends_jobs_whose_sockets_a_fork_still_holds(own: Sandbox) -> None:
    session = Session(own, limits=LIMITS)
    session.exec("sleep 86394 >/dev/null 2>&1 &")
    job, monitor = started(own)
    holder = os.fork()
    if holder == 0:
        time.sleep(600)
        os._exit(0)
    try:
        session.close()
        assert job.kill().status == "killed"
        assert left_by(own) == []
        pid = launcher_pid(own)
        own.close()
        eventually(
            lambda: not alive({pid, monitor}),
        )
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def _answer(tier: Tier) -> bytes:
    with Sandbox(policy(tier)) as sandbox:
        return sandbox.run(Program(code="print(3)")).stdout


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_pool_have_sandboxes(sandbox: Sandbox, method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_answer, [sandbox.tier] * 2) == [b"3\n"] * 2


def test_threads_of_an_event_loop_share_a_sandbox(sandbox: Sandbox) -> None:
    async def main() -> list[bytes]:
        runs = (asyncio.to_thread(sandbox.run, Program(code=f"print({i})")) for i in range(40))
        return [end.stdout for end in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == [b"%d\n" % i for i in range(40)]


def test_two_threads_end_one_job(own: Sandbox) -> None:
    job, _ = started(own)
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(job.wait) for _ in range(2)]
        time.sleep(0.1)
        assert job.kill().status == "killed"
        assert [wait.result(60).status for wait in waits] == ["killed"] * 2
    assert own.run(Program(code="print(1)")).stdout == b"1\n"


def is_abandoned(folder: str) -> bool:
    """Whether the monitor that a folder is named after is gone, or stopped."""
    try:
        status = Path(f"/proc/{Path(folder).name.split('-')[2]}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "TtZX"


def test_chaos_leaves_nothing(own: Sandbox) -> None:
    brief = replace(LIMITS, cpu_s=0.5, wall_s=2.0)
    stop, ends, launchers, draw = threading.Event(), [], set(), random.Random(0)

    def jobs() -> None:
        while not stop.is_set():
            ends.append(own.run(Program(code=WRITES_AND_SLEEPS.format(0.05)), limits=brief).status)

    def sessions() -> None:
        while not stop.is_set():
            with Session(own, "python", limits=brief) as session:
                session.exec("import os, time\nif os.fork() == 0: time.sleep(86393)")
                ends.append(session.exec("1").status)

    before = set(scratch_folders())
    launchers.add(launcher_pid(own))
    workers = [threading.Thread(target=work) for work in (jobs, jobs, sessions, sessions)]
    for worker in workers:
        worker.start()
    for _ in range(40):
        time.sleep(draw.uniform(0.01, 0.06))
        victims = sorted(ProcessTree(launcher_pid(own)).pids())
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(draw.choice(victims), signal.SIGSTOP if draw.random() < 0.3 else signal.SIGKILL)
    # Who is stopped has to be given up, and who was killed buried: without this launcher they would stay.
    time.sleep(2.5)
    eventually(lambda: not [f for f in set(scratch_folders()) - before if is_abandoned(f)])
    for _ in range(4):
        os.kill(launcher_pid(own), signal.SIGKILL)
        time.sleep(draw.uniform(0.1, 0.3))
        launchers.add(launcher_pid(own))
    eventually(lambda: set(ends) >= {"exited", "broken"})
    stop.set()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    eventually(lambda: own.run(Program(code="print(1)")).stdout == b"1\n")
    assert left_by(own) == []
    eventually(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and "86393" in command(int(p))])
    own.close()
    eventually(lambda: not alive(launchers))


ACTOR = """
import sys, threading
sys.path.insert(0, {root!r})
import ray

@ray.remote(max_concurrency=3)
class Actor:
    def run(self, tier, number):
        from rlhf.sandbox.client import Sandbox
        from rlhf.sandbox.execution import Program
        from rlhf.sandbox.policy import UNSAFE, Policy
        from rlhf.sandbox.session import Session
        found = []
        def work():
            with Sandbox(Policy(tier=tier, unsafe=UNSAFE)) as sandbox:
                found.append(sandbox.run(Program(code=f"print({{number}})")).stdout)
                with Session(sandbox, "python") as session:
                    found.append(session.exec("6 * 7").stdout)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
actor = Actor.remote()
print(ray.get([actor.run.remote(tier, i) for i, tier in enumerate(({tiers}) * 3)], timeout=300))
ray.shutdown()
"""


@pytest.mark.slow
def test_threads_of_an_actor_have_sandboxes(sandbox: Sandbox) -> None:
    if sandbox.tier != ISOLATED[0]:
        pytest.skip("one actor tries both tiers")
    done = subprocess.run(
        [sys.executable, "-c", ACTOR.format(root=str(ROOT), tiers=", ".join(map(repr, ISOLATED)))],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout.strip() == str([[b"%d\n" % i, b"42\n"] for i in range(6)]), done.stderr[-2000:]
