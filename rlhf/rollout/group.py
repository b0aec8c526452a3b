"""One prompt to one scored group, and the producer that keeps the buffer's slots filled."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol

from rlhf.config.points import value_at
from rlhf.interfaces import PromptLedger, Reward, RolloutFunction
from rlhf.rollout.buffer import G, GroupBuffer
from rlhf.rollout.statistics import solved
from rlhf.types import Prompt, Sampling, TrajectoryGroup


def sample_seed(run_seed: int, prompt_id: str, sample_index: int, version: int) -> int:
    """The seed of one sample, in [0, 2**63): a function of what is drawn, never of when it completes."""
    key = f"{run_seed}\x00{prompt_id}\x00{sample_index}\x00{version}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def rejection(group: TrajectoryGroup, *, drop_zero_variance: bool, least_rewards: int = 2) -> str | None:
    """Why a group cannot or should not be trained, or None.

    `ungradable`: fewer than `least_rewards` samples have a reward; without a second one there is no baseline.
    `zero_variance`: all rewards are equal, so every advantage is 0 (DAPO, eq. 11); only if asked for.
    """
    rewards = [
        t.reward.value for t in group.trajectories if t.reward is not None and t.reward.value is not None
    ]
    if len(rewards) < least_rewards:
        return "ungradable"
    if drop_zero_variance and max(rewards) - min(rewards) < 1e-9:
        return "zero_variance"
    return None


class GroupWork(Protocol[G]):
    """How one admission becomes a finished group."""

    async def make(self, index: int, prompt: Prompt, version: int) -> G:
        """The group, rolled out and scored, admitted at weight version `version`."""

    def rejection(self, group: G) -> str | None:
        """Why it cannot or should not be trained, or None."""

    def solved(self, group: G) -> list[bool]:
        """Of each gradable attempt: was it right?"""


@dataclass(kw_only=True)
class Producer(Generic[G]):
    """Has groups made while slots are free; every failure reaches the consumer through the buffer."""

    buffer: GroupBuffer[G]
    prompts: PromptLedger
    work: GroupWork[G]
    version: Callable[[], int]
    """The weight version that is live now."""

    async def run(self) -> None:
        """Admit groups until cancelled."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                # One wave: groups admitted together are submitted together, in order.
                for _ in range(await self.buffer.free_slots()):
                    index, prompt = self.prompts.next()
                    self.buffer.admit(index)
                    one = self._one(index, prompt, version=self.version())
                    task = asyncio.create_task(one, name=f"group {index}")
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        except Exception as error:  # noqa: BLE001 -- the consumer raises it
            self.buffer.fail(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, index: int, prompt: Prompt, *, version: int) -> None:
        try:
            group = await self.work.make(index, prompt, version)
            reason = self.work.rejection(group)
            if reason is None:
                self.buffer.finish(group)
            else:
                self.prompts.discard(index, reason, self.work.solved(group))
                self.buffer.discard(index, reason)
        except Exception as error:  # noqa: BLE001 -- the consumer raises it
            self.buffer.fail(error)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Groups of trajectories: the prompt rolled out `samples_per_prompt` times, and scored."""

    rollout: RolloutFunction
    reward: Reward
    sampling: Sampling
    samples_per_prompt: int
    seed: int
    drop_zero_variance: bool
    temperature_points: Sequence[tuple[int, float]] = ()
    """(weight version, temperature) points, in place of the temperature in `sampling`."""
    least_rewards: int = 2
    """Samples of a group that must have a reward, as the algorithm has it."""
    least_by_scenario: Mapping[str, int] = field(default_factory=dict)
    """The same where a scenario has a number of its own."""

    async def make(self, index: int, prompt: Prompt, version: int) -> TrajectoryGroup:
        """The scored group of a prompt."""
        sampling = self.sampling
        if self.temperature_points:
            sampling = replace(sampling, temperature=value_at(self.temperature_points, version))
        # The admission index tells two visits to one prompt apart that fall into one weight version.
        key = f"{prompt.id}\x00{index}"
        seeds = [sample_seed(self.seed, key, i, version) for i in range(self.samples_per_prompt)]
        made = await self.rollout(prompt, seeds=seeds, sampling=sampling)
        trajectories = [replace(t, temperature=sampling.temperature) for t in made]
        group = TrajectoryGroup(index=index, prompt=prompt, trajectories=tuple(trajectories), version=version)
        rewards = await self.reward.score(group)
        scored = [replace(t, reward=r) for t, r in zip(trajectories, rewards, strict=True)]
        return replace(group, trajectories=tuple(scored))

    def rejection(self, group: TrajectoryGroup) -> str | None:
        """See `rejection`."""
        least = self.least_by_scenario.get(group.prompt.scenario, self.least_rewards)
        return rejection(group, drop_zero_variance=self.drop_zero_variance, least_rewards=least)

    def solved(self, group: TrajectoryGroup) -> list[bool]:
        """Of each gradable trajectory: was it right?"""
        return solved(group)
