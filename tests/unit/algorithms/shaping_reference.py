"""Shaping from the formulas, one trajectory after the other, with Python floats."""

import math
from collections.abc import Sequence

from rlhf.algorithms.shaping import Shaping
from rlhf.batch import Batch


def lengths(batch: Batch) -> list[int]:
    own = [0] * batch.num_rows
    for row, version in zip(batch.segment_ids.tolist(), batch.versions.tolist(), strict=True):
        own[row] += version != -1
    ids = list(range(batch.num_rows)) if batch.trajectory_ids is None else batch.trajectory_ids.tolist()
    return [sum(n for n, other in zip(own, ids, strict=True) if other == mine) for mine in ids]


def overlong(length: int, max_tokens: int, cache: int) -> float:
    if length <= max_tokens - cache:
        return 0.0
    if length <= max_tokens:
        return ((max_tokens - cache) - length) / cache
    return -1.0


def kimi(length: int, is_correct: bool, peers: Sequence[int]) -> float:
    if max(peers) == min(peers):
        return 0.0
    reward = 0.5 - (length - min(peers)) / (max(peers) - min(peers))
    return reward if is_correct else min(0.0, reward)


def cosine(length: int, first: float, last: float, max_tokens: int) -> float:
    at = min(length, max_tokens) / max_tokens
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * at))


def shaped(batch: Batch, shaping: Shaping) -> list[float]:
    tasks, sizes, groups = batch.rewards.tolist(), lengths(batch), batch.group_ids.tolist()
    result = []
    for row, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
        if math.isnan(task):
            result.append(task)
            continue
        is_correct, is_cut, reward = task > shaping.correct_above, bool(batch.truncated[row]), task
        if shaping.cosine is not None:
            ends = shaping.cosine.correct if is_correct else shaping.cosine.wrong
            reward = shaping.cosine.truncated if is_cut else cosine(size, *ends, shaping.max_tokens)
        if shaping.kimi_coef is not None:
            peers = [
                n
                for n, g, r in zip(sizes, groups, tasks, strict=True)
                if g == groups[row] and not math.isnan(r)
            ]
            reward += shaping.kimi_coef * kimi(size, is_correct, peers)
        if shaping.truncated_coef is not None and is_cut:
            reward = (
                reward * shaping.truncated_coef if shaping.truncated_coef >= 0 else shaping.truncated_coef
            )
        if shaping.overlong_cache is not None:
            reward += shaping.overlong_coef * overlong(size, shaping.max_tokens, shaping.overlong_cache)
        result.append(reward)
    return result
