"""From our sampling settings to vLLM's."""

import math
from typing import Any

from rlhf.errors import EngineError
from rlhf.types import Sampling


def sampling_params(sampling: Sampling, seed: int, *, num_logprobs: int = 0) -> Any:
    """One sample's SamplingParams; `num_logprobs` of the likeliest tokens are reported beside the sampled one.

    EngineError for image codes: vLLM would draw them without their rule.
    """
    if sampling.image_codes is not None:
        raise EngineError("vLLM does not draw image codes (sampling.image_codes): set engine.kind: hf")
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,
        seed=seed,
        logprobs=num_logprobs,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
        logit_bias=dict.fromkeys(sampling.banned, -math.inf) or None,
    )
