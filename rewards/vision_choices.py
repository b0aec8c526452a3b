"""Choices of people between two groups of images of one query, as HPIR has them (2406.09397): read, counted, learned.

A row, in JSONL: `{"query": "a cat", "a": ["1.jpg", ...], "b": [...], "votes": {"aesthetic": {"a": 7, "b": 3}}}`, in
CSV the columns `query`, `a`, `b` (paths with | between them) and two for each aspect, `aesthetic_a` and `aesthetic_b`.
`id` is optional. A recipe measures on them by `choice_queries` and `choice_truth`.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.vision_readers import json_lines, text_of
from rlhf.errors import DataError
from rlhf.retrieval import PartialOrder, RetrievalQuery, Verdict

_SEPARATOR = "|"
_FORM = (
    "expected query, a and b (image paths, none twice), and votes, whole numbers for a and b of each aspect: see "
    "rewards.vision_choices"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChoice:
    """Two groups of images of a query, and how many people preferred each, aspect by aspect."""

    id: str
    query: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    votes: Mapping[str, tuple[int, int]]
    """{aspect: (for a, for b)}."""

    @property
    def images(self) -> tuple[str, ...]:
        """Of both groups."""
        return (*self.a, *self.b)

    def majority(self, aspect: str) -> Verdict:
        """The group that more people preferred."""
        for_a, for_b = self._votes(aspect)
        return "tie" if for_a == for_b else "a" if for_a > for_b else "b"

    def confidence(self, aspect: str) -> float:
        """How sure people are, c = 2 max(n_a, n_b) / n - 1: 0 where people are divided, 1 where they agree."""
        for_a, for_b = self._votes(aspect)
        return 2 * max(for_a, for_b) / (for_a + for_b) - 1

    def _votes(self, aspect: str) -> tuple[int, int]:
        if aspect not in self.votes:
            raise DataError(
                f"choice {self.id!r} has no votes on {aspect!r}, it has: {', '.join(self.votes)}."
            )
        return self.votes[aspect]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a model agrees with people, each choice counted by their confidence in it."""

    score: float
    """sum of c_i [model prefers the majority group] / sum of c_i; a tie of the model is half. .5 is chance."""
    confidence: float
    """Sum of c_i."""
    num_choices: int
    num_divided: int
    """Choices on which people are evenly divided: they count 0."""


def read_choices(path: str | Path) -> list[GroupChoice]:
    """The rows of a .jsonl or .csv file. DataError naming the line that is not as above, or an id that stands twice."""
    file = Path(path)
    read = {".jsonl": json_lines, ".csv": _csv_rows}.get(file.suffix)
    if read is None:
        raise DataError(f"{file}: choices are read from .jsonl or .csv.")
    choices: dict[str, GroupChoice] = {}
    for line, row in read(text_of(file), file):
        try:
            choice = _choice(row, default_id=str(line))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}, line {line}: {type(error).__name__} {error}; {_FORM}.") from error
        if choice.id in choices:
            raise DataError(f"{file}, line {line}: a second choice has the id {choice.id!r}.")
        choices[choice.id] = choice
    if not choices:
        raise DataError(f"{file} holds no choice; {_FORM}.")
    return list(choices.values())


def agreement(choices: Sequence[GroupChoice], verdicts: Sequence[Verdict], aspect: str) -> Agreement:
    """Confidence-weighted agreement of one verdict per choice. DataError where people are divided on all of them."""
    if len(choices) != len(verdicts):
        raise ValueError(f"{len(verdicts)} verdicts on {len(choices)} choices")
    weights = [choice.confidence(aspect) for choice in choices]
    total = math.fsum(weights)
    if total == 0:
        raise DataError(
            f"people are evenly divided on {aspect!r} in all {len(choices)} choices: nothing to agree with."
        )
    right = [
        0.5 if verdict == "tie" else float(verdict == choice.majority(aspect))
        for choice, verdict in zip(choices, verdicts, strict=True)
    ]
    score = math.fsum(weight * hit for weight, hit in zip(weights, right, strict=True)) / total
    return Agreement(
        score=score,
        confidence=total,
        num_choices=len(choices),
        num_divided=sum(weight == 0 for weight in weights),
    )


def by_scores(choice: GroupChoice, scores_of: Callable[[str, Sequence[str]], Sequence[float]]) -> Verdict:
    """The group whose images a model scores higher on average; `scores_of(query, image ids)` is the model."""
    means = []
    for ids in (choice.a, choice.b):
        scores = [float(score) for score in scores_of(choice.query, ids)]
        if len(scores) != len(ids) or not all(math.isfinite(score) for score in scores):
            raise DataError(
                f"choice {choice.id!r}: {len(ids)} images got the scores {scores}, expected a finite one each."
            )
        means.append(math.fsum(scores) / len(scores))
    return "tie" if means[0] == means[1] else "a" if means[0] > means[1] else "b"


def orders_of(
    choices: Sequence[GroupChoice],
    aspect: str,
    reference: Callable[[str, Sequence[str]], Sequence[float]],
    *,
    least_confidence: float = 0.0,
    fingerprint: str = "",
) -> list[PartialOrder]:
    """A partial order for each choice: every image of the preferred group over every image of the other.

    `reference(query, image ids)` gives exp(logit_scale) * cos under the reference model. Left out: choices on which
    people are evenly divided, and those with less than `least_confidence`.
    """
    orders = []
    for choice in choices:
        majority = choice.majority(aspect)
        if majority == "tie" or choice.confidence(aspect) < least_confidence:
            continue
        better, worse = (choice.a, choice.b) if majority == "a" else (choice.b, choice.a)
        items = (*better, *worse)
        orders.append(
            PartialOrder(
                query_id=choice.id,
                query=choice.query,
                items=items,
                shape=(2, len(better)) if len(better) == len(worse) else (1, len(items)),
                ref_scores=tuple(float(score) for score in reference(choice.query, items)),
                pairs=tuple((i, j) for i in range(len(better)) for j in range(len(better), len(items))),
                fingerprint=fingerprint,
            )
        )
    return orders


@dataclass(frozen=True, slots=True)
class ChoiceTruth:
    """`rlhf.retrieval.Truth` of people's choices: an image answers the queries that it was shown for.

    Its taste is the confidence of the choice, below 0 in the group that fewer preferred; the mean where it was shown
    several times. One that nobody was shown is as one on which people are divided: 0.
    """

    choices: tuple[GroupChoice, ...]
    aspect: str

    def relevant(self, query: RetrievalQuery, ids: Sequence[str]) -> list[bool]:
        """Shown for this query. DataError for a query of no choice."""
        shown = {name for choice in self.choices if choice.query == query.text for name in choice.images}
        if not shown:
            raise DataError(f"no choice is about the query {query.text!r}.")
        return [name in shown for name in ids]

    def taste(self, ids: Sequence[str]) -> list[float]:
        """-1 to 1."""
        votes: dict[str, list[float]] = {}
        for choice in self.choices:
            sign = {"a": 1.0, "tie": 0.0, "b": -1.0}[choice.majority(self.aspect)]
            confidence = sign * choice.confidence(self.aspect)
            for group, vote in ((choice.a, confidence), (choice.b, -confidence)):
                for name in group:
                    votes.setdefault(name, []).append(vote)
        return [math.fsum(votes[name]) / len(votes[name]) if name in votes else 0.0 for name in ids]


def choice_truth(path: str, aspect: str = "aesthetic") -> ChoiceTruth:
    """Of a file. DataError where a choice has no votes on `aspect`."""
    choices = read_choices(path)
    for choice in choices:
        choice.majority(aspect)
    return ChoiceTruth(tuple(choices), aspect)


def choice_queries(path: str) -> list[RetrievalQuery]:
    """The queries of a file, each once."""
    first: dict[str, str] = {}
    for choice in read_choices(path):
        first.setdefault(choice.query, choice.id)
    return [RetrievalQuery(id=name, text=text) for text, name in first.items()]


def _choice(row: Mapping[str, Any], default_id: str) -> GroupChoice:
    query, groups = row["query"], {side: tuple(row[side]) for side in ("a", "b")}
    paths = [*groups["a"], *groups["b"]]
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"query is {query!r}")
    if any(isinstance(row[side], str) for side in groups) or not all(isinstance(p, str) and p for p in paths):
        raise ValueError("a and b are not lists of paths")
    if not all(groups.values()) or len(set(paths)) < len(paths):
        raise ValueError("a group is empty, or an image stands twice")
    votes = {str(aspect): _votes(str(aspect), given) for aspect, given in row["votes"].items()}
    if not votes:
        raise ValueError("no votes")
    return GroupChoice(
        id=str(row.get("id", default_id)), query=query, a=groups["a"], b=groups["b"], votes=votes
    )


def _votes(aspect: str, given: Mapping[str, Any]) -> tuple[int, int]:
    if set(given) != {"a", "b"}:
        raise ValueError(f"votes on {aspect!r} are for {sorted(given)}")
    counts = given["a"], given["b"]
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) == 0:
        raise ValueError(f"votes on {aspect!r} are {counts}")
    return counts


def _csv_rows(text: str, file: Path) -> list[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    columns = reader.fieldnames or []
    aspects = [name.removesuffix("_a") for name in columns if name.endswith("_a")]
    unpaired = [aspect for aspect in aspects if f"{aspect}_b" not in columns]
    if not {"query", "a", "b"} <= set(columns) or not aspects or unpaired:
        raise DataError(f"{file} has the columns {', '.join(columns)}; {_FORM}.")
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for row in reader:
        if None in row or None in row.values():
            raise DataError(
                f"{file}, line {reader.line_num} has another number of cells than the {len(columns)} columns."
            )
        try:
            votes = {
                x: {side: int(row[f"{x}_{side}"]) for side in ("a", "b")}
                for x in aspects
                if _is_voted(row, x)
            }
        except ValueError as error:
            raise DataError(f"{file}, line {reader.line_num}: {error}; {_FORM}.") from error
        named = {"id": row["id"]} if row.get("id") else {}
        groups = {side: [path.strip() for path in row[side].split(_SEPARATOR)] for side in ("a", "b")}
        rows.append((reader.line_num, {"query": row["query"], **groups, "votes": votes, **named}))
    return rows


def _is_voted(row: Mapping[str, str], aspect: str) -> bool:
    """An aspect that nobody was asked about in this row has two empty cells."""
    return bool(row[f"{aspect}_a"].strip() or row[f"{aspect}_b"].strip())
