"""Plays a row's scripts through the real runner, host and worker processes, and keeps what can be compared."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rlhf.check.grading import TEMPLATES
from rlhf.check.probes import GOLD_COLUMN
from rlhf.check.scripts import EMPTY, Script, ScriptedSampler, ScriptWriter
from rlhf.config.environment import EnvironmentConfig
from rlhf.episodes.chat import Schema
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import RlhfError
from rlhf.types import Message, Prompt, Sampling, Trajectory

PHASES = ("reset", "step", "score")
MAX_LATE = 3
"""Episodes that may hang before no more are played: each costs a limit of the recipe."""
_SEED = 0
_MAX_TURNS = 8
_WIDTH = 4
"""Rows that are played at a time."""


@dataclass(slots=True)
class PhaseTimes:
    """What an episode's process was at, when: an episodes.episode.Watch."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})
    last: str = ""
    """The phase of PHASES that was entered last."""
    hung: str = ""
    """The phase in which it was killed, and went on from a checkpoint."""
    tools: tuple[Schema, ...] = ()
    _open: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Note what the process says."""
        match message:
            case {"do": "enter", "phase": int(phase), "name": str(name)} if name in PHASES:
                self._open[phase] = name, time.perf_counter()
                self.last = name
            case {"do": "leave", "phase": int(phase)} if phase in self._open:
                name, began = self._open.pop(phase)
                self.seconds[name].append(time.perf_counter() - began)
            case {"do": "restored"}:
                self.hung = self.hung or self.last
            case {"do": "sample"}:
                self.tools = tuple(message.get("tools") or self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One row played by one script, once."""

    prompt: Prompt
    script: Script
    times: PhaseTimes
    trajectory: Trajectory | None = None
    """None: it could not be played at all."""
    problem: str = ""
    """Why; or the law that its record breaks."""

    @property
    def key(self) -> tuple[str, str]:
        """Row and script."""
        return self.prompt.id, self.script.name

    @property
    def failure(self) -> str:
        """What the environment did wrong, in one line; '' for nothing."""
        found = self.trajectory
        if found is None or found.status != "error":
            return ""
        lines = [line for line in found.error.splitlines() if line.strip()]
        return lines[0] if lines else found.stop

    @property
    def is_late(self) -> bool:
        """Whether something hung until its limit."""
        found = self.trajectory
        return found is not None and (
            found.stop in ("tool_timeout", "episode_timeout") or "took too long" in self.failure
        )

    @property
    def ends_well(self) -> bool:
        """Whether it came to its own end."""
        return self.trajectory is not None and self.trajectory.status == "ok"

    @property
    def value(self) -> float | None:
        """What it earned; None: not gradable."""
        found = self.trajectory
        return None if found is None or found.reward is None else found.reward.value

    @property
    def told(self) -> tuple[Message, ...]:
        """What the environment said."""
        turns = () if self.trajectory is None else self.trajectory.turns
        return tuple(turn.message for turn in turns if turn.finish is None)


@dataclass(slots=True, kw_only=True)
class Stage:
    """An environment's process, and what its episodes are played with."""

    host: EnvironmentHost
    dialect: Dialect
    config: EnvironmentConfig
    writer: ScriptWriter
    num_late: Counter[str] = field(default_factory=Counter)

    async def fit_reference(self, rows: Sequence[Prompt]) -> None:
        """Have references written as the environment reads them: in the first usual way that earns something."""
        row = next((row for row in rows if self.writer.reference(row)), None)
        if row is None or self.writer.is_told or GOLD_COLUMN in row.columns:
            return
        nothing = (await self.play(row, self.writer.empty())).value
        if nothing is None:
            return
        for template in TEMPLATES:
            self.writer.template = template
            script = self.writer.reference(row)
            assert script is not None
            played = await self.play(row, script)
            if played.is_late or (played.value is not None and played.value > nothing):
                return
        self.writer.template = TEMPLATES[0]

    async def play_rows(self, rows: Sequence[Prompt]) -> list[Play]:
        """Every script of every row, a few rows at a time; fewer where episodes hang."""
        places = asyncio.Semaphore(_WIDTH)

        async def play(row: Prompt) -> list[Play]:
            async with places:
                return await self._play_row(row)

        return [played for plays in await asyncio.gather(*map(play, rows)) for played in plays]

    async def replay(self, plays: Sequence[Play]) -> list[Play]:
        """The same once more, one after the other within a row and the rows side by side, in this order."""
        rows: dict[str, list[Play]] = {}
        for known in plays:
            rows.setdefault(known.prompt.id, []).append(known)
        places = asyncio.Semaphore(_WIDTH)

        async def play(row: list[Play]) -> list[Play]:
            async with places:
                return [await self.play(known.prompt, known.script) for known in row]

        return [played for found in await asyncio.gather(*map(play, rows.values())) for played in found]

    async def play(self, prompt: Prompt, script: Script) -> Play:
        """One episode."""
        times = PhaseTimes()
        limits = self.config.limits
        turns = min(limits.max_turns, max(_MAX_TURNS, script.num_turns))
        config = self.config.model_copy(
            update={"limits": limits.model_copy(update={"max_turns": turns}), "retries": 0}
        )
        chat = self.dialect.chat
        sampler = ScriptedSampler(script, stops=chat.stop_token_ids)
        runner = EpisodeRunner(sampler, self.host, dialect=self.dialect, config=config, watch=times)
        sampling = Sampling(max_tokens=limits.max_tokens, stop_token_ids=chat.stop_token_ids)
        problem, found = "", None
        try:
            (found,) = await runner(prompt, seeds=[_SEED], sampling=sampling)
            check_record(found)
        except (RlhfError, ValueError) as error:
            problem = str(error)
        finally:
            await runner.close()
        return Play(prompt=prompt, script=script, times=times, trajectory=found, problem=problem)

    async def _play_row(self, prompt: Prompt) -> list[Play]:
        plays: list[Play] = []
        scripts = self.writer.first(prompt)
        while scripts and self.num_late.total() < MAX_LATE:
            found = await self.play(prompt, scripts.pop(0))
            plays.append(found)
            self.num_late[prompt.id] += found.is_late
            if found.script.name == EMPTY:
                if found.problem or (found.failure and found.times.last in ("", "reset")):
                    # The others would fare no better.
                    break
                scripts += self.writer.with_tools(prompt, found.times.tools)
        return plays


@asynccontextmanager
async def stage(
    load: LoadEnvironment, *, dialect: Dialect, config: EnvironmentConfig, writer: ScriptWriter, temp_dir: str
) -> AsyncIterator[Stage]:
    """A fresh process of the environment. LoadError when it cannot be loaded."""
    host = EnvironmentHost(load, temp_dir=temp_dir)
    await host.start()
    try:
        yield Stage(host=host, dialect=dialect, config=config, writer=writer)
    finally:
        await host.close()
