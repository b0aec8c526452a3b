"""From a query to a partial order: retrieve, pick, judge, arrange (2406.09397, figure 4)."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from rlhf.config.alignment import OrdersConfig
from rlhf.errors import DataError, StaleError
from rlhf.retrieval import PartialOrder, RetrievalQuery
from rlhf.rollout.group import sample_seed
from rlhf.vision.gallery import GalleryIndex, random_share

SEMANTIC, TASTE = "semantic", "taste"
"""Names of the two orders among an order's teachers; every judge stands there by its own name, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Images of one query in semantic order, best first."""

    places: Tensor
    """[u v] places in the gallery."""
    semantic: tuple[float, ...]


def pick(plain: Tensor, rephrased: Tensor, config: OrdersConfig, *, seed: int) -> Picked | None:
    """Every stride-th image of what both texts retrieve, by the rephrased text's cosine; None: too few images.

    `plain` and `rephrased` are cosines [n] with the whole gallery. The seed chooses the share of the gallery.
    """
    allowed = random_share(len(plain), config.gallery_share, seed=seed)
    texts = {"plain": [plain], "rephrased": [rephrased], "union": [plain, rephrased]}[config.pool]
    depth = min(config.num_items * config.stride, int(allowed.sum()))
    found = torch.zeros_like(allowed)
    for cosines in texts:
        found[
            cosines.masked_fill(~allowed, -torch.inf).sort(descending=True, stable=True).indices[:depth]
        ] = True
    pool = found.nonzero().squeeze(1)
    if len(pool) < config.num_items:
        return None
    teacher = plain if config.pool == "plain" else rephrased
    pool = pool[teacher[pool].sort(descending=True, stable=True).indices]
    step = len(pool) / config.num_items
    offset = (seed % 1009) / 1009 * step
    chosen = pool[[int(offset + i * step) for i in range(config.num_items)]]
    return Picked(places=chosen, semantic=tuple(teacher[chosen].tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the teachers say of the images picked for a query, image by image."""

    items: tuple[str, ...]
    semantic: tuple[float, ...]
    taste: tuple[float, ...]
    """All judges together."""
    judges: Mapping[str, tuple[float, ...]]
    """Each by itself, as it scored."""
    ref_scores: tuple[float, ...]


def arrange(
    query: RetrievalQuery, judged: Judged, config: OrdersConfig, *, version: int, fingerprint: str
) -> PartialOrder | None:
    """The u x v grid of images given in semantic order; None when no teacher prefers anything to anything.

    u chunks of v images follow each other; within a chunk taste decides. What a teacher holds equal is no pair:
    then the pairs are written out.
    """
    u, v = config.u, config.v
    places = []
    for row in range(u):
        chunk = range(row * v, (row + 1) * v)
        places += sorted(chunk, key=lambda place: -judged.taste[place])
    semantic = [judged.semantic[place] for place in places]
    taste = [judged.taste[place] for place in places]
    teacher = {SEMANTIC: judged.semantic, TASTE: judged.taste, **judged.judges}
    every = list(ordered_places(u, v))
    pairs = tuple(
        (a, b)
        for a, b in every
        if (taste if a // v == b // v else semantic)[a] > (taste if a // v == b // v else semantic)[b]
    )
    if not pairs:
        return None
    return PartialOrder(
        query_id=query.id,
        query=query.text,
        items=tuple(judged.items[place] for place in places),
        shape=(u, v),
        ref_scores=tuple(judged.ref_scores[place] for place in places),
        teacher={name: tuple(scores[place] for place in places) for name, scores in teacher.items()},
        pairs=None if len(pairs) == len(every) else pairs,
        fingerprint=fingerprint,
        version=version,
    )


def ordered_places(u: int, v: int) -> Iterator[tuple[int, int]]:
    """(better, worse) of a grid: all pairs within rows, and within columns."""
    for a, b in combinations(range(u * v), 2):
        if a // v == b // v or a % v == b % v:
            yield a, b


def visit_seed(run_seed: int, query_id: str, index: int) -> int:
    """What chooses the images of one visit to a query: a function of what is visited, never of when."""
    return sample_seed(run_seed, query_id, index, 0)


def fingerprint_of(**parts: str | int | float | Mapping[str, object]) -> str:
    """16 hexadecimal digits that stand for what made a list: model, gallery, judges, rephraser, settings."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def refuse_stale(orders: Sequence[PartialOrder], *, fingerprint: str, oldest: int | None = None) -> None:
    """Raises StaleError for a list that others made, or that was retrieved before weight version `oldest`."""
    for order in orders:
        if order.fingerprint != fingerprint:
            raise StaleError(
                f"the list of query {order.query_id!r} has the fingerprint {order.fingerprint!r}, this run has "
                f"{fingerprint!r}: model, gallery, judges, rephraser or orders are not those that made it, and its "
                "reference scores are wrong here. Nothing was trained. Make the lists anew with "
                "`rlhf vision build-orders`, or name the file that belongs to this recipe."
            )
        if oldest is not None and order.version < oldest:
            raise StaleError(
                f"the list of query {order.query_id!r} was retrieved at weight version {order.version}, before "
                f"{oldest}, the oldest that schedule.max_staleness and orders.refresh_every allow. Nothing was trained."
            )


def write_orders(file: Path, orders: Sequence[PartialOrder]) -> None:
    """One JSON line per list; the file is complete or absent."""
    partial = file.with_name(file.name + ".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("".join(json.dumps(asdict(order)) + "\n" for order in orders), encoding="utf-8")
    partial.rename(file)


def read_orders(file: Path) -> list[PartialOrder]:
    """What `write_orders` wrote. Raises DataError naming the line that is no list."""
    orders = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"orders.path: {str(file)!r} cannot be read ({error}). Make it with `rlhf vision build-orders`."
        ) from None
    for number, line in enumerate(lines, start=1):
        try:
            orders.append(_order_of(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"orders.path: {file}, line {number} is no partial order: {error}") from error
    if not orders:
        raise DataError(f"orders.path: {str(file)!r} holds no list.")
    return orders


def _order_of(raw: Mapping[str, object]) -> PartialOrder:
    values = dict(raw)
    for name in ("items", "shape", "ref_scores"):
        values[name] = tuple(values[name])  # type: ignore[arg-type]
    teacher: Mapping[str, Sequence[float]] = values["teacher"]  # type: ignore[assignment]
    values["teacher"] = {name: tuple(scores) for name, scores in teacher.items()}
    if (pairs := values.get("pairs")) is not None:
        values["pairs"] = tuple((int(a), int(b)) for a, b in pairs)  # type: ignore[attr-defined]
    return PartialOrder(**values)  # type: ignore[arg-type]


def reference_scores(
    index: GalleryIndex, query: Tensor, places: Tensor, *, scale: float
) -> tuple[float, ...]:
    """exp(logit_scale) cos of these images with a query [d], both embedded by the reference."""
    return tuple((scale * (index.matrix[places] @ query)).tolist())
