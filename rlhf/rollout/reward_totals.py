"""How the rewards of a recipe become one verdict, one error when too many fail, and one set of metrics."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.config.schema import RewardConfig
from rlhf.errors import RewardError
from rlhf.rollout.reward_shapes import small
from rlhf.types import Outcome, RewardResult

SEVERITY: tuple[Outcome, ...] = ("ok", "wrong", "unparsable", "limit", "not_applicable", "timeout", "error")
"""Outcomes from best to worst: the total's outcome is the worst of its parts."""
UNGRADABLE_WINDOW = 200
UNGRADABLE_MINIMUM = 20


def short_names(rewards: Sequence[RewardConfig]) -> tuple[str, ...]:
    """`module.attribute` without folders; the second use of a function gets `#2`."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for reward in rewards:
        module, _, attribute = reward.use.rpartition(":")
        stem = module.removesuffix(".py").replace("/", ".").rpartition(".")[2]
        name = f"{stem}.{attribute}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(names)


def applies(reward: RewardConfig, columns: Mapping[str, Any]) -> bool:
    """Whether the prompt's columns have the values of `when`."""
    return all(name in columns and columns[name] == value for name, value in reward.when.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One reward's results for the trajectories of a group."""

    name: str
    reward: RewardConfig
    results: Sequence[RewardResult]


def compose(parts: Sequence[Part], size: int) -> list[RewardResult]:
    """One total per trajectory from the rewards that apply.

    total = sum(weight x value) over the parts that are no gates, x (value > 0) for every gate. A required
    part without a value voids the total. An optional part without a value for one sibling is left out for
    all, so that siblings keep one scale. Nothing to add up: value None, outcome `not_applicable`.
    """
    counted = [
        part for part in parts if not part.reward.optional or all(r.value is not None for r in part.results)
    ]
    return [_total(parts, counted, index) for index in range(size)]


def _total(parts: Sequence[Part], counted: Sequence[Part], index: int) -> RewardResult:
    values: dict[str, float] = {}
    detail: dict[str, str | float] = {}
    for part in parts:
        result = part.results[index]
        if result.value is not None:
            values[part.name] = result.value
        values |= {f"{part.name}/{name}": value for name, value in result.parts.items()}
        detail |= {f"{part.name}/{name}": text for name, text in result.detail.items()}
    outcomes = [part.results[index].outcome for part in counted]
    value = _value(counted, index)
    if all(part.reward.gate for part in counted):
        value = None
        outcomes.append("not_applicable")
    outcome = max(outcomes, key=SEVERITY.index)
    seconds = sum(part.results[index].seconds for part in parts)
    steps = tuple(
        (end, part.reward.weight * step)
        for part in counted
        if not part.reward.gate
        for end, step in part.results[index].steps
    )
    return RewardResult(
        value=value, outcome=outcome, parts=values, detail=small(detail), seconds=seconds, steps=steps
    )


def _value(counted: Sequence[Part], index: int) -> float | None:
    total, is_open = 0.0, True
    for part in counted:
        value = part.results[index].value
        if value is None:
            return None
        if part.reward.gate:
            is_open = is_open and value > 0
        else:
            total += part.reward.weight * value
    return total if is_open else 0.0


class UngradableWatch:
    """Who failed on the last totals, and an error once too many of them have no value."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._recent: deque[str | None] = deque(maxlen=UNGRADABLE_WINDOW)
        self._example: dict[str, str] = {}

    def see(self, parts: Sequence[Part], totals: Sequence[RewardResult]) -> None:
        """Count one group. RewardError, naming the worst reward and its last failure, above the share."""
        for index, total in enumerate(totals):
            if total.value is not None:
                self._recent.append(None)
                continue
            failed = [
                part for part in parts if part.results[index].value is None and not part.reward.optional
            ]
            self._recent.append(failed[0].name if failed else "")
            for part in failed:
                result = part.results[index]
                lines = [f"{name}: {text}" for name, text in result.detail.items()]
                self._example[part.name] = "\n".join([f"outcome {result.outcome}", *lines])
        self._check()

    def _check(self) -> None:
        failed = [name for name in self._recent if name is not None]
        count = len(self._recent)
        if count < UNGRADABLE_MINIMUM or len(failed) / count <= self._max_share:
            return
        worst = Counter(failed).most_common(1)[0][0]
        if not worst:
            raise RewardError(
                f"task.rewards: no reward applies to {failed.count('')} of the last {count} samples. "
                "Compare the `when` of each reward with the columns of the prompts."
            )
        raise RewardError(
            f"{len(failed)} of the last {count} samples could not be graded ({len(failed) / count:.0%}; "
            f"task.max_ungradable is {self._max_share:.0%}). Most often reward {worst} failed, last with "
            f"{self._example[worst]}\n"
            "Mend the reward, raise its limit_s, mark it optional, or raise task.max_ungradable."
        )


@dataclass(slots=True, kw_only=True)
class RewardMeter:
    """What one reward did since the last reading."""

    results: list[RewardResult] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    kills: int = 0

    def read(self, name: str) -> dict[str, float]:
        """Metrics `reward/<name>/...`: mean, share of each outcome, seconds per sample, queue time, kills."""
        prefix = f"reward/{name}"
        values = [r.value for r in self.results if r.value is not None]
        seconds = sorted(r.seconds for r in self.results)
        outcomes = Counter(r.outcome for r in self.results)
        metrics = {f"{prefix}/{outcome}": count / len(self.results) for outcome, count in outcomes.items()}
        if values:
            metrics[f"{prefix}/mean"] = sum(values) / len(values)
        if seconds:
            metrics[f"{prefix}/seconds_p50"] = seconds[len(seconds) // 2]
            metrics[f"{prefix}/seconds_p99"] = seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)]
        if self.queue_s:
            metrics[f"{prefix}/queue_s"] = sum(self.queue_s) / len(self.queue_s)
        metrics[f"{prefix}/kills"] = float(self.kills)
        return metrics
