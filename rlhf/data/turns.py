"""Rewards of single turns, at the tokens that end them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.types import Trajectory

Place = tuple[int, int]
"""(segment, token in it)."""


def turn_token_rewards(trajectories: Sequence[Trajectory]) -> Tensor | None:
    """[N] for `Batch.token_rewards`: each turn's reward where the turn ends. None where no turn has one.

    What they add up to is taken from the last trained token, where the total stands: so that stays what was graded.
    Float64: rewards that cancel leave nothing.
    """
    if not any(turn.reward for t in trajectories for turn in t.turns):
        return None
    found: list[float] = []
    for trajectory in trajectories:
        rows = [[0.0] * len(segment.token_ids) for segment in trajectory.segments]
        earned, last = _earned(trajectory)
        for (segment, token), reward in earned:
            rows[segment][token] += reward
        if last is not None:
            rows[last[0]][last[1]] -= math.fsum(reward for _, reward in earned)
        found.extend(value for row in rows for value in row)
    return torch.tensor(found, dtype=torch.float64)


def turn_steps(trajectory: Trajectory) -> list[list[float]]:
    """Per segment, per token: what the turn that ends there earned, the last one the final score, too; else NaN."""
    rows = [[math.nan] * len(segment.token_ids) for segment in trajectory.segments]
    earned, last = _earned(trajectory)
    if last is not None and trajectory.reward is not None and trajectory.reward.value is not None:
        earned.append((last, trajectory.reward.value - math.fsum(reward for _, reward in earned)))
    for (segment, token), reward in earned:
        before = rows[segment][token]
        rows[segment][token] = reward if math.isnan(before) else before + reward
    return rows


def _earned(trajectory: Trajectory) -> tuple[list[tuple[Place, float]], Place | None]:
    """(where each sampled turn's reward goes, and the reward), and the trajectory's last trained token.

    That is the last token that the turn trains; for one that trains none, where the turn before it ends. Where there
    is neither, the reward stays in the total.
    """
    masks = [segment.trained_mask for segment in trajectory.segments]
    found: list[tuple[Place, float]] = []
    for turn in (turn for turn in trajectory.turns if turn.finish is not None):
        trained = [i for i in range(turn.start, turn.stop) if masks[turn.segment][i]]
        if trained or found:
            found.append(((turn.segment, trained[-1]) if trained else found[-1][0], turn.reward))
    places = ((i, t) for i, mask in enumerate(masks) for t, is_trained in enumerate(mask) if is_trained)
    return found, max(places, default=None)
