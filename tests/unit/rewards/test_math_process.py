"""The comparing processes: bounded from any thread, gone with their owner, never a verdict of their own failure."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rewards import math_process
from rewards.math_answer import grade
from rewards.math_equality import EXACT, Rules, Verdict
from rewards.math_process import compare
from rlhf.config.schema import PlacementConfig
from rlhf.errors import RewardError
from tests.unit.rewards.math_cases.every import CASES

ROOT = Path(__file__).parents[3]
SLOW = r"\binom{10000}{5000}^{10000}"
"""Computes for minutes."""
HUNG_S = 30.0
"""Far above the seconds that any comparison may take, however busy the machine."""


@pytest.fixture
def fresh() -> Iterator[None]:
    """Processes of this test's own, and none left to the next one."""
    math_process.stop()
    yield
    math_process.stop()


def processes() -> list[psutil.Process]:
    """The parent and its workers."""
    ours = psutil.Process().children(recursive=True)
    return [p for p in ours if p.is_running() and "rewards.math_process" in " ".join(p.cmdline())]


def gone(pids: list[int], *, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def in_thread(work: Callable[[], Verdict]) -> Verdict:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_number_or_structure_starts_no_process(fresh: None) -> None:
    assert compare("1/2", "0.5") is Verdict.EQUAL
    assert compare("(1,2)", "(2,1)") is Verdict.DIFFERENT
    assert not processes()


def test_symbols_are_compared_from_any_thread(fresh: None) -> None:
    assert compare("2(k+1)", "2k+2") is Verdict.EQUAL
    assert in_thread(lambda: compare("2(k+2)", "2k+4")) is Verdict.EQUAL


def test_endless_comparison_ends_off_the_main_thread_and_its_worker_is_replaced(fresh: None) -> None:
    math_process.start()
    before = {p.pid for p in processes()}
    start = time.monotonic()
    assert in_thread(lambda: compare("x+1", SLOW)) is Verdict.TOO_LARGE
    assert time.monotonic() - start < HUNG_S
    assert compare("x+1", "1+x") is Verdict.EQUAL
    assert len({p.pid for p in processes()} & before) == 1


def test_endless_comparison_delays_no_other_thread(fresh: None) -> None:
    math_process.start()
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(compare, "x+1", f"{SLOW}+{i}") for i in range(2)]
        quick = [pool.submit(compare, "x+1", f"1+x+{i}-{i}") for i in range(40)]
        assert {future.result() for future in quick} == {Verdict.EQUAL}
        assert {future.result() for future in slow} == {Verdict.TOO_LARGE}
    assert len(processes()) <= 1 + math_process.usable_cpus()


def test_members_of_an_answer_share_one_deadline(fresh: None) -> None:
    math_process.start()
    number = 24
    start = time.monotonic()
    several = ", ".join(f"{SLOW}+{i}" for i in range(number))
    assert compare(", ".join(f"x+{i}" for i in range(number)), several) is Verdict.TOO_LARGE
    # Each would have its second of processor time; none would mean that they were refused for their size.
    assert 0.5 < time.monotonic() - start < number * math_process.CPU_S * 0.7


def test_many_threads_may_replace_workers_at_once(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_process, "JOBS_OF_A_WORKER", 1)
    math_process.start()
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda i: compare("x+1", f"1+x+{i}-{i}"), range(80)))
    assert set(verdicts) == {Verdict.EQUAL}
    assert len(processes()) == 1


@pytest.mark.parametrize("victims", ["workers", "parent", "all"])
def test_killed_process_is_replaced_without_a_wrong_verdict(victims: str, fresh: None) -> None:
    math_process.start()
    (parent,) = (p for p in processes() if p.ppid() == os.getpid())
    chosen = {"workers": parent.children(), "parent": [parent], "all": processes()}[victims]
    for process in chosen:
        process.send_signal(signal.SIGKILL)
    assert compare("2(k+1)", "2k+2") is Verdict.EQUAL
    assert compare("2(k+1)", "2k+3") is Verdict.DIFFERENT


def test_kills_at_random_moments_never_change_a_verdict(fresh: None) -> None:
    math_process.start()
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.15):
            for process in processes()[-1:]:
                process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        verdicts = {compare("x+1", f"1+x+{i}-{i}") for i in range(300)}
    finally:
        stop.set()
        killer.join()
    assert verdicts == {Verdict.EQUAL}


def test_failure_to_start_is_an_error_with_its_reason_and_no_score(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sympy.py").write_text("raise ImportError('sympy is broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RewardError, match="sympy is broken here"):
        math_process.start()
    result = grade(r"\boxed{2q+2}", "2(q+1)")
    assert (result.value, result.outcome) == (None, "error")
    assert "sympy is broken here" in str(result.detail["error"])
    monkeypatch.undo()
    assert grade(r"\boxed{2q+2}", "2(q+1)").value == 1.0


def test_interpreter_that_does_not_start_is_an_error_and_no_score(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RewardError, match="ended twice"):
        math_process.start()
    result = grade(r"\boxed{2r+2}", "2(r+1)")
    assert (result.value, result.outcome) == (None, "error")


def test_worker_runs_no_code_starts_no_program_and_writes_no_file(fresh: None, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from rewards.math_process import confine\n"
        "import sympy, subprocess\n"
        "from rewards.math_equality import EXACT\n"
        "from rewards.math_symbols import equal\n"
        "equal('1', '2', EXACT)\n"
        "confine()\n"
        "def refused(call):\n"
        "    try: call()\n"
        "    except (OSError, ValueError, MemoryError, sympy.SympifyError): return True\n"
        "attempts = [lambda: eval('1'), lambda: exec('1'), lambda: compile('1', '<string>', 'eval'),\n"
        "    lambda: os.system('true'), lambda: subprocess.run(['true']), lambda: os.fork(),\n"
        "    lambda: sympy.sympify('x'), lambda: sympy.sympify('__import__(\"os\")'), lambda: sympy.S('x+1'),\n"
        "    lambda: sympy.lambdify(sympy.Symbol('x'), sympy.Symbol('x')),\n"
        "    lambda: bytearray(1 << 30), lambda: open(sys.argv[1], 'w', buffering=1).write('x\\n')]\n"
        "print([bool(refused(attempt)) for attempt in attempts])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "written")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    assert done.stdout.strip() == str([True] * 12)


def test_fork_of_the_owner_uses_processes_of_its_own(fresh: None) -> None:
    math_process.start()
    before = {p.pid for p in processes()}
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        verdict = compare("2(k+1)", "2k+2")
        pids = " ".join(str(p.pid) for p in processes())
        math_process.stop()
        os.write(write_end, f"{verdict.name} {pids}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    verdict, *pids = os.read(read_end, 1000).decode().split()
    os.close(read_end)
    os.close(write_end)
    assert verdict == "EQUAL"
    assert len(pids) == 2
    assert {p.pid for p in processes()} == before
    assert compare("2(k+2)", "2k+4") is Verdict.EQUAL
    assert len([p for p in processes() if p.ppid() == os.getpid()]) == 1


def test_owner_that_ignores_and_blocks_signals_has_its_limits_all_the_same(fresh: None) -> None:
    script = (
        "import signal\n"
        "for number in (signal.SIGPROF, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})\n"
        "from rewards.math_process import compare\n"
        f"print(compare('x+1', {SLOW!r}).name, compare('x+1', '1+x').name)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    assert done.stdout.split() == ["TOO_LARGE", "EQUAL"]


@pytest.mark.parametrize("end", ["kill", "exit", "thread"])
def test_processes_end_with_their_owner_and_not_with_a_thread(end: str, fresh: None) -> None:
    script = (
        "import os, sys, threading, time, psutil\n"
        "from rewards.math_process import compare\n"
        "thread = threading.Thread(target=compare, args=('2(k+1)', '2k+2')); thread.start(); thread.join()\n"
        "time.sleep(0.2)\n"
        "print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)\n"
        f"if {end!r} == 'thread': print(compare('2(k+2)', '2k+4').name, flush=True)\n"
        f"if {end!r} == 'kill': time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        if end == "thread":
            assert owner.stdout.readline() == "EQUAL\n"
        if end == "kill":
            owner.kill()
        owner.wait(timeout=60)
    assert gone(pids)


def test_worker_that_does_not_run_ends_with_its_owner(fresh: None) -> None:
    script = (
        "import time, psutil\n"
        "from rewards.math_process import start\n"
        "start()\n"
        "pids = [p.pid for p in psutil.Process().children(recursive=True)]\n"
        "psutil.Process(pids[1]).suspend()\n"
        "print(*pids, flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    assert gone([int(pid) for pid in done.stdout.split()])


def test_stop_during_a_comparison_leaves_nothing(fresh: None) -> None:
    math_process.start()
    pids = [p.pid for p in processes()]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(compare, "x+1", SLOW)
        time.sleep(0.2)
        math_process.stop()
        assert pending.result() is Verdict.TOO_LARGE
    math_process.stop()
    assert gone(pids)
    assert not processes()


def test_descriptors_stay_flat_over_many_replaced_workers(fresh: None) -> None:
    compare("x+1", "1+x")
    before = psutil.Process().num_fds()
    for i in range(25):
        processes()[-1].send_signal(signal.SIGKILL)
        assert compare("x+1", f"1+x+{i}-{i}") is Verdict.EQUAL
    assert psutil.Process().num_fds() <= before + 1
    assert len(processes()) <= 2


def test_rules_reach_the_worker(fresh: None) -> None:
    assert compare(r"\pi", "3.14", EXACT) is Verdict.DIFFERENT
    assert compare(r"\pi", "3.14", Rules(tolerance=EXACT.tolerance + 1)) is Verdict.EQUAL
    assert compare("391", "17*23", Rules(simplified=True)) is Verdict.DIFFERENT


@pytest.mark.slow
def test_no_case_hangs_on_a_thread_of_a_ray_actor(record_property: Callable[..., None]) -> None:
    import ray

    from rlhf.cluster.launch import ray_session

    class Grader:
        def seconds(self) -> list[tuple[float, str]]:
            """Of every case, on a thread that is not the actor's main one."""
            import time
            from concurrent.futures import ThreadPoolExecutor

            from rewards.math_answer import grade, warm_up
            from tests.unit.rewards.math_cases.every import CASES

            def every() -> list[tuple[float, str]]:
                taken = []
                for case in CASES:
                    start = time.monotonic()
                    grade(case.completion, case.gold, **case.options)
                    taken.append((time.monotonic() - start, case.name))
                return taken

            warm_up()
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(every).result()

    with ray_session(PlacementConfig(num_cpus=2), code_dir=ROOT):
        actor = ray.remote(Grader).options(max_concurrency=2).remote()
        taken = ray.get(actor.seconds.remote(), timeout=240)
    slowest, name = max(taken)
    record_property("slowest_s", slowest)
    record_property("slowest", name)
    assert len(taken) == len(CASES)
    assert slowest < HUNG_S, name
