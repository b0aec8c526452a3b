"""Slow advantages from the formulas: loops over numbers, trajectories as lists of their trained tokens."""

import itertools
import math
from collections.abc import Callable, Sequence

from rlhf.batch import Batch

Numbers = list[float]
EPSILON = 1e-6


def episodes(batch: Batch) -> dict[int, list[int]]:
    """The trained tokens of each trajectory that has a row, in the order of its rows."""
    ids = batch.trajectory_ids.tolist()
    found: dict[int, list[int]] = {i: [] for i in ids}
    for t, row in enumerate(batch.segment_ids.tolist()):
        if batch.loss_mask[t].item():
            found[ids[row]].append(t)
    return found


def row_of(batch: Batch, trajectory: int) -> int:
    return batch.trajectory_ids.tolist().index(trajectory)


def terminal(batch: Batch, trajectory: int) -> float:
    return batch.rewards[row_of(batch, trajectory)].item()


def group_of(batch: Batch, trajectory: int) -> int:
    return batch.group_ids[row_of(batch, trajectory)].item()


def total(batch: Batch, trajectory: int) -> float:
    dense = 0.0 if batch.token_rewards is None else sum(
        batch.token_rewards[t].item() for t in episodes(batch)[trajectory]
    )  # fmt: skip
    return terminal(batch, trajectory) + dense


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum((v - mean(values)) ** 2 for v in values) / (len(values) - 1))


def equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= 1e-7 * max(map(abs, values))


def by_group(
    batch: Batch,
    formula: Callable[[int, list[int], dict[int, float]], float],
    reward: Callable[[Batch, int], float] = total,
) -> Numbers:
    """formula(trajectory, gradable peers, their rewards) on every trained token; 0 where nothing compares."""
    result = [0.0] * batch.num_tokens
    tokens = episodes(batch)
    for i in tokens:
        if math.isnan(terminal(batch, i)) or math.isnan(reward(batch, i)):
            continue
        peers = [
            j
            for j in tokens
            if group_of(batch, j) == group_of(batch, i)
            and not math.isnan(terminal(batch, j))
            and not math.isnan(reward(batch, j))
        ]
        rewards = {j: reward(batch, j) for j in peers}
        if len(peers) > 1 and not equal(list(rewards.values())):
            for t in tokens[i]:
                result[t] = formula(i, peers, rewards)
    return result


def grpo(batch: Batch) -> Numbers:
    return by_group(
        batch, lambda i, _, r: (r[i] - mean(list(r.values()))) / (std(list(r.values())) + EPSILON)
    )


def dr_grpo(batch: Batch) -> Numbers:
    return by_group(batch, lambda i, _, r: r[i] - mean(list(r.values())))


def batch_std(batch: Batch) -> Numbers:
    every = [total(batch, i) for i in episodes(batch) if not math.isnan(terminal(batch, i))]
    return by_group(batch, lambda i, _, r: (r[i] - mean(list(r.values()))) / (std(every) + EPSILON))


def rloo(batch: Batch) -> Numbers:
    return by_group(batch, lambda i, peers, r: r[i] - mean([r[j] for j in peers if j != i]))


def opo(batch: Batch) -> Numbers:
    lengths = {i: len(tokens) for i, tokens in episodes(batch).items()}
    return by_group(
        batch,
        lambda i, peers, r: r[i] - sum(lengths[j] * r[j] for j in peers) / sum(lengths[j] for j in peers),
    )


def maxrl(batch: Batch) -> Numbers:
    def formula(i: int, _: list[int], r: dict[int, float]) -> float:
        average = mean(list(r.values()))
        return (r[i] - average) / average if average > 1e-7 * max(map(abs, r.values())) else 0.0

    return by_group(batch, formula)


def gdpo(batch: Batch, *, weights: Sequence[float]) -> Numbers:
    result = [0.0] * batch.num_tokens
    for k, weight in enumerate(weights):

        def part(b: Batch, i: int, k: int = k) -> float:
            return b.reward_parts[row_of(b, i), k].item()

        column = by_group(
            batch,
            lambda i, _, r: (r[i] - mean(list(r.values()))) / (std(list(r.values())) + EPSILON),
            reward=part,
        )
        result = [x + weight * y for x, y in zip(result, column, strict=True)]
    return result


def pass_at_k(batch: Batch, *, k: int, correct_above: float) -> Numbers:
    """Every k-subset of the group by enumeration."""

    def formula(i: int, peers: list[int], r: dict[int, float]) -> float:
        if len(peers) < k:
            return 0.0
        subsets = list(itertools.combinations(peers, k))
        scores = [float(any(r[j] > correct_above for j in subset)) for subset in subsets]
        average = mean(scores)
        spread = math.sqrt(mean([(s - average) ** 2 for s in scores]))
        mine = [s - average for s, subset in zip(scores, subsets, strict=True) if i in subset]
        return mean(mine) / (spread + EPSILON)

    return by_group(batch, formula, reward=terminal)


def process(batch: Batch) -> Numbers:
    result = [0.0] * batch.num_tokens
    tokens = episodes(batch)
    for i in tokens:
        if math.isnan(terminal(batch, i)):
            continue
        scored = [
            t
            for j in tokens
            if group_of(batch, j) == group_of(batch, i) and not math.isnan(terminal(batch, j))
            for t in tokens[j]
            if not math.isnan(batch.step_rewards[t].item())
        ]
        steps = [batch.step_rewards[t].item() for t in scored]
        if len(steps) < 2 or equal(steps):
            continue
        for place, t in enumerate(tokens[i]):
            later = [u for u in tokens[i][place:] if u in scored]
            result[t] = sum(
                (batch.step_rewards[u].item() - mean(steps)) / (std(steps) + EPSILON) for u in later
            )
    return result


def distill(batch: Batch) -> Numbers:
    student = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs
    result = [0.0] * batch.num_tokens
    for i, tokens in episodes(batch).items():
        for t in tokens:
            if not math.isnan(terminal(batch, i)):
                result[t] = batch.teacher_logprobs[t].item() - student[t].item()
    return result


def dense(batch: Batch, tokens: Sequence[int], reward: float) -> Numbers:
    """Rewards of a trajectory's trained tokens, in order."""
    rewards = [0.0 if batch.token_rewards is None else batch.token_rewards[t].item() for t in tokens]
    if rewards:
        rewards[-1] += reward
    return rewards


def reinforce(batch: Batch, *, gamma: float) -> Numbers:
    result = [0.0] * batch.num_tokens
    for i, tokens in episodes(batch).items():
        reward = terminal(batch, i)
        if math.isnan(reward):
            continue
        rewards = dense(batch, tokens, reward)
        for place, t in enumerate(tokens):
            result[t] = math.fsum(gamma**n * r for n, r in enumerate(rewards[place:]))
    return result


def gae(
    batch: Batch,
    *,
    gamma: float,
    lam: float = 1.0,
    length_alpha: float | None = None,
    bootstrap_truncated: bool = False,
) -> Numbers:
    result = [0.0] * batch.num_tokens
    rows = batch.segment_ids.tolist()
    for i, tokens in episodes(batch).items():
        reward = terminal(batch, i)
        if math.isnan(reward) or not tokens:
            continue
        rewards = dense(batch, tokens, reward)
        factor = lam if length_alpha is None else max(0.0, 1 - 1 / (length_alpha * len(tokens)))
        ahead, carried = 0.0, 0.0
        if bootstrap_truncated and batch.truncated[rows[tokens[-1]]].item():
            ahead = batch.last_values[rows[tokens[-1]]].item()
        for t, r in zip(reversed(tokens), reversed(rewards), strict=True):
            value = batch.values[t].item()
            carried = r + gamma * ahead - value + gamma * factor * carried
            result[t], ahead = carried, value
    return result


def returns(batch: Batch, **settings) -> Numbers:
    mask, values = batch.loss_mask.tolist(), batch.values.tolist()
    found = gae(batch, **settings)
    return [a + v if m else 0.0 for a, v, m in zip(found, values, mask, strict=True)]


def whiten(values: Sequence[float], batch: Batch) -> Numbers:
    used = [t for i, tokens in episodes(batch).items() if not math.isnan(terminal(batch, i)) for t in tokens]
    chosen = [values[t] for t in used]
    result = [0.0] * batch.num_tokens
    if len(chosen) > 1 and not equal(chosen):
        for t in used:
            result[t] = (values[t] - mean(chosen)) / math.sqrt(std(chosen) ** 2 + 1e-8)
    return result
