"""How the rewards of a recipe become one verdict, one error when too many fail, and one set of metrics."""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.config.rewards import RewardConfig
from rlhf.errors import DataError, RewardError
from rlhf.rollout.reward_values import DETAIL_CHARACTERS, small
from rlhf.rollout.statistics import part_metric
from rlhf.types import Outcome, Prompt, RewardResult

logger = logging.getLogger(__name__)

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


def check_columns(
    rewards: Sequence[RewardConfig],
    required: Mapping[str, Sequence[str]],
    prompts: Sequence[Prompt],
    *,
    key: str,
) -> None:
    """DataError for the first prompt of source `key` that lacks a column of a reward that applies to it.

    `required` is `RewardPool.required_columns`.
    """
    for name, reward in zip(short_names(rewards), rewards, strict=True):
        columns = required.get(name, ())
        for prompt in prompts if columns else ():
            missing = [column for column in columns if column not in prompt.columns]
            if missing and applies(reward, prompt.columns):
                raise DataError(
                    f"reward {name} ({reward.use}) needs the column {missing[0]!r}, but row {prompt.id} of {key} has "
                    f"none; it has {sorted(prompt.columns)}. Rename a column with {key}.columns, restrict the reward "
                    "with `when`, or give the parameter a default."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One reward's results for the trajectories of a group."""

    name: str
    reward: RewardConfig
    results: Sequence[RewardResult]

    @property
    def is_idle(self) -> bool:
        """Whether it says of every sibling that it does not apply."""
        return all(result.outcome == "not_applicable" for result in self.results)


def compose(parts: Sequence[Part], size: int) -> list[RewardResult]:
    """One total per trajectory from the rewards that apply.

    total = sum(weight x value) over the parts that are no gates, x (value > 0) for every gate. A required
    part without a value voids the total. An optional part without a value for one sibling is left out for
    all, so that siblings keep one scale; so is a part that is not applicable to any, as if `when` had left it
    out. Nothing to add up: value None, outcome `not_applicable`.
    """
    parts = [part for part in parts if not part.is_idle]
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
        room = DETAIL_CHARACTERS // len(parts)
        detail |= {f"{part.name}/{name}": text for name, text in small(result.detail, room=room).items()}
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
        value=value, outcome=outcome, parts=values, detail=detail, seconds=seconds, steps=steps
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
        self._seen = 0
        self._ungradable = 0

    @property
    def share(self) -> float:
        """Share of all totals so far that have no value."""
        return self._ungradable / max(self._seen, 1)

    def see(self, parts: Sequence[Part], totals: Sequence[RewardResult]) -> None:
        """Count one group. RewardError, naming the worst reward and its last failure, above the share."""
        self._seen += len(totals)
        for index, total in enumerate(totals):
            if total.value is not None:
                self._recent.append(None)
                continue
            self._ungradable += 1
            failed = [
                part
                for part in parts
                if part.results[index].value is None and not part.reward.optional and not part.is_idle
            ]
            self._recent.append(failed[0].name if failed else "")
            for part in failed:
                self._example[part.name] = _told(part.results[index])
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


def _told(result: RewardResult) -> str:
    lines = [f"{name}: {text}" for name, text in result.detail.items() if text != ""]
    return "\n".join([f"outcome {result.outcome}", *lines])


@dataclass(slots=True, kw_only=True)
class RewardMeter:
    """What one reward did since the last reading. Its failures are logged: the first of a kind, the 10th, 100th..."""

    name: str
    results: list[RewardResult] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    logged: dict[str, list[float]] = field(default_factory=dict)
    """What the reward itself measured (TRL's log_metric)."""
    kills: int = 0
    retries: int = 0
    leaks: int = 0
    failures: Counter[Outcome] = field(default_factory=Counter)
    """Since the start."""

    def count(self, results: Sequence[RewardResult]) -> None:
        """Take the results of a group."""
        self.results += results
        for result in results:
            if result.outcome not in ("timeout", "error"):
                continue
            self.failures[result.outcome] += 1
            if str(self.failures[result.outcome]).rstrip("0") == "1":
                number = self.failures[result.outcome]
                logger.warning("reward %s failed, number %d: %s", self.name, number, _told(result))

    def leak(self, text: str) -> None:
        """Count and log a leak for which a worker was replaced."""
        self.leaks += 1
        logger.warning("reward %s %s. The worker was replaced.", self.name, text)

    def log(self, metrics: Mapping[str, Sequence[float]]) -> None:
        """Take what the reward itself measured."""
        for name, values in metrics.items():
            self.logged.setdefault(name, []).extend(values)

    def read(self) -> dict[str, float]:
        """Metrics `reward/<name>/...`: mean, share of each outcome, seconds per sample, queue time and the like."""
        prefix = f"reward/{self.name}"
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
        for name, numbers in self.logged.items():
            metrics[part_metric(f"{self.name}/{name}")] = sum(numbers) / len(numbers)
        counts = {"kills": self.kills, "retries": self.retries, "leaks": self.leaks}
        metrics |= {f"{prefix}/{name}": float(number) for name, number in counts.items()}
        self.results, self.queue_s, self.logged = [], [], {}
        self.kills = self.retries = self.leaks = 0
        return metrics
