"""Ways to retrieve beauty without training: words at query time, a cascade of scorers, and what nobody can beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.vision.evaluate import Facts
from rlhf.vision.teaching import Panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Untrained:
    """A row of the table that needs no training."""

    places: Tensor
    """[q, k]."""
    calls: str
    """Model calls for a query beside its own embedding."""
    depth: int | None = None
    """Images that a cascade scores."""


def untrained_rows(
    facts: Facts, texts: tuple[Tensor, Tensor], panel: Panel, cascade: Sequence[int], *, top_k: int
) -> dict[str, Untrained]:
    """By name. `texts` are plain and rephrased queries [q, d], embedded as the gallery in `facts` was."""
    plain, rephrased = (queries @ facts.reference.T for queries in texts)
    rows = {
        "pre-trained": Untrained(places=plain.topk(top_k, dim=1).indices, calls="0"),
        "+ rephrase": Untrained(places=rephrased.topk(top_k, dim=1).indices, calls="1 LLM"),
    }
    for depth in cascade:
        found = rescored(facts, plain, panel, depth=depth, top_k=top_k)
        rows[f"cascade {depth}"] = Untrained(places=found, calls=f"{depth} scores", depth=depth)
    for depth in cascade:
        found = rescored(facts, rephrased, panel, depth=depth, top_k=top_k)
        rows[f"rephrase + cascade {depth}"] = Untrained(
            places=found, calls=f"1 LLM, {depth} scores", depth=depth
        )
    gain = facts.relevant * (facts.taste - facts.taste.min() + 1)
    rows["oracle"] = Untrained(places=gain.topk(top_k, dim=1).indices, calls="-")
    return rows


def rescored(facts: Facts, cosines: Tensor, panel: Panel, *, depth: int, top_k: int) -> Tensor:
    """[q, k] of the cosines [q, n]: what a cascade answers to every query."""
    ids = facts.heldout.gallery.ids()
    texts = [query.text for query in facts.heldout.queries]
    first = cosines.topk(min(depth, len(ids)), dim=1).indices
    return torch.stack([reordered(ids, *one, panel)[:top_k] for one in zip(texts, first, strict=True)])


def reordered(ids: Sequence[str], query: str, first: Tensor, panel: Panel) -> Tensor:
    """[m]: the first images [m] of a query, in the order of the judges' taste."""
    scores = panel.scores(query, [ids[place] for place in first.tolist()])
    taste = torch.tensor(panel.taste(scores))
    return first[taste.sort(descending=True, stable=True).indices]
