"""What waits for a reward worker, and whose turn it is."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rlhf.types import RewardResult, TrajectoryGroup


@dataclass(slots=True, kw_only=True)
class Answers:
    """The results of one reward for one group, filled in as they come."""

    results: list[RewardResult | None]
    done: asyncio.Future[None]

    def give(self, index: int, result: RewardResult) -> None:
        """Take the result of sample `index`."""
        self.results[index] = result
        if all(r is not None for r in self.results) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Have whoever waits raise `error`."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTask:
    """Some trajectories of a group to be graded by one reward in one go."""

    reward: int
    group: TrajectoryGroup
    step: int
    indices: tuple[int, ...]
    answers: Answers
    deaths: int = 0
    """Workers that died of it when it was alone."""
    is_suspect: bool = False
    """It was in a job that failed: it shares no job any more."""
    queued: float = field(default_factory=time.perf_counter)

    def part(self, indices: list[int], *, deaths: int = 0) -> "RewardTask":
        """The task of some of its samples, after a failure."""
        now = time.perf_counter()
        return replace(self, indices=tuple(indices), deaths=deaths, is_suspect=True, queued=now)

    def trajectories(self) -> TrajectoryGroup:
        """The group with its own trajectories only."""
        chosen = tuple(self.group.trajectories[i] for i in self.indices)
        return replace(self.group, trajectories=chosen)


class RewardQueue:
    """Tasks in order, except that the reward with the fewest workers at it goes first: none takes them all.

    `room(reward)` is the number of samples that may be handed out together, from several tasks.
    """

    def __init__(self, room: Callable[[int], int]) -> None:
        self._room = room
        self._waiting: list[RewardTask] = []
        self._workers: Counter[int] = Counter()
        self._changed = asyncio.Event()

    def put(self, task: RewardTask) -> None:
        """Append a task."""
        self._waiting.append(task)
        self._changed.set()

    async def take(self) -> list[RewardTask]:
        """The next tasks for one worker, all of one reward. Call `free` when it is done with them."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        first = min(self._waiting, key=lambda task: self._workers[task.reward])
        taken, size = [first], len(first.indices)
        for task in self._waiting:
            is_mate = task is not first and task.reward == first.reward and not task.is_suspect
            if not first.is_suspect and is_mate and size + len(task.indices) <= self._room(first.reward):
                taken.append(task)
                size += len(task.indices)
        self._waiting = [task for task in self._waiting if not any(task is t for t in taken)]
        self._workers[first.reward] += 1
        return taken

    def free(self, reward: int) -> None:
        """A worker is done with what it took of this reward."""
        self._workers[reward] -= 1

    def clear(self) -> list[RewardTask]:
        """Everything that still waits; it does no longer."""
        waiting, self._waiting = self._waiting, []
        return waiting
