"""The sandbox as the grading of one completion uses it: limits per test, CPU spent so far, talks with a process."""

import inspect
import socket
import time
from dataclasses import dataclass, field, replace
from functools import cache
from types import TracebackType
from typing import Any, Literal

from rewards import code_runner, code_wire
from rewards.code_wire import MAX_REPLY_BYTES, WireError, frame, receive
from rlhf.errors import RewardError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program

Kind = Literal[
    "passed",
    "wrong_answer",
    "exception",
    "compile_error",
    "import_error",
    "unsendable",
    "exited",
    "crashed",
    "protocol",
    "cpu_limit",
    "wall_limit",
    "memory_limit",
    "output_limit",
    "disk_limit",
    "process_limit",
]
"""What became of a test. `unsendable`: a value that is no plain data; `protocol`: a forged or broken answer."""
LIMITS: frozenset[Kind] = frozenset(
    {"cpu_limit", "wall_limit", "memory_limit", "output_limit", "disk_limit", "process_limit"}
)
RAN: frozenset[Kind] = frozenset({"passed", "wrong_answer"})
Role = Literal["solution", "tests", "both"]
_CHANNEL_GRACE_S = 10.0
"""How much longer than its own limits a program may take to answer before the sandbox counts as broken."""
_LAST_S = 0.5
"""What a process gets to end in after it has closed its channel."""
_TESTS_GRACE_S = 60.0
_TESTS_WALL_S = 3600.0
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one test. `is_final`: the tests after it need not run, they would fare no better."""

    kind: Kind
    message: str = ""
    is_final: bool = False
    has_compiled: bool = True


class BrokenSandbox(Exception):
    """The sandbox failed: no verdict on the program."""


class Ended(Exception):
    """The process is gone, or has said what it must not: the verdict on the test that was running."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.kind)
        self.verdict = verdict


@dataclass(slots=True, kw_only=True)
class Bench:
    """A sandbox, what one test and all tests together may use, and what they have used."""

    sandbox: Sandbox
    cpu_s: float
    total_cpu_s: float
    memory_mb: int
    spent_s: float = 0.0
    waited_s: float = 0.0
    tier: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def limits(self) -> Limits:
        """Of one test."""
        return Limits(cpu_s=self.cpu_s, wall_s=4 * self.cpu_s, memory_mb=self.memory_mb)

    @property
    def is_late(self) -> bool:
        """Whether all tests together have had four times their CPU time by the clock."""
        return time.monotonic() - self.began > 4 * self.total_cpu_s

    @property
    def exhausted(self) -> Verdict | None:
        """Why no further test may be run. BrokenSandbox when it is not the program that took the time."""
        if self.spent_s >= self.total_cpu_s:
            return Verdict("cpu_limit", "the CPU time of all tests together is used up", is_final=True)
        if not self.is_late:
            return None
        elapsed = time.monotonic() - self.began
        if self.waited_s > elapsed / 2:
            raise BrokenSandbox(f"waited {self.waited_s:.1f} s of {elapsed:.1f} s for a core")
        return Verdict("wall_limit", f"all tests together took {elapsed:.1f} s", is_final=True)

    def run(self, program: Program, limits: Limits, *, is_test: bool = True) -> Execution:
        """Run a program to its end and, if it is a test, count what it used."""
        return self.count(self.sandbox.run(program, limits=limits), is_test=is_test)

    def count(self, execution: Execution, *, is_test: bool = True) -> Execution:
        """Add a program's use. BrokenSandbox or RewardError when how it ended says nothing about the program."""
        self.spent_s += execution.cpu_s if is_test else 0.0
        self.waited_s += execution.waited_s
        self.tier = execution.tier
        if execution.status == "broken":
            raise BrokenSandbox(execution.detail)
        if execution.status == "refused":
            raise RewardError(f"the sandbox refused to run a solution: {execution.detail}")
        return execution


def verdict_of(execution: Execution) -> Verdict:
    """Why a program that should have gone on has ended."""
    if execution.status == "wall_limit":
        # It waited for nothing; it would wait again in every other test.
        return Verdict("wall_limit", execution.detail, is_final=True)
    if execution.status in LIMITS:
        return Verdict(execution.status, execution.detail)
    if execution.status == "signalled":
        return Verdict("crashed", f"killed by signal {execution.signal}")
    return Verdict("exited", f"exit code {execution.exit_code}")


class Side:
    """A process in the sandbox that answers questions over its channel. Use as a context manager."""

    def __init__(self, bench: Bench, role: Role) -> None:
        self._bench = bench
        whole = Limits(
            cpu_s=max(bench.total_cpu_s - bench.spent_s, 0.1) + bench.cpu_s,
            wall_s=4 * bench.total_cpu_s,
            memory_mb=bench.memory_mb,
        )
        self._job = bench.sandbox.start(Program(code=_program(role)), limits=whole, channel=True)
        # The tests wait while the solution works; what they wait for has its own limit.
        self._limits = bench.limits if role != "tests" else replace(bench.limits, wall_s=_TESTS_WALL_S)
        self._patience_s = bench.limits.net_s + (_CHANNEL_GRACE_S if role != "tests" else _TESTS_GRACE_S)
        self._deadline = 0.0
        self._is_open = True

    def ask(self, *message: Any) -> list[Any]:
        """Send a message and give the answer, within the limits of one test from now. Ended when there is none."""
        self.tell(*message)
        return self.hear()

    def tell(self, *message: Any) -> None:
        """Send a message; the limits of one test start anew, unless all tests together are late."""
        if self._bench.is_late:
            self.close()
            raise Ended(self._bench.exhausted or Verdict("wall_limit", is_final=True))
        self._job.renew(self._limits)
        self._deadline = time.monotonic() + self._patience_s
        self._channel.settimeout(self._patience_s)
        try:
            self._channel.sendall(frame(list(message)))
        except WireError as error:
            raise RewardError(f"a test's data cannot be sent to the sandbox: {error}") from error
        except OSError:
            raise self._ended() from None

    def hear(self) -> list[Any]:
        """The next message."""
        try:
            return receive(self._read, limit=MAX_REPLY_BYTES)
        except WireError as error:
            raise Ended(Verdict("protocol", str(error))) from None
        except TimeoutError:
            raise BrokenSandbox("a program outlived its limits") from None
        except (EOFError, OSError):
            raise self._ended() from None

    def _read(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)
        return self._channel.recv(size)

    @property
    def _channel(self) -> socket.socket:
        assert self._job.channel is not None
        return self._job.channel

    def _ended(self) -> Ended:
        """The end of a process that closed its channel: how it ended by itself, if it does so at once."""
        self._is_open = False
        self._job.renew(replace(self._limits, cpu_s=_LAST_S / 4, wall_s=_LAST_S))
        return Ended(verdict_of(self._bench.count(self._job.wait())))

    def close(self) -> None:
        """End the process, if it has not ended, and count what it used."""
        if self._is_open:
            self._is_open = False
            self._bench.count(self._job.kill())

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _program(role: Role) -> str:
    """The runner with what it imports, as one text."""
    modules = {module.__name__: inspect.getsource(module) for module in (code_wire, code_runner)}
    return (
        "import sys, types\n"
        f"for name, text in {modules!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(text, name, 'exec'), module.__dict__)\n"
        f"module.Process({role!r}).serve()\n"
    )
