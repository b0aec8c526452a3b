"""What a tree of processes uses, read from /proc: CPU seconds, memory, tasks, time spent waiting for a core."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf.sandbox import kernel

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
_CALLS_PER_SEARCH = 50
_LONGEST_SAMPLE_S = 0.1
_MAX_BLIND = 50
_NICE = os.getpriority(os.PRIO_PROCESS, 0)
_BUFFER_MB = {"socket": 0.25, "pipe": 0.0625}
"""What the kernel holds for a full one, in no process's memory (net.core.wmem_default, pipe(7))."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all living descendants; `cpu_s` and `waited_s` also of those that were seen and are gone."""

    cpu_s: float
    rss_mb: float
    tasks: int
    waited_s: float
    """Wall seconds in which one of them was ready to run, but without a core."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_s: float
    reaped_cpu_s: float
    tasks: int
    started: int
    rss_mb: float
    is_running: bool
    is_polite: bool
    """Behind others by its own wish."""


class ProcessTree:
    """The descendants of process `root` in the process table at `proc`.

    Reads a process of another tree once a second at most: a table of hundreds costs a tick well under a millisecond.
    `reader` is the user that they have, where this process may become it.
    """

    def __init__(self, root: int, *, proc: str = "/proc", reader: int | None = None) -> None:
        self._root = root
        self._proc = proc
        self._reader = reader
        # With the time of its start, as the id alone may be another process's by now.
        self._ours: dict[int, int] = {}
        self._foreign: set[int] = {0}
        self._calls = 0
        self._cpu: dict[tuple[int, int], float] = {}
        self._waits: dict[tuple[int, int], float] = {}
        self._waited_s = 0.0
        self._sampled_s = 0.0
        self._blind: dict[tuple[int, int], int] = {}
        self._last = time.monotonic()

    def pids(self) -> list[int]:
        """The living descendants, the root left out."""
        return list(self._processes())

    def _processes(self) -> dict[int, _Process]:
        listed = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        self._calls += 1
        self._foreign = self._foreign & listed | {0} if self._calls % _CALLS_PER_SEARCH else {0}
        read = {pid: self._read(pid) for pid in listed - self._foreign}
        undecided = {pid: process for pid, process in read.items() if process is not None}
        found = {pid: p for pid, p in undecided.items() if self._ours.get(pid) == p.started}
        self._ours = {pid: process.started for pid, process in found.items()}
        for pid in found:
            del undecided[pid]
        # Known only through its parent: one whose parent began after the listing waits for the next call.
        while decided := [pid for pid, process in undecided.items() if self._decide(pid, process)]:
            for pid in decided:
                process = undecided.pop(pid)
                if pid in self._ours:
                    found[pid] = process
        return found

    def _decide(self, pid: int, process: _Process) -> bool:
        """Whether the side that `pid` is on is known now. What has the root below it is not ours."""
        if pid == self._root:
            self._foreign.add(process.parent)
            return True
        if process.parent == self._root or process.parent in self._ours:
            self._ours[pid] = process.started
        elif process.parent in self._foreign:
            self._foreign.add(pid)
        else:
            return False
        return True

    def usage(self) -> Usage:
        """What the descendants use now."""
        known = self._ours
        processes = self._processes()
        now = time.monotonic()
        passed_s, self._last = min(now - self._last, _LONGEST_SAMPLE_S), now
        longest_wait_s = 0.0
        for pid, process in processes.items():
            identity = pid, process.started
            ran_s, waited_s = self._schedule(pid)
            self._cpu[identity] = max(process.cpu_s, ran_s)
            if not process.is_polite:
                longest_wait_s = max(longest_wait_s, waited_s - self._waits.get(identity, 0.0))
            self._waits[identity] = waited_s
            if process.is_running and pid not in known:
                self._sampled_s += passed_s * ran_s / (ran_s + waited_s) if ran_s else 0.0
        self._waited_s += longest_wait_s
        root = self._read(self._root)
        reaped = root.reaped_cpu_s if root else 0.0
        counted = reaped + sum(p.cpu_s + p.reaped_cpu_s for p in processes.values())
        return Usage(
            # A child that nobody waits for vanishes from its parent's sum; many that live shorter than a tick are
            # never seen twice, so that they are estimated from how often a new one is running. By half: no program
            # shall fail by chance.
            cpu_s=max(counted, sum(self._cpu.values()), self._sampled_s / 2),
            rss_mb=sum(process.rss_mb for process in processes.values()),
            tasks=sum(process.tasks for process in processes.values()),
            waited_s=self._waited_s,
        )

    def proportional_mb(self) -> float:
        """Memory with shared pages counted once: slower than `usage`, exact after forks."""
        with self._eyes():
            return sum(self._proportional_mb(pid, process) for pid, process in self._processes().items())

    def open_files(self) -> list[tuple[str, os.stat_result]]:
        """Target and status of every open descriptor, those of threads with a table of their own, too.

        PermissionError when one is not to be read for long: a program can make itself so, and anybody is for a moment.
        """
        found = []
        with self._eyes():
            for pid, process in self._processes().items():
                identity = pid, process.started
                try:
                    found += self._open_files(pid, process)
                    self._blind.pop(identity, None)
                except PermissionError:
                    self._blind[identity] = self._blind.get(identity, 0) + 1
                    if self._blind[identity] > _MAX_BLIND:
                        raise
        return found

    def _open_files(self, pid: int, process: _Process) -> list[tuple[str, os.stat_result]]:
        found = []
        for task in self._tasks(pid) if process.tasks > 1 else [str(pid)] * process.tasks:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for name in os.listdir(f"{self._proc}/{task}/fd"):
                    path = f"{self._proc}/{task}/fd/{name}"
                    with contextlib.suppress(FileNotFoundError):
                        found.append((_target(path), os.stat(path)))
        return found

    def maps(self) -> Iterator[tuple[int, str]]:
        """Process id and line, for every mapping of all."""
        for pid in self.pids():
            with self._eyes():
                lines = self._text(pid, "maps").split("\n")
            yield from ((pid, line) for line in lines)

    def _eyes(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._reader is None else kernel.eyes_of(self._reader)

    def _tasks(self, pid: int) -> list[str]:
        with contextlib.suppress(OSError):
            return os.listdir(f"{self._proc}/{pid}/task")
        return []

    def _read(self, pid: int) -> _Process | None:
        fields = self._stat(pid)
        if not fields:
            return None
        tasks, pages = int(fields[17]), int(fields[21])
        if fields[0] == "Z":
            # The first thread may end before the others: its entry then shows none of their memory.
            others = [self._stat(int(task)) for task in self._tasks(pid)] if tasks > 1 else []
            tasks -= 1
            pages = max((int(other[21]) for other in others if other), default=0)
        return _Process(
            parent=int(fields[1]),
            cpu_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
            reaped_cpu_s=(int(fields[13]) + int(fields[14])) * _TICK_S,
            tasks=tasks,
            started=int(fields[19]),
            rss_mb=pages * _PAGE_MB,
            is_running=fields[0] == "R",
            is_polite=int(fields[16]) > _NICE,
        )

    def _stat(self, pid: int) -> list[str]:
        return self._text(pid, "stat").rpartition(")")[2].split()

    def _schedule(self, pid: int) -> tuple[float, float]:
        """Seconds of the first thread with a core, and ready but without one."""
        fields = self._text(pid, "schedstat").split()
        return (int(fields[0]) / 1e9, int(fields[1]) / 1e9) if len(fields) > 1 else (0.0, 0.0)

    def _proportional_mb(self, pid: int, process: _Process) -> float:
        for task in [str(pid), *self._tasks(pid)]:
            for line in self._text(int(task), "smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) / 1024
        return process.rss_mb

    def _text(self, pid: int, name: str) -> str:
        try:
            with open(f"{self._proc}/{pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Folders can be nested deeper than a path can say: a file or a folder, at any rate.
        return ""


def buffers_mb(open_files: Sequence[tuple[str, os.stat_result]]) -> float:
    """What the kernel may hold for the pipes and sockets among them at most."""
    targets = {target for target, _ in open_files}
    return sum(_BUFFER_MB.get(target.partition(":")[0], 0.0) for target in targets)


def wait_for_helper(pid: int) -> int:
    """Wait for a child that does a moment's work of ours; its wait status. Should somebody stop it, it is killed."""
    while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
        os.kill(pid, signal.SIGKILL)
    return status


def children(parent: int) -> set[int]:
    """The living children of a process of this machine."""
    tree = ProcessTree(parent)
    return {pid for pid, process in tree._processes().items() if process.parent == parent}
