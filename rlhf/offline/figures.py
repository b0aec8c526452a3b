"""From the graded samples of a set to its figures: each is made per problem, then averaged over the problems."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from rlhf.data.collected import Collected
from rlhf.errors import RewardError
from rlhf.rollout.estimates import best_of_k, majority_at_k, pass_at_k, pass_hat_k
from rlhf.rollout.intervals import mean_interval, share_interval
from rlhf.types import STATUS_OF

LENGTHS = 4
"""Bins of the table by length."""
BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Inner edges of the table by difficulty; a pass rate of exactly 0, and of exactly 1, is a band of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float
    problems: int
    """That it is a mean of: those with enough gradable samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What the figures need of a prompt and its samples. The first four speak of its gradable samples."""

    truths: tuple[float, ...]
    votes: tuple[Hashable | None, ...]
    rewards: tuple[float, ...]
    scores: tuple[float, ...] | None
    """By which best-of-k ranks; None where a sample has none."""
    has_answer: bool
    """Whether the reward told the answer of any sample."""
    graded_tokens: tuple[int, ...]
    num_samples: int
    tokens: tuple[int, ...]
    """Of every sample."""
    truncated: float
    """Share of all samples."""
    parsed: float
    """Share of all samples."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Mean of each part of the reward over the gradable samples that have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All that is said of a model on a set."""

    figures: dict[str, Figure]
    counts: dict[str, int]
    lengths: list[dict[str, Any]]
    difficulties: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """As eval.json has it."""
        return asdict(self)


def problem_of(one: Collected, votes: Sequence[Hashable | None], *, best_of: str | None) -> Problem:
    """The record of a prompt; `votes` are the canonical answers of all its samples, in order."""
    graded = [(s, v) for s, v in zip(one.samples, votes, strict=True) if s.reward is not None]
    scores = [s.parts.get(best_of) if best_of else None for s, _ in graded]
    ranking = [score for score in scores if score is not None]
    size = len(one.samples)
    return Problem(
        truths=tuple(float(s.is_correct) for s, _ in graded),
        votes=tuple(vote for _, vote in graded),
        rewards=tuple(s.reward for s, _ in graded if s.reward is not None),
        scores=tuple(ranking) if best_of and len(ranking) == len(scores) else None,
        has_answer=any(s.answer is not None for s in one.samples),
        graded_tokens=tuple(s.num_tokens for s, _ in graded),
        num_samples=size,
        tokens=tuple(s.num_tokens for s in one.samples),
        truncated=sum(STATUS_OF[s.stop] == "truncated" for s in one.samples) / size,
        parsed=sum(s.outcome != "unparsable" for s in one.samples) / size,
        parts=_parts([s.parts for s, _ in graded]),
    )


def _parts(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Nothing for a reward of a single part, which is the reward."""
    names = list(dict.fromkeys(name for parts in samples for name in parts))
    if len(names) < 2:
        return {}
    return {name: _mean([parts[name] for parts in samples if name in parts]) for name in names}


def measure(problems: Sequence[Problem], *, sizes: Sequence[int], best_of: bool = False) -> Scores:
    """Every figure and table of a set. RewardError when nothing was gradable."""
    graded = [problem for problem in problems if problem.truths]
    num_samples = sum(p.num_samples for p in problems)
    if not graded:
        raise RewardError(
            f"evaluation: none of {num_samples} samples of {len(problems)} prompts could be graded. "
            "Try the rewards on gold answers with `rlhf check`."
        )
    figures = {
        "accuracy": _share(_mean(p.truths) for p in graded),
        "reward": _number(_mean(p.rewards) for p in graded),
        "format": _share(p.parsed for p in problems),
        "truncated": _share(p.truncated for p in problems),
        "ungradable": _share(1 - len(p.truths) / p.num_samples for p in problems),
        "tokens": _number(_mean(p.tokens) for p in problems),
    }
    for name in dict.fromkeys(name for p in graded for name in p.parts):
        figures[f"reward/{name}"] = _number(p.parts[name] for p in graded if name in p.parts)
    for k in sizes:
        figures |= _at(graded, k, best_of=best_of)
    return Scores(
        figures=figures,
        counts={
            "prompts": len(problems),
            "samples": num_samples,
            "ungradable": num_samples - sum(len(p.truths) for p in problems),
        },
        lengths=_by_length(graded),
        difficulties=_by_difficulty(graded),
    )


def _at(problems: Sequence[Problem], k: int, *, best_of: bool) -> dict[str, Figure]:
    """The figures of k samples, over the problems that have as many gradable ones."""
    enough = [p for p in problems if len(p.truths) >= k]
    kinds: dict[str, Callable[[Problem], float]] = {
        "pass@": lambda p: pass_at_k(len(p.truths), int(sum(p.truths)), k),
        "pass^": lambda p: pass_hat_k(len(p.truths), int(sum(p.truths)), k),
    }
    if any(p.has_answer for p in problems):
        kinds["maj@"] = lambda p: majority_at_k(p.votes, p.truths, k)
    figures = {f"{kind}{k}": _share(map(estimate, enough)) for kind, estimate in kinds.items() if enough}
    ranked = [(p.truths, p.scores) for p in enough if p.scores is not None]
    if best_of and ranked:
        figures[f"best@{k}"] = _share(best_of_k(truths, scores, k) for truths, scores in ranked)
    return figures


def _by_length(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Quantiles of all gradable samples by their tokens; equal lengths stay together."""
    lengths = sorted(tokens for p in problems for tokens in p.graded_tokens)
    edges = sorted({lengths[math.ceil(len(lengths) * i / LENGTHS) - 1] for i in range(1, LENGTHS + 1)})
    rows = []
    for below, top in pairwise([-1, *edges]):
        found = [
            [t for t, tokens in zip(p.truths, p.graded_tokens, strict=True) if below < tokens <= top]
            for p in problems
        ]
        found = [truths for truths in found if truths]
        inside = [tokens for tokens in lengths if below < tokens <= top]
        row = {"least": inside[0], "most": inside[-1], "samples": len(inside)}
        rows.append(row | {"accuracy": asdict(_share(map(_mean, found)))})
    return rows


def _by_difficulty(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Bands of problems by the share of their own samples that are right."""
    rates = [_mean(p.truths) for p in problems]
    bands = [(0.0, 0.0), *pairwise(BANDS), (1.0, 1.0)]
    rows = []
    for low, high in bands:
        inside = [p for p, rate in zip(problems, rates, strict=True) if _is_in(rate, low, high)]
        if inside:
            row = {"low": low, "high": high, "problems": len(inside)}
            row["accuracy"] = _mean([_mean(p.truths) for p in inside])
            row["tokens"] = _mean([_mean(p.tokens) for p in inside])
            rows.append(row | {"truncated": _mean([p.truncated for p in inside])})
    return rows


def _is_in(rate: float, low: float, high: float) -> bool:
    if low == high:
        return rate == low
    return low < rate <= high and rate < 1


def _share(values: Iterable[float]) -> Figure:
    numbers = list(values)
    low, high = share_interval(numbers)
    return Figure(value=_mean(numbers), low=low, high=high, problems=len(numbers))


def _number(values: Iterable[float]) -> Figure:
    numbers = list(values)
    low, high = mean_interval(numbers)
    return Figure(value=_mean(numbers), low=low, high=high, problems=len(numbers))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
