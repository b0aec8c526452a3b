"""Has every row's gold and probes graded by the real reward workers, a few rows at a time."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rlhf.check.probes import GOLD, NUM_WRONG, Probe, ProbeSet
from rlhf.rollout.reward_totals import Part, compose
from rlhf.rollout.scoring import RewardPool
from rlhf.types import Message, Outcome, Prompt, RewardResult, Segment, Trajectory, TrajectoryGroup, Turn

MAX_KILLS = 40
"""Workers that may have to be killed before grading stops: each costs `limit_s` and a new worker."""
TOKEN_CHARACTERS = 4
"""A completion has about so many characters a token; nothing is tokenised here."""
BROKEN: tuple[Outcome, ...] = ("error", "timeout")
"""Outcomes that are the reward's fault."""
_POLL_S = 0.5
TEMPLATES = (
    "{reference}",
    r"\boxed{{reference}}",
    "<answer>{reference}</answer>",
    "</think><answer>{reference}</answer>",
    "#### {reference}",
    "The answer is {reference}.",
)
"""What a right completion often looks like, tried where `task.gold_template` fits no gold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedRow:
    """One row: its probes and what each reward said of them; `alone` is what it said of the first one by itself.

    When the first one breaks a reward, it is the only one.
    """

    index: int
    prompt: Prompt
    probes: tuple[Probe, ...]
    parts: tuple[Part, ...]
    alone: tuple[Part, ...]
    totals: tuple[RewardResult, ...]
    """The sum of the rewards, per probe."""

    @property
    def has_gold(self) -> bool:
        """Whether the first probe is the row's gold."""
        return self.probes[0].name == GOLD


@dataclass(slots=True, kw_only=True)
class GradingRun:
    """Rows in the hands of the reward workers, and why it ended early, if it did."""

    pool: RewardPool
    probes: ProbeSet
    on_row: Callable[[GradedRow], None]
    width: int = 8
    """Rows in flight."""
    max_kills: int = MAX_KILLS
    num_kills: int = 0
    leaks: Counter[str] = field(default_factory=Counter)
    """Reward -> workers replaced because it left something behind."""

    async def grade(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Give `on_row` every row; returns the rows that were in flight when too many workers had to be killed."""
        rows = iter(enumerate(prompts))
        in_flight: dict[int, Prompt] = {}
        graders = [asyncio.create_task(self._take(rows, in_flight)) for _ in range(self.width)]
        watch = asyncio.create_task(self._count_kills(graders))
        try:
            await asyncio.gather(*graders)
        except asyncio.CancelledError:
            if not watch.done():
                raise
        finally:
            for task in (*graders, watch):
                task.cancel()
            await asyncio.gather(*graders, watch, return_exceptions=True)
            self.count()
        return [in_flight[index] for index in sorted(in_flight)]

    async def _take(self, rows: Iterator[tuple[int, Prompt]], in_flight: dict[int, Prompt]) -> None:
        for index, prompt in rows:
            in_flight[index] = prompt
            self.on_row(await grade_row(index, prompt, self.pool, probes=self.probes.of(prompt)))
            del in_flight[index]

    async def _count_kills(self, graders: Sequence[asyncio.Task[None]]) -> None:
        while self.num_kills < self.max_kills:
            await asyncio.sleep(_POLL_S)
            self.count()
        for grader in graders:
            grader.cancel()

    def count(self) -> None:
        """Take up what the pool counted since the last time: kills and leaks."""
        metrics = self.pool.metrics()
        for name in self.pool.names:
            self.num_kills += int(metrics.get(f"reward/{name}/kills", 0))
            self.leaks[name] += int(metrics.get(f"reward/{name}/leaks", 0))


async def grade_row(index: int, prompt: Prompt, pool: RewardPool, *, probes: Sequence[Probe]) -> GradedRow:
    """The first probe alone, and, when that can be graded, all of them together as siblings."""
    probes = tuple(probes)
    alone = tuple(await pool.grade(group_of(index, prompt, probes[:1], pool)))
    if any(not part.reward.optional and part.results[0].outcome in BROKEN for part in alone):
        parts, probes = alone, probes[:1]
    else:
        parts = tuple(await pool.grade(group_of(index, prompt, probes, pool)))
    totals = tuple(compose(parts, len(probes)))
    return GradedRow(index=index, prompt=prompt, probes=probes, parts=parts, alone=alone, totals=totals)


def group_of(index: int, prompt: Prompt, probes: Sequence[Probe], pool: RewardPool) -> TrajectoryGroup:
    """The probes as attempts at the prompt; their tokens are made up where a reward can see them."""
    needs_tokens = any(shape.needs_tokens for shape in pool.shapes)
    attempts = [_trajectory(i, probe.completion, has_tokens=needs_tokens) for i, probe in enumerate(probes)]
    return TrajectoryGroup(index=index, prompt=prompt, trajectories=tuple(attempts))


def _trajectory(sample_index: int, completion: str, *, has_tokens: bool) -> Trajectory:
    size = 1 + len(completion) // TOKEN_CHARACTERS if has_tokens else 0
    zeros = (0,) * size
    segment = Segment(
        token_ids=zeros, loss_mask=(True,) * size, rollout_logprobs=(0.0,) * size, versions=zeros
    )
    message = Message(role="assistant", content=completion)
    return Trajectory(
        segments=(segment,) if has_tokens else (),
        turns=(Turn(message=message, segment=0, start=0, stop=size),),
        stop="stop",
        sample_index=sample_index,
        seed=0,
    )


async def fitting_template(prompts: Sequence[Prompt], pool: RewardPool) -> str | None:
    """One of TEMPLATES with which every gold of these prompts scores more than a wrong answer."""
    for template in TEMPLATES:
        probes = ProbeSet(template=template, constants=(), others=())
        rows = await asyncio.gather(
            *(grade_row(i, p, pool, probes=probes.of(p)[: 1 + NUM_WRONG]) for i, p in enumerate(prompts))
        )
        if rows and all(_is_right(row) for row in rows):
            return template
    return None


def _is_right(row: GradedRow) -> bool:
    values = [-math.inf if total.value is None else total.value for total in row.totals]
    return row.has_gold and values[0] > max(values[1:], default=math.inf)
