"""Rows of one batch that were sampled at different temperatures."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.batch import Batch
from rlhf.config.schema import EngineConfig, ModelConfig
from rlhf.data.packing import pack, split_microbatches
from rlhf.engines.hf import HfEngine
from rlhf.engines.settings import EngineSettings
from rlhf.interfaces import GenerateRequest
from rlhf.learner.attention import PACKED
from rlhf.learner.forward import PackedPolicy, score_tokens
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.types import NOT_SAMPLED, Completion, RewardResult, Sampling, Segment, Trajectory, TrajectoryGroup
from rlhf.weight_sync.files import read_weights
from tests.fakes import make_prompt
from tests.tiny import EOS, save_tiny, tiny_config, tiny_model
from tests.unit.learner.ranks import example_batch, plan

TEMPERATURES = (0.6, 1.0, 1.4)
PROMPT = (5, 9, 30, 44, 60)


def trajectory(completion: Completion, *, index: int, temperature: float) -> Trajectory:
    n, t = len(PROMPT), len(completion.token_ids)
    segment = Segment(
        token_ids=(*PROMPT, *completion.token_ids),
        loss_mask=(False,) * n + (True,) * t,
        rollout_logprobs=(0.0,) * n + completion.logprobs,
        versions=(NOT_SAMPLED,) * n + completion.versions,
    )
    return Trajectory(
        segments=(segment,),
        turns=(),
        stop=completion.finish_reason,
        sample_index=index,
        seed=index,
        temperature=temperature,
        reward=RewardResult(value=0.0),
    )


async def sampled(engine: HfEngine) -> list[TrajectoryGroup]:
    """A group of three samples of one prompt for each temperature."""
    requests = [
        GenerateRequest(
            prompt_token_ids=PROMPT,
            sampling=Sampling(max_tokens=12, temperature=t, stop_token_ids=(EOS,)),
            seeds=(1, 2, 3),
        )
        for t in TEMPERATURES
    ]
    answers = {i: group async for i, group in engine.generate_many(requests)}
    return [
        TrajectoryGroup(
            index=i,
            prompt=make_prompt(),
            trajectories=tuple(
                trajectory(c, index=j, temperature=temperature) for j, c in enumerate(answers[i])
            ),
        )
        for i, temperature in enumerate(TEMPERATURES)
    ]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder: Path = save_tiny(tmp_path_factory.mktemp("model"))
    settings = EngineSettings(
        model=str(folder),
        config=EngineConfig(max_sequences=9),
        device="cpu",
        dtype="float32",
        max_model_len=64,
    )
    return pack(asyncio.run(sampled(HfEngine(settings, read=read_weights))))


def scores(part: Batch) -> torch.Tensor:
    model = tiny_model()
    model.set_attn_implementation(PACKED)
    return score_tokens(PackedPolicy(model, 5), part, "none").logprobs.detach()


def row_by_row(part: Batch, temperatures: Sequence[float]) -> torch.Tensor:
    """Each row alone through the Hugging Face model, its logits over its own temperature."""
    model, found = tiny_model(), []
    for row, temperature in enumerate(temperatures):
        ids = part.tokens[part.segment_ids == row]
        log_p = (model(input_ids=ids[None]).logits[0].double() / temperature).log_softmax(-1)
        found.append(torch.cat([log_p.new_zeros(1), log_p[:-1].gather(1, ids[1:, None])[:, 0]]))
    return torch.where(part.loss_mask, torch.cat(found), 0).detach().float()


def test_learner_and_engine_agree_in_a_batch_of_several_temperatures(batch: Batch) -> None:
    gap = (scores(batch) - batch.rollout_logprobs)[batch.loss_mask].abs()
    assert gap.max() < 1e-4
    at_one = replace(batch, temperatures=None)
    other = (scores(at_one) - batch.rollout_logprobs)[batch.loss_mask].abs()
    assert other.max() > 0.1


def test_mixed_temperatures_equal_row_by_row_hugging_face_computations(batch: Batch) -> None:
    temperatures = [t for t in TEMPERATURES for _ in range(3)]
    expected = row_by_row(batch, temperatures)
    torch.testing.assert_close(scores(batch), expected, atol=1e-5, rtol=1e-5)


def test_micro_batches_and_other_orders_of_rows_keep_each_rows_temperature(batch: Batch) -> None:
    whole = scores(batch)
    for micro in split_microbatches(replace(batch, rewards=torch.arange(9.0)), ranks=2, budget_tokens=40)[1]:
        places = batch.token_index(micro.rewards.long())
        torch.testing.assert_close(scores(micro), whole[places], atol=1e-5, rtol=1e-5)


def test_bfloat16_compute_leaves_temperatures_in_float32(place: RankPlace) -> None:
    learner = FsdpLearner(plan(ModelConfig(config=tiny_config(), dtype="bfloat16")), place)
    batch = example_batch()
    # 0.69921875 is the bfloat16 next to 0.7.
    exact, rounded = (
        torch.cat(learner.logprobs([replace(batch, temperatures=torch.full((batch.num_rows,), t))]))
        for t in (0.7, 0.69921875)
    )
    assert not torch.equal(exact, rounded)
