"""What a tree of processes uses, read from /proc: CPU seconds, memory, tasks, time spent waiting for a core."""

import os
from dataclasses import dataclass

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all living descendants; `cpu_s` and `waited_s` also of those that were seen and are gone."""

    cpu_s: float
    rss_mb: float
    tasks: int
    waited_s: float
    """Ready to run, but without a core."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_s: float
    reaped_cpu_s: float
    tasks: int
    started: int
    rss_mb: float


class ProcessTree:
    """The descendants of process `root` in the process table at `proc`.

    Reads a process of another tree once in its life: a table of hundreds costs a tick well under a millisecond.
    """

    def __init__(self, root: int, *, proc: str = "/proc") -> None:
        self._root = root
        self._proc = proc
        self._ours: set[int] = {root}
        self._foreign: set[int] = {0}
        self._cpu: dict[tuple[int, int], float] = {}
        self._waited: dict[tuple[int, int], float] = {}

    def pids(self) -> list[int]:
        """The living descendants, the root left out."""
        listed = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        self._ours &= listed | {self._root}
        self._foreign &= listed | {0}
        undecided = {self._root: self._parent(self._root)} if self._root in listed else {}
        undecided |= {pid: self._parent(pid) for pid in listed - self._ours - self._foreign}
        # Known only through its parent: one whose parent began after the listing waits for the next call.
        while decided := [pid for pid, parent in undecided.items() if self._decide(pid, parent)]:
            for pid in decided:
                del undecided[pid]
        return [pid for pid in self._ours if pid != self._root]

    def _parent(self, pid: int) -> int:
        process = self._read(pid)
        return -1 if process is None else process.parent

    def _decide(self, pid: int, parent: int) -> bool:
        """Whether the side that `pid` is on is known now. What has the root below it is not ours."""
        if pid == self._root:
            self._foreign.add(parent)
        elif parent in self._ours:
            self._ours.add(pid)
        elif parent in self._foreign:
            self._foreign.add(pid)
        else:
            return False
        return True

    def usage(self) -> Usage:
        """What the descendants use now."""
        processes = {pid: process for pid in self.pids() if (process := self._read(pid)) is not None}
        root = self._read(self._root)
        for pid, process in processes.items():
            self._cpu[pid, process.started] = process.cpu_s
            self._waited[pid, process.started] = self._waited_s(pid)
        reaped = root.reaped_cpu_s if root else 0.0
        counted = reaped + sum(p.cpu_s + p.reaped_cpu_s for p in processes.values())
        return Usage(
            # A child that nobody waits for vanishes from its parent's sum, so both ways of counting are needed.
            cpu_s=max(counted, sum(self._cpu.values())),
            rss_mb=sum(process.rss_mb for process in processes.values()),
            tasks=sum(process.tasks for process in processes.values()),
            waited_s=sum(self._waited.values()),
        )

    def proportional_mb(self) -> float:
        """Memory with shared pages counted once: slower than `usage`, exact after forks."""
        return sum(self._proportional_mb(pid) for pid in self.pids())

    def _read(self, pid: int) -> _Process | None:
        stat = self._text(pid, "stat")
        if not stat:
            return None
        fields = stat.rpartition(")")[2].split()
        return _Process(
            parent=int(fields[1]),
            cpu_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
            reaped_cpu_s=(int(fields[13]) + int(fields[14])) * _TICK_S,
            tasks=0 if fields[0] == "Z" else int(fields[17]),
            started=int(fields[19]),
            rss_mb=int(fields[21]) * _PAGE_MB,
        )

    def _waited_s(self, pid: int) -> float:
        fields = self._text(pid, "schedstat").split()
        return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0

    def _proportional_mb(self, pid: int) -> float:
        for line in self._text(pid, "smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        process = self._read(pid)
        return process.rss_mb if process else 0.0

    def _text(self, pid: int, name: str) -> str:
        try:
            with open(f"{self._proc}/{pid}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""
