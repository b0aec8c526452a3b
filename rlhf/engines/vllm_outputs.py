"""From vLLM's request outputs to ours."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.engines.kept import kept_sets
from rlhf.errors import EngineError
from rlhf.types import Completion, FinishReason, Sampling


def completion(output: Any, sampling: Sampling, *, routing: NDArray[np.int16] | None) -> Completion:
    """The Completion of a finished request. Raises EngineError for one that cannot be right."""
    sample = output.outputs[0]
    reported = np.array(sample.logprobs.logprobs).reshape(len(sample.logprobs), -1)
    logprobs = tuple(reported[:, 0].tolist())
    if len(logprobs) != len(sample.token_ids) or not all(map(math.isfinite, logprobs)):
        raise EngineError(
            f"request {output.request_id}: {len(sample.token_ids)} tokens, {len(logprobs)} logprobs, "
            f"{sum(not math.isfinite(p) for p in logprobs)} of them not finite. The weights may hold NaN."
        )
    if sample.weight_versions is None:
        raise EngineError(f"request {output.request_id}: the engine core reported no weight version")
    kept = None
    if reported.shape[1] > 1:
        ids = np.array(sample.logprobs.token_ids, np.int32).reshape(reported.shape)
        kept = kept_sets(ids, reported, limit=sampling.kept_limit)
    spans = [(int(span.version), span.end - span.start) for span in sample.weight_versions]
    return Completion(
        token_ids=tuple(sample.token_ids),
        logprobs=logprobs,
        versions=tuple(version for version, length in spans for _ in range(length)),
        finish_reason=_finish_reason(sample.finish_reason, output.request_id),
        routing=routing,
        kept=kept,
        num_cached=output.num_cached_tokens,
    )


def _finish_reason(reason: str | None, request_id: str) -> FinishReason:
    match reason:
        case "stop":
            return "stop"
        case "length":
            return "length"
        case _:
            raise EngineError(
                f"request {request_id}: the engine ended it with {reason!r}, expected stop or length"
            )


def prompt_logprobs(output: Any) -> list[float]:
    """[T-1]: log-probability of each prompt token after the first."""
    ids = output.prompt_token_ids
    return [float(p[token].logprob) for token, p in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
