"""Fakes for logic and speed: a virtual clock, trajectories from thin air. Never the only test of a boundary."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from rlhf.types import NOT_SAMPLED, Message, Prompt, RewardResult, Segment, Trajectory, TrajectoryGroup, Turn


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer: hours of sleeps run in milliseconds, in a fixed order."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run under a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(main)


def make_prompt(index: int = 0, *, reference: str = "7", **columns: Any) -> Prompt:
    return Prompt(
        id=f"p{index}",
        messages=(Message(role="user", content=f"question {index}"),),
        reference=reference,
        columns=columns,
    )


def make_trajectory(
    *,
    prompt_ids: Sequence[int] = (1, 2),
    sampled_ids: Sequence[int] = (3, 4, 5),
    version: int = 0,
    reward: float | None = 1.0,
    text: str = "<think>x</think><answer>7</answer>",
    sample_index: int = 0,
) -> Trajectory:
    n, t = len(prompt_ids), len(sampled_ids)
    segment = Segment(
        token_ids=(*prompt_ids, *sampled_ids),
        loss_mask=(False,) * n + (True,) * t,
        rollout_logprobs=(0.0,) * n + (-0.5,) * t,
        versions=(NOT_SAMPLED,) * n + (version,) * t,
    )
    return Trajectory(
        segments=(segment,),
        turns=(Turn(message=Message(role="assistant", content=text), segment=0, start=n, stop=n + t),),
        stop="stop",
        sample_index=sample_index,
        seed=sample_index,
        reward=RewardResult(value=reward, parts={"task": reward} if reward is not None else {}),
    )


def make_group(
    index: int = 0, *, rewards: Sequence[float | None] = (0.0, 1.0), version: int = 0
) -> TrajectoryGroup:
    return TrajectoryGroup(
        index=index,
        prompt=make_prompt(index),
        trajectories=tuple(
            make_trajectory(reward=reward, version=version, sample_index=i)
            for i, reward in enumerate(rewards)
        ),
    )
