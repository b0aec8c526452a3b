"""Asking judges of images: their scores are checked, put together list by list, and no order of showing decides."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rlhf.errors import ConfigError, JudgeError
from rlhf.retrieval import Judge, PairJudge, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

_SWAPPED: dict[Verdict, Verdict] = {"a": "b", "b": "a", "tie": "tie"}


@runtime_checkable
class Bounded(Protocol):
    """A judge that states between which numbers its scores lie; one outside is an error."""

    @property
    def range(self) -> tuple[float, float]:
        """(lowest, highest)"""


@runtime_checkable
class SaysWhatItReads(Protocol):
    """A judge that states whether it looks at the query; one that does not state it is taken to."""

    @property
    def reads_query(self) -> bool:
        """False: an image has one score, whatever it was retrieved for, and is judged once."""


def reads_query(judge: Judge) -> bool:
    """Whether its scores may depend on the query."""
    return judge.reads_query if isinstance(judge, SaysWhatItReads) else True


class OrderConsistent:
    """A `PairJudge` that asks another one in both orders: who is better only by its place is not better.

    Win or loss where both answers name the same row, else "tie". Source: order consistency, 2406.09397.
    """

    def __init__(self, judge: PairJudge) -> None:
        self.judge = judge
        self.name = judge.name
        self.version = f"order-consistent {judge.version}"
        self.num_calls = 0
        """Of the judge asked: two for each comparison."""
        self.num_contradictions = 0
        """Comparisons whose two answers differ."""

    def compare(self, query: str, row_a: Sequence["Image"], row_b: Sequence["Image"]) -> Verdict:
        """The row that is better in either order."""
        first = self._ask(query, row_a, row_b)
        second = _SWAPPED[self._ask(query, row_b, row_a)]
        if first == second:
            return first
        self.num_contradictions += 1
        return "tie"

    def _ask(self, query: str, row_a: Sequence["Image"], row_b: Sequence["Image"]) -> Verdict:
        verdict = self.judge.compare(query, row_a, row_b)
        self.num_calls += 1
        if verdict not in _SWAPPED:
            raise JudgeError(
                f"judge {self.name!r} compared two rows for query {query!r} and said {verdict!r}, expected 'a', 'b' or "
                "'tie'."
            )
        return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Comparisons of one system (row a) with another."""

    wins: int
    ties: int
    losses: int

    @property
    def rate(self) -> float:
        """Share of wins, a tie being half of one."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)


def tally(verdicts: Iterable[Verdict]) -> Tally:
    """How often row a was better. ValueError without a verdict."""
    counts = Counter(verdicts)
    if not counts:
        raise ValueError("no verdicts to count")
    return Tally(wins=counts["a"], ties=counts["tie"], losses=counts["b"])


def ask(judge: Judge, query: str, ids: Sequence[str], images: Sequence["Image"]) -> tuple[float, ...]:
    """A judge's scores of the images that were retrieved for one query.

    Raises JudgeError for another number of scores than of images, one that is not finite, and one outside the range
    that a `Bounded` judge states.
    """
    scores = tuple(float(score) for score in judge.score(images, [query] * len(images)))
    if len(scores) != len(images):
        raise JudgeError(
            f"judge {judge.name!r} gave {len(scores)} scores for the {len(images)} images of query {query!r} (the "
            f"first is {ids[0]!r}), expected one for each, in their order."
        )
    lowest, highest = judge.range if isinstance(judge, Bounded) else (-math.inf, math.inf)
    for name, score in zip(ids, scores, strict=True):
        if not math.isfinite(score) or not lowest <= score <= highest:
            said = (
                f"from {lowest:g} to {highest:g}, as it states" if math.isfinite(score) else "a finite number"
            )
            raise JudgeError(
                f"judge {judge.name!r} scored image {name!r} of query {query!r} with {score}, expected {said}. Look at "
                "the image, or take the judge out of the recipe."
            )
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What several judges say of the images of one query."""

    total: tuple[float, ...]
    members: Mapping[str, tuple[float, ...]]
    """Each judge's scores as it gave them, so that one that is gamed shows."""


def combine(scores: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Judgement:
    """The weighted sum of each judge's z-scores within this list; a judge to whom all are equal adds 0.

    Raises ConfigError unless every judge has a weight, ValueError when they did not score the same images.
    """
    if set(scores) != set(weights) or not scores:
        raise ConfigError(
            f"judges {sorted(scores)} scored, but weights are given for {sorted(weights)}: expected one weight for "
            "each judge, and one judge or more."
        )
    sizes = {name: len(given) for name, given in scores.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"judges scored lists of different lengths: {sizes}")
    standard = {name: z_scores(given) for name, given in scores.items()}
    places = range(next(iter(sizes.values())))
    total = tuple(sum(weights[name] * standard[name][place] for name in scores) for place in places)
    return Judgement(total=total, members={name: tuple(given) for name, given in scores.items()})


def z_scores(scores: Sequence[float]) -> tuple[float, ...]:
    """Distance from the mean in standard deviations; zeros where all scores are equal."""
    if not scores:
        return ()
    largest = max(abs(score) for score in scores)
    if max(scores) - min(scores) <= 1e-12 * largest:
        return (0.0,) * len(scores)
    scaled = [score / largest for score in scores]  # the squares of very large or small scores are no floats
    mean = math.fsum(scaled) / len(scaled)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scaled) / len(scaled))
    return tuple((score - mean) / deviation for score in scaled)
