"""Reward pools over the misbehaving rewards of reward_cases.py, and groups for them to grade."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rlhf.config.rewards import RewardConfig
from rlhf.rollout.scoring import RewardPool
from rlhf.types import Message, Prompt, RewardResult, Segment, Trajectory, TrajectoryGroup, Turn

CASES = str(Path(__file__).with_name("reward_cases.py"))


def use(function: str, **keys: Any) -> RewardConfig:
    return RewardConfig(use=f"{CASES}:{function}", **{"limit_s": 60.0, **keys})


def group_of(
    *completions: str, columns: Mapping[str, Any] | None = None, version: int = 0, reference: str = "a"
) -> TrajectoryGroup:
    segment = Segment(
        token_ids=(1, 2, 3),
        loss_mask=(False, True, True),
        rollout_logprobs=(0.0, -1.0, -1.0),
        versions=(-1, version, version),
    )
    trajectories = tuple(
        Trajectory(
            segments=(segment,),
            turns=(Turn(message=Message(role="assistant", content=text), segment=0, start=1, stop=3),),
            stop="stop",
            sample_index=index,
            seed=index,
        )
        for index, text in enumerate(completions)
    )
    prompt = Prompt(
        id="p", messages=(Message(role="user", content="q"),), reference=reference, columns=columns or {}
    )
    return TrajectoryGroup(index=0, prompt=prompt, trajectories=trajectories)


@asynccontextmanager
async def pool_of(*rewards: RewardConfig, **keys: Any) -> AsyncIterator[RewardPool]:
    pool = RewardPool(rewards, **{"max_ungradable": 1.0, **keys})
    try:
        yield pool
    finally:
        await pool.close()


def score(*completions: str, rewards: tuple[RewardConfig, ...], **keys: Any) -> list[RewardResult]:
    """The totals of one group; `keys` are those of `group_of`."""

    async def run() -> list[RewardResult]:
        async with pool_of(*rewards) as pool:
            return await pool.score(group_of(*completions, **keys))

    return asyncio.run(run())


def values(results: list[RewardResult]) -> list[float | None]:
    return [result.value for result in results]


def outcomes(results: list[RewardResult]) -> list[str]:
    return [result.outcome for result in results]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
