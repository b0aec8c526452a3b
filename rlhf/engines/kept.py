"""What top-p and top-k left of the vocabulary when a token was sampled."""

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import EngineError
from rlhf.types import Sampling


def num_reported(sampling: Sampling, vocabulary: int) -> int:
    """How many of the likeliest tokens tell the kept set: one more than the limit shows that it overflows."""
    return min(sampling.kept_limit + 1, vocabulary) if sampling.reports_kept else 0


def check_limit(sampling: Sampling, *, most: int) -> None:
    """Raise EngineError for a limit beyond what the engine was started for."""
    if sampling.kept_limit > most:
        raise EngineError(
            f"kept sets of up to {sampling.kept_limit} tokens are asked for, but the engine was started with "
            f"EngineSettings.kept_limit {most}"
        )


def kept_sets(
    ids: NDArray[np.int32], logprobs: NDArray[np.float32], *, limit: int
) -> tuple[NDArray[np.int32], ...]:
    """[T] of the ids with a finite log-probability, ascending; none where they are more than `limit`.

    ids, logprobs [T, K]: the sampled token and the likeliest, repetitions allowed.
    """
    absent = np.iinfo(np.int32).max
    finite = np.isfinite(logprobs)
    used = finite.any(0)
    ordered = np.sort(np.where(finite[:, used], ids[:, used], absent), axis=1)
    is_new = np.diff(ordered, axis=1, prepend=-1) > 0
    is_kept = is_new & (ordered < absent)
    is_kept &= is_kept.sum(1, keepdims=True) <= limit
    return tuple(np.split(ordered[is_kept], np.cumsum(is_kept.sum(1))[:-1]))
