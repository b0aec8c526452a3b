"""Rewards of single turns, at the tokens that end them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.types import Trajectory, Turn


def turn_token_rewards(trajectories: Sequence[Trajectory]) -> Tensor | None:
    """[N] for `Batch.token_rewards`: each turn's reward on its last token. None where no turn has one.

    What they add up to is taken from the last turn's, where the total stands: so that stays what was graded.
    """
    if not any(turn.reward for t in trajectories for turn in t.turns):
        return None
    found: list[float] = []
    for trajectory in trajectories:
        rows = [[0.0] * len(segment.token_ids) for segment in trajectory.segments]
        sampled = sampled_turns(trajectory)
        for turn in sampled:
            rows[turn.segment][turn.stop - 1] += turn.reward
        if sampled:
            rows[sampled[-1].segment][sampled[-1].stop - 1] -= sum(turn.reward for turn in sampled)
        found.extend(value for row in rows for value in row)
    return torch.tensor(found)


def turn_steps(trajectory: Trajectory) -> list[list[float]]:
    """Per segment, per token: what the turn that ends there earned, the last one the final score, too; else NaN."""
    rows = [[math.nan] * len(segment.token_ids) for segment in trajectory.segments]
    sampled = sampled_turns(trajectory)
    for turn in sampled:
        rows[turn.segment][turn.stop - 1] = turn.reward
    if sampled and trajectory.reward is not None and trajectory.reward.value is not None:
        rest = trajectory.reward.value - sum(turn.reward for turn in sampled)
        rows[sampled[-1].segment][sampled[-1].stop - 1] += rest
    return rows


def sampled_turns(trajectory: Trajectory) -> list[Turn]:
    """The turns that the model sampled, in order; one without a token has none."""
    return [turn for turn in trajectory.turns if turn.finish is not None and turn.stop > turn.start]
