"""The floor of a step: raw vLLM for its tokens, a bare forward and backward over its packed rows.

`floor.py FD vllm` and `floor.py FD learner` are processes of their own, with the threads and settings of the
loop's engine and learner, and without Ray, buffer, rewards, weight sync or FSDP.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.child import Answer, serve
from rlhf.batch import Batch
from rlhf.config.schema import LearnerConfig, ModelConfig
from rlhf.engines.settings import EngineSettings
from rlhf.interfaces import GenerateRequest

Measured = tuple[float, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BareLearner:
    """What the bare forward and backward needs to know."""

    model: ModelConfig
    learner: LearnerConfig


def raw_vllm(settings: EngineSettings) -> Answer:
    """Answers requests with (seconds, token ids of each sample): one LLM.generate call with all of them."""
    from vllm import LLM

    from rlhf.engines.vllm import engine_arguments, sampling_params

    llm = LLM(**engine_arguments(settings))

    def measure(requests: Sequence[GenerateRequest]) -> Measured:
        prompts = [{"prompt_token_ids": list(r.prompt_token_ids)} for r in requests for _ in r.seeds]
        params = [sampling_params(r.sampling, seed) for r in requests for seed in r.seeds]
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return seconds, [tuple(output.outputs[0].token_ids) for output in outputs]

    return measure


def bare_learner(settings: BareLearner) -> Answer:
    """Answers a batch with (seconds of forward and backward, seconds of AdamW): the model alone."""
    import torch

    from rlhf.data.packing import split_microbatches
    from rlhf.learner.forward import PackedPolicy, score_tokens
    from rlhf.learner.model import build_model
    from rlhf.learner.optimizer import build_optimizer

    torch.set_num_threads(settings.learner.threads)
    policy = PackedPolicy(build_model(settings.model, 0, on_meta=False), settings.learner.logprob_chunk)
    policy.train()
    optimizer = build_optimizer(policy, settings.learner)

    def measure(batch: Batch) -> Measured:
        (parts,) = split_microbatches(batch, ranks=1, budget_tokens=settings.learner.microbatch_tokens)
        started = time.perf_counter()
        for part in parts:
            assert part.advantages is not None
            scores = score_tokens(policy, part, "none")
            (-(part.advantages * scores.logprobs).sum() / batch.num_tokens).backward()
        differentiated = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        return differentiated - started, time.perf_counter() - differentiated

    return measure


if __name__ == "__main__":
    serve({"vllm": raw_vllm, "learner": bare_learner}[sys.argv[2]])
