"""Lists of a gallery as a run would make them, retrieved by a stand-in for the model, shown to every judge."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rlhf.check.report import Finding, Report
from rlhf.config.alignment import AlignmentRecipe
from rlhf.errors import DataError
from rlhf.retrieval import Gallery, Judge, PartialOrder, RetrievalQuery
from rlhf.vision.judging import Bounded, ask, combine
from rlhf.vision.orders import TASTE, Judged, Picked, arrange, pick, visit_seed

_WIDTH = 16
"""Of the stand-in's vectors."""
_AGREEMENT = 2.0
"""How much more of the plain query than of anything else is in the rephrased one's vector."""
_NUM_SHOWN = 8
T = TypeVar("T")


class Attempt(Protocol):
    """`alignment_check.Attempts`."""

    def __call__(self, key: str, work: Callable[[], T]) -> T | None:
        """What the work gives; None where it failed, which is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """What lists are made of."""

    recipe: AlignmentRecipe
    gallery: Gallery
    queries: Sequence[RetrievalQuery]
    judges: Mapping[str, Judge]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retrieved:
    """The images of one query, in semantic order."""

    query: RetrievalQuery
    items: tuple[str, ...]
    semantic: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A judge's scores of every list, and again of the first one in the opposite order."""

    scores: list[tuple[float, ...]]
    again: tuple[float, ...]
    seconds: float


def say_lists(lists: Lists, report: Report, attempt: Attempt) -> None:
    """Retrieve at random, ask every judge, and show the first list."""
    found = attempt("data.gallery", lambda: _retrieve(lists))
    if found is None:
        return
    answered: dict[str, _Asked] = {}
    for name, judge in lists.judges.items():
        asked = attempt(f"judges.{name}", lambda judge=judge: _ask(judge, found, lists.gallery))  # type: ignore[misc]
        if asked is not None:
            answered[name] = asked
            _say_judge(name, judge, asked, found, report)
            report.findings += _judge_findings(name, asked, lists.recipe.judges[name].weight)
    if lists.recipe.judges and not answered:
        report.say("list", "no judge has answered: by relevance alone")
    _say_order(_order(lists, found[0], answered), report)


def _retrieve(lists: Lists) -> list[_Retrieved]:
    """What each query would retrieve if the model knew nothing."""
    recipe, ids = lists.recipe, lists.gallery.ids()
    draw = torch.Generator().manual_seed(recipe.seed)
    matrix = _vectors(len(ids), draw)
    found = []
    for query in lists.queries:
        plain = _vectors(1, draw)
        rephrased = normalize(_AGREEMENT * plain + _vectors(1, draw), dim=1)
        seen, asked = ((matrix @ vector.T).squeeze(1) for vector in (plain, rephrased))
        picked = pick(seen, asked, recipe.orders, seed=visit_seed(recipe.seed, query.id, 0))
        if picked is None:
            raise DataError(_few(len(ids), recipe))
        found.append(_retrieved(query, picked, ids))
    return found


def _retrieved(query: RetrievalQuery, picked: Picked, ids: Sequence[str]) -> _Retrieved:
    items = tuple(ids[place] for place in picked.places.tolist())
    return _Retrieved(query=query, items=items, semantic=picked.semantic)


def _vectors(number: int, draw: torch.Generator) -> Tensor:
    return normalize(torch.randn(number, _WIDTH, generator=draw), dim=1)


def _few(number: int, recipe: AlignmentRecipe) -> str:
    return (
        f"data.gallery: {number} images, of which a visit sees the share {recipe.orders.gallery_share:g}, do not fill "
        f"a list of {recipe.orders.num_items}: raise orders.gallery_share, or lower orders.u or orders.v."
    )


def _ask(judge: Judge, found: Sequence[_Retrieved], gallery: Gallery) -> _Asked:
    """Raises JudgeError for scores that training would refuse."""
    pictures = [gallery.load(one.items) for one in found]
    began = time.perf_counter()
    scores = [
        ask(judge, one.query.text, one.items, images) for one, images in zip(found, pictures, strict=True)
    ]
    seconds = time.perf_counter() - began
    first = found[0]
    again = ask(judge, first.query.text, first.items[::-1], pictures[0][::-1])[::-1]
    return _Asked(scores=scores, again=again, seconds=seconds)


def _say_judge(name: str, judge: Judge, asked: _Asked, found: Sequence[_Retrieved], report: Report) -> None:
    every = [score for scores in asked.scores for score in scores]
    limits = (
        f"within {judge.range[0]:g} to {judge.range[1]:g}"
        if isinstance(judge, Bounded)
        else "no range stated"
    )
    shown = ", ".join(f"{score:.3g}" for score in asked.scores[0][:_NUM_SHOWN])
    report.say(
        f"judges.{name}",
        f"{len(every)} images: {min(every):.3g} to {max(every):.3g}, mean {fmean(every):.3g}, deviation "
        f"{pstdev(every):.2g}, {limits}; {1000 * asked.seconds / len(every):.1f} ms an image; the first of "
        f"{found[0].query.text!r}: {shown}",
        scores={one.query.text: list(scores) for one, scores in zip(found, asked.scores, strict=True)},
        version=judge.version,
    )


def _judge_findings(name: str, asked: _Asked, weight: float) -> list[Finding]:
    findings = []
    if weight and len({score for scores in asked.scores for score in scores}) == 1:
        reason = f"judges.{name}: every image has the score {asked.scores[0][0]:g}, so that it prefers none"
        findings.append(Finding(kind="judge without taste", row="", reason=reason, is_fatal=False))
    pairs = list(zip(asked.scores[0], asked.again, strict=True))
    moved = [pair for pair in pairs if not math.isclose(*pair, rel_tol=1e-4, abs_tol=1e-6)]
    if moved:
        reason = (
            f"judges.{name}: asked again in the opposite order it scored {len(moved)} of {len(pairs)} images "
            f"otherwise, such as {moved[0][0]:g}, then {moved[0][1]:g}"
        )
        findings.append(Finding(kind="judge does not repeat itself", row="", reason=reason, is_fatal=False))
    return findings


def _order(lists: Lists, first: _Retrieved, answered: Mapping[str, _Asked]) -> PartialOrder | None:
    scores = {name: asked.scores[0] for name, asked in answered.items()}
    weights = {name: lists.recipe.judges[name].weight for name in scores}
    none = (0.0,) * len(first.items)
    judged = Judged(
        items=first.items,
        semantic=first.semantic,
        taste=combine(scores, weights).total if scores else none,
        judges=scores,
        ref_scores=none,
    )
    return arrange(first.query, judged, lists.recipe.orders, version=0, fingerprint="")


def _say_order(order: PartialOrder | None, report: Report) -> None:
    if order is None:
        report.say("list", "no teacher prefers anything to anything: a run would discard it")
        return
    (u, v), pairs = order.shape, order.pairs
    num_pairs = u * v * (u + v - 2) // 2 if pairs is None else len(pairs)
    report.say(
        "list",
        f"of {order.query!r}, retrieved by a stand-in (random vectors): {u} rows of falling relevance, {v} places of "
        f"falling taste, {num_pairs} pairs",
        order=asdict(order),
    )
    for row in range(u):
        places = range(row * v, (row + 1) * v)
        shown = ", ".join(f"{order.items[place]} ({order.teacher[TASTE][place]:+.2f})" for place in places)
        report.say("list", f"row {row + 1}: {shown}")
