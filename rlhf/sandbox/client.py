"""Runs untrusted programs from any thread of any process: `default_sandbox().run(Program(code=...))`."""

import atexit
import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf.errors import SandboxError
from rlhf.sandbox import wire
from rlhf.sandbox.execution import Execution, Holder, Limits, Program, Tier
from rlhf.sandbox.launching import LauncherProcess
from rlhf.sandbox.policy import Policy, strongest
from rlhf.sandbox.remote import RemoteSandbox

_NET_S = 30.0
"""How much longer than a program's own net its verdict may take, before the sandbox counts as broken."""
MAX_JOBS = 16
JOBS_PER_LAUNCHER = 5000


class Cell:
    """Our end of a confined place in which steps run one after another; `close` ends everything in it."""

    def __init__(self, connection: socket.socket, place: "_Place") -> None:
        self._connection = connection
        self._place = place
        self._owner = os.getpid()

    def start(
        self,
        program: Program,
        limits: Limits,
        *,
        channel: bool = False,
        lingers: bool = True,
        is_interruptible: bool = False,
    ) -> "Job":
        """Start a step. What it leaves running stays if it `lingers`, and else ends with it, and with it the cell."""
        header = {
            "do": "start",
            "argv": list(program.argv),
            "code": program.code,
            "files": list(program.files),
            "collect": list(program.collect),
            "limits": asdict(limits),
            "address_space": program.limits_address_space,
            "lingers": lingers,
            "is_interruptible": is_interruptible,
        }
        ours, theirs = socket.socketpair() if channel else (None, None)
        with theirs or contextlib.nullcontext():
            with contextlib.suppress(OSError):
                self._connection.settimeout(limits.net_s + _NET_S)
            given = [] if theirs is None else [theirs.fileno()]
            self.send(header, blobs=[program.stdin, *program.files.values()], descriptors=given)
        return Job(self, ours, closes=not lingers)

    def send(
        self, header: dict[str, Any], *, blobs: Sequence[bytes] = (), descriptors: Sequence[int] = ()
    ) -> None:
        """Write to the monitor; one that is gone is noticed when its answer is read."""
        with contextlib.suppress(OSError):
            wire.send(self._connection, header, blobs=blobs, descriptors=descriptors)

    def receive(self) -> wire.Message:
        """The monitor's next message. EOFError or OSError when it is gone or late."""
        return wire.receive(self._connection)

    def execution(self, message: wire.Message) -> Execution:
        """What the monitor's verdict says."""
        header = message.header
        stdout, stderr, *contents = message.blobs
        files = dict(zip(header.pop("files"), contents, strict=True))
        place = self._place
        return Execution(
            tier=place.tier, queue_s=place.queue_s, stdout=stdout, stderr=stderr, files=files, **header
        )

    def broken(self, error: Exception) -> Execution:
        """A verdict in place of one that did not come."""
        reason = (
            "no verdict in time" if isinstance(error, TimeoutError) else f"its monitor is gone ({error!r})"
        )
        return Execution(status="broken", tier=self._place.tier, detail=reason)

    def fileno(self) -> int:
        """Readable when the monitor has something to say."""
        return self._connection.fileno()

    def hang_up(self) -> None:
        """End everything in the cell; also from another thread than the one that waits for it."""
        if self._owner == os.getpid():
            # A fork of this process may still hold the socket open.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything in the cell and free its place."""
        self.hang_up()
        self._connection.close()
        self._place.free()


class Job:
    """A program that runs. Use it as a context manager, or call `wait` or `kill`: one of them frees its place."""

    def __init__(self, cell: Cell, channel: socket.socket | None, *, closes: bool) -> None:
        self._cell = cell
        self._closes = closes
        self._execution: Execution | None = None
        self._lock = threading.Lock()
        self.channel = channel
        """Our end of the program's descriptor 3, if it was started with one."""

    def wait(self) -> Execution:
        """How the program ended; always an answer, `broken` when the sandbox itself failed."""
        with self._lock:
            if self._execution is None:
                self._execution = self._verdict()
                if self.channel is not None:
                    self.channel.close()
                if self._closes:
                    self._cell.close()
            return self._execution

    def _verdict(self) -> Execution:
        try:
            message = self._cell.receive()
            while "status" not in message.header:
                message = self._cell.receive()
            return self._cell.execution(message)
        except (EOFError, OSError) as error:
            return self._cell.broken(error)

    def kill(self) -> Execution:
        """End the program with all its children; its verdict is `killed` unless it had ended by itself."""
        if self._execution is None:
            self._cell.send({"do": "kill"})
        return self.wait()

    def renew(self, limits: Limits) -> None:
        """Count its CPU and wall time anew, within these limits: for programs that answer question after question."""
        self._cell.send({"do": "budget", "limits": asdict(limits)})

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class _Place:
    """One of the jobs that may run at once."""

    def __init__(self, places: threading.BoundedSemaphore, tier: Holder) -> None:
        began = time.monotonic()
        places.acquire()
        self.queue_s = time.monotonic() - began
        self.tier = tier
        self._places: threading.BoundedSemaphore | None = places

    def free(self) -> None:
        """Let another job have it."""
        places, self._places = self._places, None
        if places is not None:
            places.release()


class Sandbox:
    """A place to run programs in, as strong as `policy` asks; its launcher starts with the first program.

    Thread-safe. A fork of this process gets a launcher of its own. `without` leaves mechanisms out, for tests.
    """

    def __init__(
        self, policy: Policy | None = None, *, max_jobs: int = MAX_JOBS, without: Sequence[str] = ()
    ) -> None:
        self._policy = policy or Policy()
        self._without = tuple(without)
        self._max_jobs = max_jobs
        self._tier: Tier | None = None
        self.unavailable: dict[Tier, str] = {}
        """Why the tiers that were tried before the present one, or in vain, cannot be had here."""
        self._is_lent = False
        self._borrowed: LauncherProcess | None = None
        self._begin()
        _sandboxes.add(self)

    def lend(self) -> None:
        """Start the launcher, and have later forks of this process use it, too, while this process lives.

        SandboxError as for `tier`. A fork whose lender's launcher is gone starts one of its own.
        """
        self._is_lent = bool(self.tier)

    def _begin_in_fork(self) -> None:
        if self._is_lent:
            self._borrowed, self._is_lent = self._launcher, False
        self._begin()

    def _begin(self) -> None:
        """Nothing runs: at first, and in a fork of the process, whatever its threads were about."""
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self._max_jobs)
        self._launcher: LauncherProcess | None = None
        self._retired: list[LauncherProcess] = []
        remote = self._policy.remote
        self._remote = RemoteSandbox(remote, max_jobs=self._max_jobs) if remote else None

    @property
    def tier(self) -> Holder:
        """The tier that programs run in. SandboxError, with reasons and ways out, when none is strong enough."""
        if self._remote is not None:
            return self._remote.tier
        with self._lock:
            if self._borrowed is None:
                self._running()
            assert self._tier is not None
            return self._tier

    def run(self, program: Program, *, limits: Limits | None = None) -> Execution:
        """Run a program to its end."""
        if self._remote is not None:
            return self._remote.run(program, limits=limits)
        return self.start(program, limits=limits).wait()

    def start(self, program: Program, *, limits: Limits | None = None, channel: bool = False) -> Job:
        """Start a program; with `channel` its descriptor 3 is a stream socket whose other end is `job.channel`.

        Waits while `max_jobs` are running. SandboxError when no tier is strong enough or the launcher cannot start.
        """
        limits = limits or Limits()
        return self.open_cell(limits).start(program, limits, channel=channel, lingers=False)

    def open_cell(self, limits: Limits) -> Cell:
        """An empty cell; waits for a free place and raises as `start` does, and where a server runs the programs."""
        if self._remote is not None:
            self._remote.open_cell(limits)
        tier = self.tier
        place = _Place(self._places, tier)
        connection, theirs = socket.socketpair()
        try:
            with theirs:
                self._hand_over(theirs, limits)
        except BaseException:
            connection.close()
            place.free()
            raise
        return Cell(connection, place)

    def _hand_over(self, theirs: socket.socket, limits: Limits) -> None:
        """Give a job's socket to the launcher; once more to a new one if it has died."""
        for attempt in range(-bool(self._borrowed), 2):
            with self._lock:
                launcher = self._borrowed or self._running()
                try:
                    header = {"limits": asdict(limits)}
                    wire.send(launcher.connection, header, descriptors=[theirs.fileno()])
                    launcher.num_jobs += 1
                    return
                except OSError as error:
                    if launcher is self._borrowed:
                        self._borrowed = None
                        continue
                    self._launcher = None
                    self._retired.append(launcher)
                    if attempt:
                        raise SandboxError(f"the sandbox launcher died twice: {launcher.log()}") from error

    def _running(self) -> LauncherProcess:
        """The launcher of this process, started or replaced as needed."""
        for launcher in [launcher for launcher in self._retired if launcher.has_ended()]:
            self._retired.remove(launcher)
            launcher.close(wait=True)
        if self._launcher is not None and self._launcher.num_jobs >= JOBS_PER_LAUNCHER:
            self._launcher.close(wait=False)
            self._retired.append(self._launcher)
            self._launcher = None
        if self._launcher is None:
            started: dict[Tier, LauncherProcess] = {}
            self._tier = strongest(self._policy, lambda tier: self._attempt(tier, started))
            self._launcher = started[self._tier]
        return self._launcher

    def _attempt(self, tier: Tier, started: dict[Tier, LauncherProcess]) -> str:
        """Start a launcher of the tier and run one program in it; why that failed, or nothing."""
        python, max_jobs = self._policy.python, self._max_jobs
        try:
            launcher = LauncherProcess(tier, without=self._without, python=python, max_jobs=max_jobs)
        except OSError as error:
            reason = f"its launcher cannot be started ({error})"
        else:
            started[tier] = launcher
            reason = launcher.refusal or _first_program(launcher, tier)
            if reason:
                launcher.close(wait=True)
        self.unavailable |= {tier: reason} if reason else {}
        return reason

    def close(self) -> None:
        """End the launcher; programs that still run end with their jobs."""
        with self._lock:
            for launcher in [*self._retired, *([self._launcher] if self._launcher else [])]:
                launcher.close(wait=True)
            self._launcher, self._retired = None, []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _begin_again() -> None:
    _Default.lock = threading.Lock()
    for sandbox in _sandboxes:
        sandbox._begin_in_fork()


os.register_at_fork(after_in_child=_begin_again)


def _first_program(launcher: LauncherProcess, tier: Tier) -> str:
    """Why the launcher's first program did not do what it should, or nothing."""
    connection, theirs = socket.socketpair()
    limits = Limits()
    with theirs:
        wire.send(launcher.connection, {"limits": asdict(limits)}, descriptors=[theirs.fileno()])
    cell = Cell(connection, _Place(threading.BoundedSemaphore(), tier))
    execution = cell.start(Program(code="print(6 * 7)"), limits, lingers=False).wait()
    if execution.stdout == b"42\n":
        return ""
    return execution.detail or execution.stderr.decode(errors="replace") or launcher.log()


class _Default:
    """The sandbox that rewards and tools of this process share."""

    lock = threading.Lock()
    policy = Policy()
    max_jobs = MAX_JOBS
    sandbox: Sandbox | None = None


def default_sandbox() -> Sandbox:
    """The process's own sandbox, with the policy of the recipe."""
    with _Default.lock:
        if _Default.sandbox is None:
            _Default.sandbox = Sandbox(_Default.policy, max_jobs=_Default.max_jobs)
            atexit.register(_Default.sandbox.close)
        return _Default.sandbox


def set_default_policy(policy: Policy, *, max_jobs: int = MAX_JOBS) -> None:
    """Decide what `default_sandbox` accepts; called once where a process learns its recipe."""
    with _Default.lock:
        if _Default.sandbox is not None:
            _Default.sandbox.close()
        _Default.policy, _Default.max_jobs, _Default.sandbox = policy, max_jobs, None
