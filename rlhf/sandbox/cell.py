"""Inside the walls: how a job's processes are confined, and the init that starts and reaps them."""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlhf.sandbox import files, interpreter, kernel, landlock, root, seccomp, tasks, wire
from rlhf.sandbox.execution import Limits, Tier
from rlhf.sandbox.storage import MAX_FILES

INNER_ID = 1000
"""User and group id of programs in the `namespaces` tier, as they see it."""
CHANNEL = 3
_INTERPRETER_MB = 96
"""Addresses that an interpreter maps before its program has asked for anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How the processes of one job are held."""

    tier: Tier
    uid: int | None
    """A user id that only this job has; none where the launcher is not root."""
    scratch: str
    limits: Limits
    readable: Sequence[str]
    """What programs may read besides their scratch folder, where the tier isolates files."""
    packages: str
    """Folder of installed packages, on the import path of Python programs."""
    searches_by: int | None = None
    """Capability to pass folders of other users: for an interpreter in one, where Landlock holds the rest."""
    hidden_tasks: int = 0
    """Tasks of this user in other containers: the kernel counts them, nobody here sees them."""
    without: frozenset[str] = frozenset()
    """Mechanisms left out: for tests which show that each one matters."""

    @property
    def shares_user(self) -> bool:
        """Whether nothing but Landlock stands between programs and files of others."""
        has_own_rights = self.uid is not None and self.searches_by != kernel.CAP_DAC_OVERRIDE
        return self.tier == "landlock" and not has_own_rights

    def has(self, mechanism: str) -> bool:
        """Whether the mechanism is in place."""
        return mechanism not in self.without


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One program to start in a cell; `descriptors` become 0, 1, 2 and, if there is a fourth, the channel."""

    argv: Sequence[str]
    code: str
    limits: Limits
    address_space: bool
    is_interruptible: bool
    descriptors: Sequence[int]
    environment: Mapping[str, str] = field(default_factory=dict)


def spawn(cell: Cell, step: Step) -> tuple[int, str]:
    """Start the step; its process id, or 0 and what went wrong before its first instruction."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with _last_words(write_end):
            _confine(cell, step)
            _enter_program(cell, step, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as report:
        problem = report.read()
    if problem:
        os.waitpid(pid, 0)
        return 0, problem.decode(errors="replace")
    return pid, ""


@contextlib.contextmanager
def _last_words(report: int, *, on_os_error: str = "broken") -> Iterator[None]:
    """End this process after the block; tell the parent how the block failed."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001
        kind = on_os_error if isinstance(error, OSError) else "broken"
        os.write(report, json.dumps({kind: f"{type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(127)


def _confine(cell: Cell, step: Step) -> None:
    """Give up everything the step must not have. The order matters: each call still needs the later ones' rights."""
    inside = cell.tier == "namespaces"
    os.setsid()
    if cell.has("capabilities"):
        kernel.drop_bounding_set(keep=cell.searches_by)
    if not inside and cell.uid is not None:
        if cell.searches_by is not None:
            kernel.keep_capabilities()
        become(cell.uid)
    os.chdir(root.SCRATCH if inside else cell.scratch)
    os.umask(0o077 if cell.shares_user else 0o022)
    _limit(cell, step)
    if cell.has("capabilities"):
        kernel.drop_capabilities(keep=cell.searches_by)
    kernel.set_no_new_privileges()
    if cell.tier != "read-only" or cell.uid is not None:
        # It may look at itself in /proc, and a monitor of the same user sees its memory and open files only so. Where
        # files are not isolated, other jobs of that user could read them, too.
        kernel.set_dumpable(True)
    with contextlib.suppress(OSError):
        # Whatever else runs here shall outlive it when memory runs out.
        Path("/proc/self/oom_score_adj").write_text("1000")
    if cell.tier == "landlock" and cell.has("landlock"):
        own = f"/proc/{os.getpid()}"
        devices = ["/dev/urandom", "/dev/random", "/dev/zero", "/dev/full"]
        landlock.restrict(readable=[*cell.readable, own, *devices], writable=[cell.scratch, "/dev/null"])
    if cell.has("seccomp"):
        kernel.install_filter(seccomp.build_filter(_rules(cell)))


def become(uid: int) -> None:
    """Be user and group `uid` and no other, and still able to see one's own /proc entry."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.set_dumpable(True)


def _rules(cell: Cell) -> seccomp.Rules:
    inside = cell.tier == "namespaces"
    scoped = inside or (cell.tier == "landlock" and landlock.abi() >= landlock.SCOPED_SIGNALS)
    # A user id of its own has no other processes.
    scoped = scoped or cell.uid is not None
    return seccomp.Rules(
        files="read-only" if cell.tier == "read-only" else "full",
        may_fork=cell.tier != "read-only",
        own_pid=None if scoped else os.getpid(),
        landlock_abi=landlock.abi() if cell.tier == "landlock" else None,
        shares_user=cell.shares_user,
        without=cell.without,
    )


def _limit(cell: Cell, step: Step) -> None:
    limits = step.limits
    cpu_s = int(limits.cpu_s) + 1
    wanted = {
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_FSIZE: limits.file_mb << 20,
        resource.RLIMIT_NOFILE: limits.open_files,
        # 1 and not 0: the kernel then also runs no program of the host's that collects core dumps, core(5).
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_STACK: min(64, limits.memory_mb // 2 or 1) << 20,
        resource.RLIMIT_NPROC: limits.processes + _others(cell),
    }
    if step.address_space:
        wanted[resource.RLIMIT_AS] = (limits.memory_mb + _INTERPRETER_MB) << 20
    if step.is_interruptible:
        # It may have as much time again for each question: the watcher counts.
        del wanted[resource.RLIMIT_CPU]
    for what, value in wanted.items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        if cell.has(f"rlimit_{what}"):
            # What this machine allows at most can be less.
            most = resource.getrlimit(what)[1]
            most = hard if most == resource.RLIM_INFINITY else most
            resource.setrlimit(what, (min(soft, most), min(hard, most)))


def _others(cell: Cell) -> int:
    """Tasks that the kernel counts together with the job's: its init, or all of this user's elsewhere."""
    if cell.tier == "namespaces":
        return 1
    return 0 if cell.uid is not None else tasks.seen() + cell.hidden_tasks + tasks.SHARED


def _enter_program(cell: Cell, step: Step, report: int) -> NoReturn:
    # Descriptors may lie on each other's targets: lift them out of the way first.
    lifted = [os.dup(descriptor) for descriptor in step.descriptors]
    while any(descriptor <= CHANNEL for descriptor in lifted):
        lifted = [os.dup(d) if d <= CHANNEL else d for d in lifted]
    if report <= CHANNEL + 1:
        raise RuntimeError("the report pipe lies on a standard descriptor")
    for target, descriptor in enumerate(lifted):
        os.dup2(descriptor, target, inheritable=True)
    last = len(lifted)
    os.dup2(report, last, inheritable=False)
    kernel.close_descriptors_from(last + 1)
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    with _last_words(last, on_os_error="refused"):
        if step.code:
            os.environ.clear()
            os.environ.update(step.environment)
            os.close(last)
            interpreter.run(step.code, packages=cell.packages)
        os.execve(_found(step.argv[0], step.environment), list(step.argv), dict(step.environment))
    raise AssertionError("not reached")


def _found(program: str, environment: Mapping[str, str]) -> str:
    if "/" in program:
        return program
    for folder in environment["PATH"].split(":"):
        if os.access(f"{folder}/{program}", os.X_OK):
            return f"{folder}/{program}"
    raise FileNotFoundError(2, "no such program in the sandbox", program)


def environment(scratch: str) -> dict[str, str]:
    """All that a program finds in its environment."""
    here = os.path.dirname(sys.executable)
    return {
        "PATH": f"{here}:/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def start_init(cell: Cell, connection: socket.socket) -> int:
    """Fork the init of a new pid namespace, which serves `connection`; its id. Only once in a process's life."""
    kernel.unshare(kernel.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        _be_init(cell, connection)
    return pid


def map_ids(uid: int, gid: int, *, inside: int | None = None, proc: str | int = "/proc") -> None:
    """In a user namespace just entered: keep these ids, or be known by the one `inside`; `proc` is a process table."""
    table = os.open(proc, os.O_RDONLY | os.O_DIRECTORY) if isinstance(proc, str) else os.dup(proc)
    inside_uid, inside_gid = (uid, gid) if inside is None else (inside, inside)
    try:
        _write(table, "setgroups", "deny")
        _write(table, "uid_map", f"{inside_uid} {uid} 1")
        _write(table, "gid_map", f"{inside_gid} {gid} 1")
    finally:
        os.close(table)


def _write(table: int, name: str, text: str) -> None:
    descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=table)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _be_init(cell: Cell, connection: socket.socket) -> NoReturn:
    try:
        kernel.leave_host(cell.without)
        owner = os.getuid() if cell.uid is None else cell.uid
        # The job's root may show no process table at all.
        outer_table = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        has_table = root.enter_job(disk_mb=cell.limits.disk_mb, files=MAX_FILES, owner=owner)
        socket.sethostname("sandbox")
        if cell.uid is not None:
            become(cell.uid)
        kernel.set_dumpable(True)
        outer_uid, outer_gid = os.getuid(), os.getgid()
        # Of its own, so that the kernel counts the job's processes apart from this user's others.
        kernel.unshare(kernel.CLONE_NEWUSER)
        map_ids(outer_uid, outer_gid, inside=INNER_ID, proc=outer_table)
        os.close(outer_table)
        if cell.has("capabilities"):
            kernel.drop_bounding_set()
            kernel.drop_capabilities()
        # The job has the same user id: its init must not be readable or writable through /proc/1.
        kernel.set_dumpable(False)
        os.chdir(root.SCRATCH)
        table = [os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)] if has_table else []
        init = _Init(cell, connection)
        wire.send(connection, {"ready": True}, descriptors=table)
        init.serve()
    except BaseException as error:  # noqa: BLE001
        with contextlib.suppress(OSError):
            wire.send(connection, {"broken": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _kill_all() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


class _Init:
    """Puts files, starts one step at a time, reaps whatever ends, brings files back, until the monitor closes."""

    def __init__(self, cell: Cell, connection: socket.socket) -> None:
        self._cell = cell
        self._connection = connection
        self._pid = 0
        self._header: dict[str, Any] = {}
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._woken, write_end = os.pipe()
        for descriptor in (self._woken, write_end):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # Python has a handler for it, and the job may send whatever has one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGUSR1, lambda *_: _kill_all())

    def serve(self) -> None:
        """Obey until EOFError."""
        while True:
            readable = select.select([self._connection.fileno(), self._woken], [], [])[0]
            if self._woken in readable:
                os.read(self._woken, 4096)
                self._reap()
            if self._connection.fileno() in readable:
                self._obey(wire.receive(self._connection))

    def _obey(self, message: wire.Message) -> None:
        header = message.header
        if header["do"] == "start":
            self._start(message)
            return
        answer, contents = files.serve(root.SCRATCH, header, message.blobs)
        wire.send(self._connection, answer, blobs=contents)

    def _start(self, message: wire.Message) -> None:
        self._header, self._before = message.header, resource.getrusage(resource.RUSAGE_CHILDREN)
        problem = files.put(root.SCRATCH, dict(zip(message.header["files"], message.blobs, strict=True)))
        if problem:
            problem = json.dumps({"refused": problem})
        else:
            self._pid, problem = spawn(self._cell, step_of(self._header, message.descriptors, root.SCRATCH))
        for descriptor in message.descriptors:
            os.close(descriptor)
        if not self._pid:
            wire.send(self._connection, json.loads(problem))
        # It may have ended before its id was known here.
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            while pid:
                if pid == self._pid:
                    self._ended(status)
                pid, status = os.waitpid(-1, os.WNOHANG)

    def _ended(self, status: int) -> None:
        self._pid = 0
        if not self._header["lingers"]:
            _kill_all()
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.wait()
        found = files.collect(root.SCRATCH, self._header["collect"], self._header["collect_bytes"])
        answer = {"ended": status, **used_since(self._before), "files": list(found)}
        wire.send(self._connection, answer, blobs=list(found.values()))


def step_of(header: Mapping[str, Any], descriptors: Sequence[int], scratch: str) -> Step:
    """The step that a request describes."""
    return Step(
        argv=header["argv"],
        code=header["code"],
        limits=Limits(**header["limits"]),
        address_space=header["address_space"],
        is_interruptible=header["is_interruptible"],
        descriptors=descriptors,
        environment=environment(scratch),
    )


def used_since(before: resource.struct_rusage) -> dict[str, float]:
    """CPU seconds of the children reaped since `before`, and the memory of the largest one so far."""
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu_s, "peak_mb": now.ru_maxrss / 1024}
