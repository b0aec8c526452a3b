"""The proof of a sync: learner and engines give the same log-probabilities to the same tokens."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rlhf.errors import SyncError

Logprobs = Sequence[Sequence[float]]
"""[sequence][T-1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is asked of learner and engines, how often, and how far the answers may differ."""

    sequences: Sequence[Sequence[int]]
    tolerance: float
    """Nats."""
    every: int = 1
    """Verify every n-th sync; the first always."""
    images: Sequence[Sequence[str]] = ()
    """References that each sequence shows; nothing: none shows any."""


def probe_sequences(
    vocab_size: int, *, seed: int, num: int = 4, length: int = 32, avoid: Collection[int] = ()
) -> list[list[int]]:
    """`num` fixed sequences of `length` random ids, none of them in `avoid` (special tokens)."""
    allowed = [token for token in range(vocab_size) if token not in set(avoid)]
    draw = random.Random(seed)
    return [draw.choices(allowed, k=length) for _ in range(num)]


def check_probe(
    learner: Logprobs, engines: Sequence[Logprobs], *, tolerance: float, version: int
) -> Mapping[str, float]:
    """{'sync/probe_gap': largest difference of any engine}; SyncError when an engine exceeds `tolerance`.

    Called after names, checksums and versions were found right: a gap means that something else is stale.
    """
    gaps = [probe_gap(learner, engine) for engine in engines]
    for index, gap in enumerate(gaps):
        if not gap <= tolerance:
            raise SyncError(
                f"the weights of version {version} arrived intact in engine {index}, but its "
                f"log-probabilities differ from the learner's by {gap:.3g} (tolerance {tolerance:g}). What "
                "derives from the weights is stale there (a packed or tied lm_head, quantised copies, cached "
                "prefixes), or learner and engine compute in different precision: then raise sync.tolerance."
            )
    return {"sync/probe_gap": max(gaps)}


def probe_gap(learner: Logprobs, engine: Logprobs) -> float:
    """Largest absolute difference in nats; NaN anywhere gives NaN."""
    differences = [
        abs(ours - theirs)
        for mine, other in zip(learner, engine, strict=True)
        for ours, theirs in zip(mine, other, strict=True)
    ]
    return float("nan") if any(d != d for d in differences) else max(differences)
