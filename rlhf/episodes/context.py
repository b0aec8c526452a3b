"""What an environment knows of its episode, inside the episode's process."""

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf.config.environment import EpisodeLimits
from rlhf.sandbox.client import Sandbox, default_sandbox
from rlhf.types import Message, Prompt


class Link(Protocol):
    """The way from an episode's process to whoever keeps its deadlines."""

    def enter(self, phase: int, name: str, limit_s: float) -> None:
        """A phase begins; unless it is left in time, the process is killed."""

    def leave(self, phase: int) -> None:
        """The phase has ended."""

    def checkpoint(self) -> frozenset[str]:
        """Keep the process as it is now. Returns again, in the kept one, with the names of phases that hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an episode begins with."""

    episode_id: str
    prompt: Prompt
    seed: int
    limits: EpisodeLimits
    scores_truncated: bool = True


class EpisodeContext:
    """interfaces.Context, with what the episode's own machinery needs besides."""

    def __init__(self, start: Start, *, folder: str, link: Link) -> None:
        self.episode_id = start.episode_id
        self.prompt = start.prompt
        self.rng = random.Random(start.seed)
        self.limits = start.limits
        self.folder = folder
        self.state: Any = None
        self.scalars: dict[str, float] = {}
        self._messages: list[Message] = []
        self._link = link
        self._phases = itertools.count()
        self._ends = time.monotonic() + start.limits.episode_s

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far."""
        return tuple(self._messages)

    def note(self, *messages: Message) -> None:
        """Messages that were shown to the model, or that it wrote."""
        self._messages += messages

    @property
    def sandbox(self) -> Sandbox:
        """Where programs of the model run; one for all episodes of the environment."""
        return default_sandbox()

    @property
    def time_left_s(self) -> float:
        """Seconds until the episode ends."""
        return max(0.0, self._ends - time.monotonic())

    def log(self, **scalars: float) -> None:
        """Numbers about the episode; the last of a name counts."""
        self.scalars.update({name: float(value) for name, value in scalars.items()})

    @contextmanager
    def phase(self, name: str, limit_s: float) -> Iterator[None]:
        """User code runs inside; the process is killed if that takes longer. Several at a time may be open."""
        number = next(self._phases)
        self._link.enter(number, name, limit_s)
        try:
            yield
        finally:
            self._link.leave(number)

    def checkpoint(self) -> frozenset[str]:
        """Keep the episode as it is now, should what follows hang.

        Empty at first. If a phase that is entered later hangs, this returns a second time in the state of now, with
        the names of the phases that hung; also empty where nothing can be kept (other threads run).
        """
        return self._link.checkpoint()
