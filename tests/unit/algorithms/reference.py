"""Slow second opinions, from the formulas with Python loops and floats; gradients by hand, not autograd."""

import math
from collections.abc import Sequence

from rlhf.batch import Batch


def group_advantages(rewards: Sequence[float], groups: Sequence[int], *, normalise: bool) -> list[float]:
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        peers = [r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)]
        if math.isnan(reward) or len(peers) < 2 or len(set(peers)) == 1:
            result.append(0.0)
            continue
        mean = sum(peers) / len(peers)
        variance = sum((r - mean) ** 2 for r in peers) / (len(peers) - 1)
        result.append((reward - mean) / (math.sqrt(variance) + 1e-6 if normalise else 1.0))
    return result


def token_advantages(batch: Batch, *, normalise: bool) -> list[float]:
    ids = batch.trajectory_ids.tolist()
    firsts = [ids.index(i) for i in dict.fromkeys(ids)]
    rewards, groups = batch.rewards.tolist(), batch.group_ids.tolist()
    values = group_advantages([rewards[r] for r in firsts], [groups[r] for r in firsts], normalise=normalise)
    of_trajectory = {ids[row]: value for row, value in zip(firsts, values, strict=True)}
    rows, mask = batch.segment_ids.tolist(), batch.loss_mask.tolist()
    return [of_trajectory[ids[row]] if m else 0.0 for row, m in zip(rows, mask, strict=True)]


def loss_weights(batch: Batch, aggregation: str, *, normaliser: float, kept: Sequence[bool]) -> list[float]:
    rows, groups = batch.segment_ids.tolist(), batch.group_ids.tolist()
    mask = [m and kept[row] for row, m in zip(rows, batch.loss_mask.tolist(), strict=True)]
    trained = [sum(m for r, m in zip(rows, mask, strict=True) if r == row) for row in range(batch.num_rows)]
    nonempty = sum(count > 0 for count in trained)
    of_group = {g: sum(c for c, h in zip(trained, groups, strict=True) if h == g) for g in groups}
    live_groups = sum(count > 0 for count in of_group.values())
    result = []
    for row, m in zip(rows, mask, strict=True):
        if not m:
            result.append(0.0)
            continue
        result.append(
            {
                "token_sum": lambda: 1.0,
                "token_mean": lambda: 1.0 / sum(trained),
                "seq_mean_token_mean": lambda row=row: 1.0 / trained[row] / nonempty,
                "seq_mean_token_sum": lambda: 1.0 / nonempty,
                "seq_mean_token_sum_norm": lambda: 1.0 / nonempty / normaliser,
                "prompt_mean_token_mean": lambda row=row: 1.0 / of_group[groups[row]] / live_groups,
            }[aggregation]()
        )
    return result


def kl_value_and_gradient(x: float, ratio: float, estimator: str) -> tuple[float, float]:
    k3 = math.exp(-x) - 1 + x
    return {
        "k1": (x, 1.0),
        "k2": (x * x / 2, x),
        "k3": (k3, 1 - math.exp(-x)),
        "k3_st": (k3, x),
        "k3_unbiased": (ratio * k3, ratio * x),
    }[estimator]


def policy_value_and_gradient(
    ratio: float, advantage: float, low: float, high: float, dual: float | None
) -> tuple[float, float, bool]:
    """Loss, its derivative by the log-probability, and whether a bound took that derivative away."""
    if advantage > 0 and ratio > 1 + high:
        return -(1 + high) * advantage, 0.0, True
    if advantage < 0 and ratio < 1 - low:
        return -(1 - low) * advantage, 0.0, True
    if dual is not None and advantage < 0 and ratio > dual:
        return -dual * advantage, 0.0, True
    return -ratio * advantage, -ratio * advantage, False
