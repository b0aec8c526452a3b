"""Turns in rounds: the engine is asked when every live episode waits for it."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from rlhf.interfaces import GenerateRequest, Sampler
from rlhf.types import Completion

PATIENCE_S = 5.0
"""While nothing is being decoded. Then a round goes without those who are late."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asking:
    place: int
    released: asyncio.Future[None]


class Lockstep:
    """An engine that is asked in rounds, by all episodes of several queues, of each by `max_live` at a time.

    Log-probabilities depend, in their last bits, on what is decoded together. In rounds, that depends on the episodes
    alone and not on how fast a tool is, so that a run can be repeated bit for bit (docs/decisions/0002). That holds
    for episodes that ask one turn after another; one that asks twice at once is not held back, and reported once.
    """

    def __init__(self, engine: Sampler, *, max_live: int | None = None) -> None:
        """`max_live` is that of the first queue; None: all that enter by it."""
        self._engine = engine
        self._max_live = [max_live]
        self._num_entered = 0
        self._num_episodes: Counter[int] = Counter()
        self._decoding: list[int] = []
        self._asking: list[_Asking] = []
        self._timer: asyncio.Handle | None = None
        self._told: set[str] = set()

    def new_queue(self, max_live: int) -> int:
        """Another queue: of what enters by it, so many are played at a time."""
        self._max_live.append(max_live)
        return len(self._max_live) - 1

    def enter(self, queue: int = 0) -> Sampler:
        """The engine as one episode more sees it, which is played at once or when it has its place.

        A round's requests are in the order in which their episodes came here, by whatever queue.
        """
        self._num_episodes[queue] += 1
        self._num_entered += 1
        return _Seat(self, self._num_entered)

    def leave(self, _: object = None, *, queue: int = 0) -> None:
        """One of them is over."""
        self._num_episodes[queue] -= 1
        self._look()

    async def generate(self, request: GenerateRequest, place: int) -> list[Completion]:
        """In the next round."""
        if place in self._decoding or any(asking.place == place for asking in self._asking):
            self._warn_once(
                "an episode asks for two turns at once: which turns are decoded together depends on how fast it is, "
                "and the run cannot be repeated bit for bit."
            )
        asking = _Asking(place, asyncio.get_running_loop().create_future())
        self._asking.append(asking)
        try:
            self._look()
            await asking.released
        finally:
            if asking in self._asking:
                self._asking.remove(asking)
        self._decoding.append(place)
        try:
            return await self._engine.generate(request)
        finally:
            self._decoding.remove(place)
            self._look()

    def _look(self) -> None:
        """Begin a round if all are there; wait for the others if nothing else is going on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._decoding or not self._asking:
            return
        if len({asking.place for asking in self._asking}) >= self._num_live:
            # Soon: who came last would otherwise go first.
            self._timer = asyncio.get_running_loop().call_soon(self._release)
        else:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._go_on)

    def _go_on(self) -> None:
        self._warn_once(
            "a round of turns did not wait for %d of %d episodes, whose tools or steps take more than %g s: the "
            "run cannot be repeated bit for bit. task.environment.lockstep: false waits for nobody.",
            self._num_live - len({asking.place for asking in self._asking}),
            self._num_episodes.total(),
            PATIENCE_S,
        )
        self._release()

    @property
    def _num_live(self) -> int:
        """Episodes that have their place."""
        waiting = ((self._max_live[queue], number) for queue, number in self._num_episodes.items())
        return sum(number if most is None else min(most, number) for most, number in waiting)

    def _warn_once(self, message: str, *values: float) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message, *values)

    def _release(self) -> None:
        for asking in sorted(self._asking, key=lambda asking: asking.place):
            if not asking.released.done():
                asking.released.set_result(None)
        self._asking.clear()


@dataclass(frozen=True, slots=True)
class _Seat:
    """An interfaces.Sampler."""

    rounds: Lockstep
    place: int

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One Completion per seed, in seed order."""
        return await self.rounds.generate(request, self.place)
