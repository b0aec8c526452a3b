"""What a reward worker holds of the machine, which reward took it, and when that is too much."""

import os
import resource
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_CORES = os.cpu_count() or 1
MORE_CHILDREN = 64 + 4 * _CORES
"""Child processes beyond those after loading; a pool of helpers, one or a few per core, is no leak."""
MORE_DESCRIPTORS = min(256 + 8 * _CORES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Open descriptors beyond those after loading; found before the worker can open no more."""
_NAMES = {"memory_mb": "MB of memory", "children": "child processes", "descriptors": "open descriptors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resident memory of one process, its living or unreaped children, its open descriptors."""

    memory_mb: float
    children: int
    descriptors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Something a worker held too much of, and the reward (its number) during whose calls most of it came."""

    reward: int
    text: str


def memory_mb(process: psutil.Process) -> float:
    """Resident memory; 0 when the process is gone."""
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def usage(process: psutil.Process) -> Usage | None:
    """What it holds now; None when it is gone. Children are counted on Linux only."""
    try:
        descriptors = process.num_fds()
    except psutil.Error:
        return None
    return Usage(memory_mb=memory_mb(process), children=_children(process.pid), descriptors=descriptors)


def _children(pid: int) -> int:
    # psutil would read every process of the machine for this.
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        return sum(len(file.read_text().split()) for file in threads)
    except OSError:  # the process or one of its threads has just ended
        return 0


class Growth:
    """How a worker grew since it had loaded its rewards, reward by reward."""

    def __init__(self, loaded: Usage, *, limit_mb: int) -> None:
        self._loaded = asdict(loaded)
        self._last = self._loaded
        self._limit_mb = limit_mb
        self._room = {
            "memory_mb": limit_mb - loaded.memory_mb,
            "children": MORE_CHILDREN,
            "descriptors": MORE_DESCRIPTORS,
        }
        self._grown: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def note(self, reward: int, now: Usage) -> Leak | None:
        """Count what a call of `reward` left behind; the leak, once the worker holds too much."""
        held = asdict(now)
        for kind, amount in held.items():
            self._grown[kind][reward] += amount - self._last[kind]
        self._last = held
        for kind, room in self._room.items():
            if held[kind] - self._loaded[kind] > room:
                return self._leak(kind, held[kind])
        return None

    def memory_leak(self) -> Leak | None:
        """The leak that half filled the memory before the call that exceeded it; None: the call alone did."""
        held = self._last["memory_mb"]
        if held - self._loaded["memory_mb"] < self._room["memory_mb"] / 2:
            return None
        return self._leak("memory_mb", held)

    def _leak(self, kind: str, held: float) -> Leak:
        reward, grown = self._grown[kind].most_common(1)[0]
        limit = f" (task.reward_memory_mb is {self._limit_mb})" if kind == "memory_mb" else ""
        text = (
            f"leaves {_NAMES[kind]} behind: its calls added {grown:.0f} to a worker that had "
            f"{self._loaded[kind]:.0f} after loading and now has {held:.0f}{limit}"
        )
        return Leak(reward=reward, text=text)
