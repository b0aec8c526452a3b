"""Sessions: what outlives a step, what a step may use, what goes on between steps, what is left at the end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from rlhf.errors import SandboxError
from rlhf.sandbox import session as session_module
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program
from rlhf.sandbox.policy import ISOLATED
from rlhf.sandbox.session import Kind, Session
from rlhf.sandbox.tree import ProcessTree
from tests.unit.sandbox.leftovers import launcher_pid, left_by

SHORT = Limits(cpu_s=0.25, wall_s=1.0, memory_mb=256, processes=10, file_mb=4, disk_mb=8, output_kb=64)
LONG = Limits(cpu_s=10.0, wall_s=120.0, memory_mb=256, processes=10, file_mb=4, disk_mb=8, output_kb=64)
BURNS = replace(SHORT, wall_s=60.0)
"""For programs that end at another limit than time, however long they wait for a core."""
PROMPT_S = 20.0
"""Above anything a stalled machine adds to a limit; what waits for a hung sandbox takes longer."""


pytestmark = pytest.mark.parametrize("sandbox", ISOLATED, indirect=True)


def test_shell_keeps_files_folder_and_variables(sandbox: Sandbox) -> None:
    with Session(sandbox, limits=LONG) as session:
        session.exec("mkdir d; cd d; export A='b c'; echo text > f")
        assert session.exec('pwd; echo "$A"; cat f; false').stdout.endswith(b"/d\nb c\ntext\n")
        assert session.exec("exit 7").exit_code == 7
        assert session.exec("cat f").stdout == b"text\n"
        assert session.read("d/f") == b"text\n"


def test_program_beside_the_shell_sees_its_files_and_not_its_variables(sandbox: Sandbox) -> None:
    with Session(sandbox, "shell") as session:
        session.exec("echo kept > f; export PATH=/nowhere X=1; cd /")
        found = session.run(Program(code="import os; print(open('f').read(), os.environ.get('X'))"))
        assert (found.status, found.stdout) == ("exited", b"kept\n None\n")
        assert session.exec("echo $X").stdout == b"1\n"
    with Session(sandbox, "python") as session:
        session.exec("x = 1")
        with pytest.raises(ValueError, match="interpreter"):
            session.run(Program(code="print(1)"))


def test_interpreter_keeps_variables_and_shows_last_value(sandbox: Sandbox) -> None:
    with Session(sandbox, "python", limits=LONG) as session:
        assert session.exec("x = 40\nx + 2").stdout == b"42\n"
        failed = session.exec("y = x\n1 / 0")
        assert (failed.exit_code, failed.status) == (1, "exited")
        assert failed.stdout.decode().splitlines()[1:3] == [
            '  File "step.py", line 2, in <module>',
            "    1 / 0",
        ]
        assert session.exec("print(y)").stdout == b"40\n"
        assert session.exec("raise SystemExit(3)").exit_code == 3
        assert session.exec("y").stdout == b"40\n"
        assert not session.lost_state


OVER_IN_SHELL = {
    "while :; do :; done": "cpu_limit",
    "sleep 1000": "wall_limit",
    "yes": "output_limit",
    "kill -9 $$": "signalled",
    "sleep 1000 & exec >&- 2>&-; wait": "wall_limit",
    "trap '' INT TERM HUP; while :; do sleep 1; done": "wall_limit",
}
OVER_IN_PYTHON: dict[str, tuple[str, bool | None]] = {
    "while True: pass": ("cpu_limit", False),
    "import time; time.sleep(1000)": ("wall_limit", False),
    "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass": ("cpu_limit", True),
    "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(1000)": (
        "wall_limit",
        True,
    ),
    "while True:\n  try:\n    while True: pass\n  except BaseException: pass": ("cpu_limit", None),
    "import os; os._exit(5)": ("exited", True),
    "import os; os.kill(os.getpid(), 9)": ("signalled", True),
    "import ctypes; ctypes.string_at(0)": ("signalled", True),
    "import os; os.close(3)": ("exited", True),
}


def test_shell_steps_over_a_limit_end_and_their_sessions_go_on(sandbox: Sandbox) -> None:
    def fight(command: str) -> tuple[str, float, bytes]:
        with Session(sandbox, limits=LONG) as session:
            session.exec("echo kept > file")
            limits = SHORT if OVER_IN_SHELL[command] == "wall_limit" else BURNS
            began = time.monotonic()
            step = session.exec(command, limits=limits)
            return step.status, time.monotonic() - began, session.exec("cat file").stdout

    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(OVER_IN_SHELL, pool.map(fight, OVER_IN_SHELL), strict=True))
    assert {command: end[0] for command, end in ends.items()} == OVER_IN_SHELL
    assert {end[2] for end in ends.values()} == {b"kept\n"}
    assert max(end[1] for end in ends.values()) < PROMPT_S


def test_interpreter_steps_over_a_limit_are_interrupted_first(sandbox: Sandbox) -> None:
    def fight(code: str) -> tuple[str, bool, float, bytes]:
        with Session(sandbox, "python", limits=LONG) as session:
            session.exec("kept = 1\nopen('file', 'w').write('kept')")
            limits = SHORT if OVER_IN_PYTHON[code][0] == "wall_limit" else BURNS
            began = time.monotonic()
            step = session.exec(code, limits=limits)
            seconds, is_lost = time.monotonic() - began, session.lost_state
            after = session.exec("'kept' in globals(), open('file').read()").stdout
            return step.status, is_lost, seconds, after

    def fight_again(code: str) -> tuple[str, bool, float, bytes]:
        # An interrupted interpreter has a second to say so, which a stalled machine may take from it.
        for _ in range(4):
            end = fight(code)
            if OVER_IN_PYTHON[code][1] in (None, end[1]):
                break
        return end

    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(OVER_IN_PYTHON, pool.map(fight_again, OVER_IN_PYTHON), strict=True))
    for code, (status, is_lost) in OVER_IN_PYTHON.items():
        end = ends[code]
        assert end[0] == status, (code, end)
        assert is_lost in (None, end[1]), (code, end)
        assert end[2] < PROMPT_S, (code, end)
        assert end[3] == f"({not end[1]}, 'kept')\n".encode(), (code, end)


def test_every_step_has_its_own_processor_time(sandbox: Sandbox) -> None:
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with Session(sandbox, "python", limits=replace(SHORT, cpu_s=0.8, wall_s=60.0)) as session:
        assert [session.exec(burn).status for _ in range(3)] == ["exited"] * 3
        assert not session.lost_state


def test_interpreters_output_is_cut_and_its_memory_limited(sandbox: Sandbox) -> None:
    with Session(sandbox, "python", limits=LONG) as session:
        step = session.exec("print('x' * (1 << 20))")
        assert (step.truncated, len(step.stdout)) == (True, LONG.output_kb << 10)
        assert b"MemoryError" in session.exec("y = bytearray(1 << 30)").stdout
        assert session.exec("print('on')").stdout == b"on\n"


def test_answers_forged_by_a_step_do_not_hang_or_break_the_client(sandbox: Sandbox) -> None:
    code = "import os, struct, time\nos.write(3, struct.pack('>IBB', {}, 0, 0) + b'x' * {})\ntime.sleep(1000)"

    def fight(length_and_sent: tuple[int, int]) -> list[Execution]:
        with Session(sandbox, "python", limits=SHORT) as session:
            return [session.exec(code.format(*length_and_sent)), session.exec("print(1)")]

    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        for forged, after in pool.map(fight, ((5, 5), (1 << 31, 100), (4096, 1))):
            assert forged.status in ("exited", "wall_limit"), forged
            assert len(forged.stdout) <= SHORT.output_kb << 10
            assert after.status != "broken", after
    assert time.monotonic() - began < 2 * PROMPT_S


def test_half_an_answer_is_no_fault_of_the_sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_ANSWER_S", 0.3)
    with Session(sandbox, "python", limits=replace(SHORT, wall_s=60.0)) as session:
        step = session.exec("import os, time\nos.write(3, bytes(3))\ntime.sleep(1000)")
        assert step.status == "killed", step
        assert session.exec("print(1)").stdout == b"1\n"


BACKGROUND: list[tuple[Kind, str]] = [
    ("shell", "(while :; do :; done) >/dev/null 2>&1 &"),
    ("shell", "for i in 1 2 3; do (while :; do :; done) >/dev/null 2>&1 & done"),
    ("python", "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass"),
    (
        "python",
        "import threading\ndef f():\n  while True: pass\nthreading.Thread(target=f, daemon=True).start()",
    ),
    (
        "python",
        "import os, time\nfor i in range(5):\n  if os.fork() == 0:\n"
        "    x = bytearray(b'x') * (80 << 20)\n    time.sleep(1000)",
    ),
]


def test_background_work_is_limited_while_nobody_asks(sandbox: Sandbox) -> None:
    sessions = [Session(sandbox, kind, limits=BURNS) for kind, _ in BACKGROUND]
    try:
        for session, (_, start) in zip(sessions, BACKGROUND, strict=True):
            assert session.exec(start).status in ("exited", "memory_limit")
        tree, deadline = ProcessTree(launcher_pid(sandbox)), time.monotonic() + 120
        while any(_is_at_work(process) for process in tree._processes().values()):
            assert time.monotonic() < deadline, "background processes still use processor or memory"
            time.sleep(0.3)
        for session, (kind, _) in zip(sessions, BACKGROUND, strict=True):
            assert session.exec("print(1)" if kind == "python" else "echo 1").status != "broken"
    finally:
        for session in sessions:
            session.close()


def _is_at_work(process: Any) -> bool:
    return process.is_running or process.rss_mb > 80


def test_idle_background_program_stays(sandbox: Sandbox) -> None:
    with Session(sandbox, limits=LONG) as session:
        session.exec("(sleep 0.5; echo done > late) >/dev/null 2>&1 &")
        deadline = time.monotonic() + 60
        while session.exec("cat late").stdout != b"done\n":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_close_ends_everything_also_while_a_step_runs(sandbox: Sandbox) -> None:
    sessions = [Session(sandbox, kind, limits=LONG) for kind in ("shell", "python")]
    results = []
    steps = [
        threading.Thread(target=lambda: results.append(sessions[0].exec("sleep 1000"))),
        threading.Thread(target=lambda: results.append(sessions[1].exec("import time; time.sleep(1000)"))),
    ]
    for step in steps:
        step.start()
    time.sleep(0.3)
    for session in sessions:
        session.close()
    for step in steps:
        step.join(60)
        assert not step.is_alive()
    assert [result.status for result in results] == ["broken", "broken"]
    assert left_by(sandbox) == []


def test_session_that_is_closed_says_so(sandbox: Sandbox) -> None:
    session = Session(sandbox, limits=LONG)
    session.close()
    session.close()
    assert session.exec("echo 1").status == "broken"
    for attempt in (lambda: session.read("x"), lambda: session.write({"x": b""})):
        with pytest.raises(SandboxError, match="over"):
            attempt()


@pytest.mark.slow
def test_fifty_sessions_at_once(sandbox: Sandbox) -> None:
    with Sandbox(sandbox._policy, max_jobs=50) as wide:
        sessions = [Session(wide, "python" if i % 2 else "shell", limits=LONG) for i in range(50)]

        def steps(number: int) -> bytes:
            session = sessions[number]
            if number % 2:
                session.exec(f"x = {number}")
                return session.exec("x").stdout
            session.exec(f"export X={number}")
            return session.exec("echo $X").stdout

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(steps, range(50))) == [b"%d\n" % number for number in range(50)]
        for session in sessions:
            session.close()
        assert left_by(wide) == []
