"""Recorded samples, made small enough to travel inside the report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

BUDGET = 1_200_000
"""Characters of JSON that samples may take in the page; the rest stays in `samples/`."""
_ROW_BUDGET = BUDGET // 12


def embed_samples(entries: Sequence[Mapping[str, Any]], *, budget: int = BUDGET) -> dict[str, Any]:
    """The samples as the page reads them.

    Within the budget every step keeps as many as every other, and where even one per step is too much,
    steps are left out evenly. `vocabulary` maps token id -> text; runs are [value, length, ...].
    """
    vocabulary: dict[int, str] = {}
    kept: list[tuple[int, int, dict[str, Any]]] = []
    used = 0
    for index in _by_importance(entries):
        row = _row(entries[index], vocabulary)
        size = len(json.dumps(row, ensure_ascii=False))
        if used + size > budget:
            break
        used += size
        kept.append((entries[index]["step"], index, row))
    rows = [row for _, _, row in sorted(kept, key=lambda item: item[:2])]
    return {"total": len(entries), "vocabulary": vocabulary, "rows": rows}


def _by_importance(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices: the first of each step, then the second, ...; within a round, steps far apart first."""
    steps: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        steps.setdefault(entry["step"], []).append(index)
    spread = sorted(enumerate(sorted(steps)), key=lambda item: _van_der_corput(item[0]))
    ranked = []
    for place, (_, step) in enumerate(spread):
        # best, worst and random alternate, so that a small share of a step shows all three
        picks = sorted(_rank_in_pick(entries, steps[step]))
        ranked += [(rank, place, index) for rank, (_, _, index) in enumerate(picks)]
    return [index for _, _, index in sorted(ranked)]


def _rank_in_pick(entries: Sequence[Mapping[str, Any]], indices: Iterable[int]) -> list[tuple[int, int, int]]:
    order = {"random": 0, "worst": 1, "best": 2}
    seen: dict[str, int] = {}
    ranks = []
    for index in indices:
        pick = entries[index]["pick"]
        ranks.append((seen.get(pick, 0), order.get(pick, 3), index))
        seen[pick] = seen.get(pick, 0) + 1
    return ranks


def _van_der_corput(number: int) -> float:
    value, scale = 0.0, 0.5
    while number:
        value += scale * (number & 1)
        number >>= 1
        scale /= 2
    return value


def _row(entry: Mapping[str, Any], vocabulary: dict[int, str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: value for name, value in entry.items() if name not in ("segments", "completion")
    }
    row["tokens"] = sum(sum(s["loss_mask"]) for s in entry["segments"])
    row["segments"] = [_segment(segment, vocabulary) for segment in entry["segments"]]
    if len(json.dumps(row, ensure_ascii=False)) > _ROW_BUDGET:
        row["segments"], row["turns"] = [], []
        row["completion"] = entry["completion"][: _ROW_BUDGET // 4]
    return row


def _segment(segment: Mapping[str, Any], vocabulary: dict[int, str]) -> dict[str, Any]:
    ids, pieces, mask = segment["token_ids"], segment["pieces"], segment["loss_mask"]
    # A token's text can depend on its neighbours (bytes of one character): such places are listed.
    odd = [
        [place, piece]
        for place, (token_id, piece) in enumerate(zip(ids, pieces, strict=True))
        if vocabulary.setdefault(token_id, piece) != piece
    ]
    logprobs = [
        None if value is None else round(value * 1000)
        for value, sampled in zip(segment["rollout_logprobs"], mask, strict=True)
        if sampled
    ]
    return {
        "ids": ids,
        "odd": odd,
        "mask": _runs(mask),
        "versions": _runs(segment["versions"]),
        "logprobs": logprobs,
    }


def _runs(values: Sequence[int]) -> list[int]:
    return [part for value, run in groupby(values) for part in (value, len(list(run)))]
