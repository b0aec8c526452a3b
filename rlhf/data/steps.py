"""Where the steps of a trajectory end, in tokens: rewards name them by characters of the completion."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.data.turns import turn_steps
from rlhf.errors import RewardError
from rlhf.types import Trajectory

Decode = Callable[[Sequence[int]], str]
"""Token ids -> the text that rewards were shown."""


def step_rewards(trajectories: Sequence[Trajectory], decode: Decode) -> Tensor:
    """[N]: the reward of the step that ends with the token, NaN where none ends; several on one token add up.

    A step ends with the first token of the last assistant turn up to which the text has `end` characters. Of an
    episode every turn is a step, too, whether it earned something or not.
    Raises RewardError when no reward gave steps, and for a step that ends outside the completion.
    """
    found: list[float] = []
    for trajectory in trajectories:
        rows = turn_steps(trajectory) if trajectory.is_episode else _nothing(trajectory)
        for end, value in trajectory.reward.steps if trajectory.reward is not None else ():
            segment, place = _ends_at(trajectory, end, decode)
            before = rows[segment][place]
            rows[segment][place] = value if math.isnan(before) else before + value
        found.extend(value for row in rows for value in row)
    rewards = torch.tensor(found)
    if len(trajectories) > 0 and bool(rewards.isnan().all()):
        raise RewardError(
            "algorithm.advantages is process, but no reward of this step's samples gave steps: return "
            "RewardResult(value=..., steps=((end, value), ...)) or {'score': ..., 'steps': [[end, value], ...]}, "
            "with `end` in characters of the completion; or have an environment, whose turns are steps."
        )
    return rewards


def _nothing(trajectory: Trajectory) -> list[list[float]]:
    return [[math.nan] * len(segment.token_ids) for segment in trajectory.segments]


def _ends_at(trajectory: Trajectory, end: int, decode: Decode) -> tuple[int, int]:
    turn = next(t for t in reversed(trajectory.turns) if t.message.role == "assistant")
    size = len(turn.message.content)
    if not 0 < end <= size:
        raise RewardError(
            f"sample {trajectory.sample_index}: a reward gave a step that ends at character {end} of a completion "
            f"of {size}: expected 1 to {size}."
        )
    ids = trajectory.segments[turn.segment].token_ids[turn.start : turn.stop]
    place = bisect_left(range(1, len(ids)), end, key=lambda count: len(decode(ids[:count])))
    return turn.segment, turn.start + place
