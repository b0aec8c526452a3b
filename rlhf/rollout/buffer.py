"""Admission slots: the one mechanism behind synchronous, one-step-off and asynchronous training.

There are (max_staleness + 1) * groups_per_step slots. A group holds one from its admission until the weights
trained on it are live in every engine, and groups are taken oldest first. When a group is admitted at version v,
fewer than (max_staleness + 1) * groups_per_step groups are older than it, so it is taken by the update that
starts from version v + max_staleness at the latest: no token is trained more than max_staleness versions late.
The proof is spelled out in docs/staleness.md.
"""

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rlhf.errors import RewardError


class Indexed(Protocol):
    """A group: trajectories of one prompt, or lists of one query."""

    @property
    def index(self) -> int:
        """Its place in admission order."""


G = TypeVar("G", bound=Indexed)


@dataclass(slots=True)
class GroupBuffer(Generic[G]):
    """Slots and the groups in them. One producer admits and finishes, one consumer takes and releases."""

    groups_per_step: int
    max_staleness: int
    max_discarded: float = 0.9
    discarded: Counter[str] = field(default_factory=Counter)
    busy_s: float = 0.0
    """Seconds in which at least one admitted group was not finished: generation or scoring was going on."""
    _live: dict[int, G | None] = field(default_factory=dict)
    _training: int = 0
    _error: BaseException | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _busy_since: float | None = None
    _recent: deque[bool] = field(default_factory=deque)
    """Of the last groups: was it discarded?"""

    @property
    def num_slots(self) -> int:
        """Most groups between admission and release."""
        return (self.max_staleness + 1) * self.groups_per_step

    @property
    def in_flight(self) -> int:
        """Admitted groups that are not finished."""
        return sum(group is None for group in self._live.values())

    async def free_slots(self) -> int:
        """Wait until groups may be admitted; return how many.

        Synchronous runs admit in waves: replacements for discarded groups wait for the whole wave,
        so that what an engine decodes together does not depend on timing and a run can be repeated bit for bit.
        """
        while True:
            free = self.num_slots - len(self._live) - self._training
            if free > 0 and (self.max_staleness > 0 or self.in_flight == 0):
                return free
            await self._wait()

    def admit(self, index: int) -> None:
        """Give a slot to group `index`."""
        self._live[index] = None
        self._note_busy()

    def finish(self, group: G) -> None:
        """Hand in a rolled-out and scored group."""
        self._live[group.index] = group
        self._remember(discarded=False)
        self._note_busy()
        self._changed.set()

    def discard(self, index: int, reason: str) -> None:
        """Reopen the slot of a group that will not be trained; raises RewardError when most groups end here."""
        del self._live[index]
        self.discarded[reason] += 1
        self._note_busy()
        self._changed.set()
        self._remember(discarded=True)
        if sum(self._recent) > self.max_discarded * self._window:
            raise RewardError(
                f"{sum(self._recent)} of the last {len(self._recent)} groups were discarded (since the start: "
                f"{dict(self.discarded)}), more than schedule.max_discarded = {self.max_discarded}. The task is too "
                "easy, too hard, or its rewards are broken: look at the samples in the report, or run `rlhf check`."
            )

    @property
    def _window(self) -> int:
        return 10 * self.groups_per_step

    def _remember(self, *, discarded: bool) -> None:
        self._recent.append(discarded)
        if len(self._recent) > self._window:
            self._recent.popleft()

    def fail(self, error: BaseException) -> None:
        """Make the consumer raise `error`: the producer cannot go on."""
        self._error = error
        self._changed.set()

    async def take(self) -> list[G]:
        """Wait for the oldest `groups_per_step` groups to be finished and return them, oldest first."""
        while True:
            if self._error is not None:
                raise self._error
            oldest = sorted(self._live)[: self.groups_per_step]
            groups = [group for index in oldest if (group := self._live[index]) is not None]
            if len(groups) == self.groups_per_step:
                for index in oldest:
                    del self._live[index]
                self._training += len(groups)
                return groups
            await self._wait()

    def release(self) -> None:
        """The weights trained on the groups taken last are live everywhere: their slots are free."""
        self._training = 0
        self._changed.set()

    def busy_until_now(self) -> float:
        """`busy_s` including the stretch that is still going on."""
        running = 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since
        return self.busy_s + running

    def _note_busy(self) -> None:
        busy = self.in_flight > 0
        now = time.perf_counter()
        if busy and self._busy_since is None:
            self._busy_since = now
        elif not busy and self._busy_since is not None:
            self.busy_s += now - self._busy_since
            self._busy_since = None

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
