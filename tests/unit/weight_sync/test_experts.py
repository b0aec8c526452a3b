"""A mixture of experts between a learner and a real vLLM: its weights arrive, its experts are chosen again."""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.batch import Batch
from rlhf.config.schema import EngineConfig, ModelConfig
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.errors import SyncError
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.machine import free_port
from rlhf.types import Completion
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe, probe_gap, probe_sequences
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import REPOSITORY, LiveEngine, OneEngine, faulty_plugin, weight_files
from tests.tiny import MOE, save_tiny
from tests.unit.engines.mixtures import ask, collect, random_prompt
from tests.unit.learner.ranks import example_batch, plan, policy_gradient

pytestmark = pytest.mark.slow
SHAPE = MOE | {"num_hidden_layers": 4, "num_experts": 16, "num_experts_per_tok": 4}
SEQUENCES = probe_sequences(96, seed=0, num=4, length=32)


@dataclass(frozen=True, slots=True)
class RealLearner:
    """weight_sync.verified.SendingLearner over one learner rank of this process."""

    learner: FsdpLearner

    async def send_weights(self, version: int) -> Mapping[str, Any] | None:
        return self.learner.send(version)

    async def release_weights(self) -> None:
        self.learner.release_weights()

    async def offload(self) -> None:
        self.learner.offload()

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        return self.learner.probe(sequences, images)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path_factory.mktemp("moe"), **SHAPE)
    config = EngineConfig(max_sequences=32, kv_cache_mb=64)
    settings = EngineSettings(
        model=str(folder), config=config, device="cpu", dtype="float32", max_model_len=256,
        record_routing=True, transfer="cpu_faulty",
    )  # fmt: skip
    plugin = faulty_plugin(tmp_path_factory.mktemp("plugin"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(config, "cpu", record_routing=True).items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [str(REPOSITORY), str(plugin), *sys.path])
        loop = asyncio.new_event_loop()
        engine = LiveEngine(loop.run_until_complete(VllmEngine.start(settings)), loop, folder)
        yield engine
        engine.run(engine.engine.close())
        loop.close()
    assert weight_files() == []


@pytest.fixture
def learner(live: LiveEngine) -> Iterator[FsdpLearner]:
    yield start(live, "float32")
    dist.destroy_process_group()


def start(live: LiveEngine, dtype: Any) -> FsdpLearner:
    model = ModelConfig(path=str(live.folder), dtype=dtype)
    learner = FsdpLearner(plan(model), RankPlace(port=free_port()))
    learner.open_sender(lambda rank, _: FileSender(run="unit", rank=rank))
    return learner


def publish(live: LiveEngine, learner: FsdpLearner, version: int) -> Mapping[str, float]:
    probe = Probe(sequences=SEQUENCES, tolerance=1e-3)
    sync = VerifiedSync(RealLearner(learner), OneEngine(live.engine), probe=probe)
    metrics: Mapping[str, float] = live.run(sync.publish(version))
    return metrics


def test_engine_has_the_experts_of_the_learner_after_every_update(live, learner) -> None:
    for version in (1, 2):
        learner.update([[example_batch(seed=version)]], policy_gradient)
        assert probe_gap(learner.probe(SEQUENCES), live.run(live.engine.probe(SEQUENCES))) > 0.1
        assert publish(live, learner, version)["sync/probe_gap"] < 1e-4


def test_experts_that_stay_unpacked_are_caught_by_the_probe(live, learner) -> None:
    live.run(live.engine.init_transfer({"fault": "unnoticed_stale_head"}))
    learner.update([[example_batch(seed=5)]], policy_gradient)
    with pytest.raises(SyncError, match="arrived intact in engine 0"):
        publish(live, learner, 5)
    live.run(live.engine.init_transfer({"fault": ""}))
    assert publish(live, learner, 6)["sync/probe_gap"] < 1e-4


def test_gap_to_the_sampler_is_smaller_with_its_routing(live, learner, capsys) -> None:
    publish(live, learner, 7)
    batch = sampled(live)
    gaps = {"float32": gap(learner, batch)}
    dist.destroy_process_group()
    gaps["bfloat16"] = gap(start(live, "bfloat16"), batch)
    with capsys.disabled():
        for dtype, (own, kept) in gaps.items():
            print(  # the figures that the test is there for
                f"\n|learner - sampler| over {int(batch.loss_mask.sum())} tokens, learner in {dtype}: "
                f"own routing mean {own.mean():.2e} max {own.max():.2e}, "
                f"kept routing mean {kept.mean():.2e} max {kept.max():.2e}"
            )
    assert max(part.max() for part in gaps["float32"]) < 1e-4
    own, kept = gaps["bfloat16"]
    assert kept.mean() < own.mean()


def gap(learner: FsdpLearner, batch: Batch) -> tuple[Tensor, Tensor]:
    """|log-probability of the learner - of the sampler| per trained token: (own routing, the sampler's)."""
    own, kept = (learner.logprobs([b])[0] for b in (replace(batch, routing=None), batch))
    return tuple((found - batch.rollout_logprobs)[batch.loss_mask].abs() for found in (own, kept))  # type: ignore[return-value]


def sampled(live: LiveEngine) -> Batch:
    """Rows that the engine samples now, with the experts it used."""
    requests = [ask(random_prompt(i, 20), samples=8, max_tokens=48) for i in range(4)]
    groups = live.run(collect(live.engine, requests))
    rows = [
        (group, list(request.prompt_token_ids), completion)
        for group, (request, completions) in enumerate(zip(requests, groups, strict=True))
        for completion in completions
    ]
    return _pack(rows)


def _pack(rows: Sequence[tuple[int, list[int], Completion]]) -> Batch:
    lengths = torch.tensor([len(prompt) + len(c.token_ids) for _, prompt, c in rows])
    segment_ids = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    blank = [torch.zeros(len(prompt)) for _, prompt, _ in rows]
    size = int(lengths.sum())
    masks = [torch.cat([b, torch.ones(len(c.token_ids))]) for b, (_, _, c) in zip(blank, rows, strict=True)]
    return Batch(
        tokens=torch.tensor([token for _, prompt, c in rows for token in (*prompt, *c.token_ids)]),
        positions=torch.arange(size) - starts[segment_ids],
        segment_ids=segment_ids,
        loss_mask=torch.cat(masks).bool(),
        rollout_logprobs=torch.cat(
            [torch.cat([b, torch.tensor(c.logprobs)]) for b, (_, _, c) in zip(blank, rows, strict=True)]
        ),
        versions=torch.zeros(size, dtype=torch.long),
        rewards=torch.zeros(len(rows)),
        group_ids=torch.tensor([group for group, _, _ in rows]),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        routing=torch.cat([torch.from_numpy(c.routing) for _, _, c in rows]),
    )
