"""What a step's groups say about the policy: `rollout/`, `buffer/` and `reward/` metrics."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from rlhf.types import NOT_SAMPLED, RewardResult, Trajectory, TrajectoryGroup, Turn


def rollout_metrics(groups: Sequence[TrajectoryGroup], *, version: int) -> dict[str, float]:
    """Metrics of the groups that one update trains on; `version` is that of the weights before the update."""
    trajectories = [t for group in groups for t in group.trajectories]
    values = [v for t in trajectories if (v := _value(t)) is not None]
    lengths = [t.num_sampled for t in trajectories]
    ages = [version - v for t in trajectories for s in t.segments for v in s.versions if v != NOT_SAMPLED]
    mean = _mean(values)
    metrics = {
        "rollout/reward_mean": mean,
        "rollout/reward_std": math.sqrt(_mean([(v - mean) ** 2 for v in values])),
        "rollout/accuracy": _mean([float(is_correct(t.reward)) for t in trajectories]),
        "rollout/completion_tokens_mean": _mean(lengths),
        "rollout/completion_tokens_max": float(max(lengths, default=0)),
        "rollout/truncated_share": _mean([float(t.status == "truncated") for t in trajectories]),
        "rollout/num_tokens": float(sum(lengths)),
        "rollout/num_trajectories": float(len(trajectories)),
        "rollout/groups": float(len(groups)),
        "rollout/temperature": _mean([t.temperature for t in trajectories]),
        "rollout/zero_variance_share": _mean([float(_spread(g) < 1e-9) for g in groups]),
        "rollout/ungradable_share": 1.0 - len(values) / max(len(trajectories), 1),
        "buffer/staleness_max": float(max(ages, default=0)),
        "buffer/staleness_mean": _mean(ages),
    }
    outcomes = Counter(t.reward.outcome for t in trajectories if t.reward is not None)
    for outcome, count in outcomes.items():
        metrics[f"rollout/outcome/{outcome}"] = count / len(trajectories)
    metrics |= environment_metrics(trajectories)
    metrics |= _cached("rollout/cached_share", [turn for t in trajectories for turn in t.turns])
    recorded = [s for t in trajectories for s in t.segments if s.kept is not None]
    if recorded:
        num_sampled = sum(s.num_sampled for s in recorded)
        num_trained = sum(sum(s.trained_mask) for s in recorded)
        metrics["rollout/kept_overflow_share"] = 1.0 - num_trained / max(num_sampled, 1)
    return {**metrics, **_part_metrics([t.reward for t in trajectories if t.reward is not None])}


def environment_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`env/` metrics of episodes; empty where nothing was an episode."""
    episodes = [t for t in trajectories if t.is_episode]
    if not episodes:
        return {}
    sampled = [sum(turn.finish is not None for turn in t.turns) for t in episodes]
    tools = [turn for t in episodes for turn in t.turns if turn.message.role == "tool"]
    count = len(episodes)
    metrics = {
        "env/turns_mean": _mean(sampled),
        "env/turns_max": float(max(sampled)),
        "env/tool_calls_mean": len(tools) / count,
        "env/tool_errors_share": _mean([float(turn.message.is_error) for turn in tools]),
        "env/segments_mean": _mean([len(t.segments) for t in episodes]),
        "env/retried_share": _mean([float(t.attempt > 0) for t in episodes]),
        "env/dropped_tokens": float(sum(part.num_tokens for t in episodes for part in t.dropped)),
        "env/answer_s": _mean([turn.seconds for t in episodes for turn in t.turns if turn.finish is None]),
    }
    for stop, number in Counter(t.stop for t in episodes).items():
        metrics[f"env/stop/{stop}"] = number / count
    later = [turn for t in episodes for turn in [s for s in t.turns if s.finish is not None][1:]]
    metrics |= _cached("env/cached_share", later)
    logged: dict[str, list[float]] = {}
    for trajectory in episodes:
        for name, value in trajectory.scalars.items():
            logged.setdefault(name, []).append(value)
    return metrics | {f"env/log/{_trackable(name)}": _mean(values) for name, values in logged.items()}


def _cached(name: str, turns: Sequence[Turn]) -> dict[str, float]:
    """Of all tokens of these turns' contexts, the share that was cached; nothing where no engine tells."""
    told = [(turn.num_cached, turn.start) for turn in turns if turn.num_cached is not None]
    return {name: sum(cached for cached, _ in told) / sum(size for _, size in told)} if told else {}


def solved(group: TrajectoryGroup) -> list[bool]:
    """Of each gradable trajectory, in order: is it correct?"""
    return [is_correct(t.reward) for t in group.trajectories if _value(t) is not None]


def is_correct(result: RewardResult | None) -> bool:
    """Whether the task was solved: graded, and the first reward of the recipe (the task's) is above 0.5."""
    if result is None or result.value is None:
        return False
    main = next(iter(result.parts.values()), result.value)
    return main > 0.5


def answer_of(result: RewardResult) -> str | None:
    """What the first reward of the recipe read as the final answer: its detail `answer`; None where it tells none."""
    answer = result.detail.get(f"{next(iter(result.parts), '')}/answer")
    return answer if isinstance(answer, str) else None


def part_metric(part: str) -> str:
    """The metric of a part, `<reward>` or `<reward>/<name that the reward gave>`, in characters that trackers take."""
    reward, _, name = part.partition("/")
    inner = f"/{_trackable(name)}" if name else ""
    return f"reward/{reward}{inner}/mean"


def _trackable(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _part_metrics(results: Sequence[RewardResult]) -> Mapping[str, float]:
    names = dict.fromkeys(name for result in results for name in result.parts)
    return {part_metric(n): _mean([r.parts[n] for r in results if n in r.parts]) for n in names}


def _value(trajectory: Trajectory) -> float | None:
    return None if trajectory.reward is None else trajectory.reward.value


def _spread(group: TrajectoryGroup) -> float:
    values = [v for t in group.trajectories if (v := _value(t)) is not None]
    return max(values) - min(values) if values else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
