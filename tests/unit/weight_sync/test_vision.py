"""A model that sees images between a learner and a real vLLM, on a CPU without torchvision."""

import asyncio
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist

from rlhf.config.schema import EngineConfig, ModelConfig
from rlhf.data.packing import pack
from rlhf.data.vision_model import part_of
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.engines.vllm_images import one_each
from rlhf.episodes.runner import SingleTurn
from rlhf.errors import EngineError, SyncError
from rlhf.interfaces import GenerateRequest
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.machine import free_port
from rlhf.types import Prompt, RewardResult, Sampling, TrajectoryGroup
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import REPOSITORY, LiveEngine, OneEngine, faulty_plugin, weight_files
from tests.tiny import picture, save_tiny_vision
from tests.unit.learner.ranks import plan, policy_gradient
from tests.unit.weight_sync.test_experts import RealLearner
from tests.vision_rows import prompts, renderer, seen_batch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    pytest.importorskip("vllm")
    folder = save_tiny_vision(tmp_path_factory.mktemp("vision"))
    config = EngineConfig(max_sequences=32, kv_cache_mb=64)
    settings = EngineSettings(
        model=str(folder), config=config, device="cpu", dtype="float32", max_model_len=256,
        transfer="cpu_faulty", max_images=2,
    )  # fmt: skip
    plugin = faulty_plugin(tmp_path_factory.mktemp("plugin"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(config, "cpu").items():
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
    model = ModelConfig(path=str(live.folder), dtype="float32")
    learner = FsdpLearner(plan(model), RankPlace(port=free_port()))
    learner.open_sender(lambda rank, _: FileSender(run="unit", rank=rank))
    yield learner
    dist.destroy_process_group()


def probe_of(live: LiveEngine, images) -> Probe:
    asked = prompts(images)
    sequences = [(*renderer(live.folder).encode_prompt(p), *range(20, 40)) for p in asked]
    return Probe(sequences=sequences, images=[p.images for p in asked], tolerance=1e-3)


def publish(live: LiveEngine, learner: FsdpLearner, version: int, probe: Probe) -> Mapping[str, float]:
    sync = VerifiedSync(RealLearner(learner), OneEngine(live.engine), probe=probe)
    metrics: Mapping[str, float] = live.run(sync.publish(version))
    return metrics


def train(learner: FsdpLearner, live: LiveEngine, images, seed: int) -> None:
    learner.update([[seen_batch(live.folder, prompts(images), seed=seed)]], policy_gradient)


def answers(live: LiveEngine, images, *, size: int = 4) -> list[TrajectoryGroup]:
    """Real rollouts of prompts of all kinds."""
    return rollouts(live, prompts(images), size=size)


def rollouts(live: LiveEngine, asked: Sequence[Prompt], *, size: int) -> list[TrajectoryGroup]:
    """Real rollouts, through the rollout function of a run."""
    shown = renderer(live.folder)
    assert shown.vision is not None
    sampling = Sampling(max_tokens=6, banned=shown.vision.banned, stop_token_ids=shown.stop_token_ids)

    class Door:
        async def generate(self, request):
            (done,) = [done async for _, done in live.engine.generate_many([request])]
            return done

    rollout = SingleTurn(Door(), renderer=shown)
    found = []
    for index, prompt in enumerate(asked):
        made = live.run(rollout(prompt, seeds=list(range(size)), sampling=sampling))
        scored = tuple(replace(t, reward=RewardResult(value=0.0)) for t in made)
        found.append(TrajectoryGroup(index=index, prompt=prompt, trajectories=scored))
    return found


def test_rollout_and_learner_agree_before_and_after_updates(live, learner, tmp_path) -> None:
    for version in range(3):
        if version:
            train(learner, live, tmp_path, seed=version)
        assert publish(live, learner, version, probe_of(live, tmp_path))["sync/probe_gap"] < 1e-4
        batch = pack(answers(live, tmp_path), vision=renderer(live.folder).vision)
        (logprobs,) = learner.logprobs([batch])
        gap = (logprobs - batch.rollout_logprobs)[batch.loss_mask].abs()
        assert float(gap.max()) < 1e-4


def test_image_tokens_are_never_sampled(live, learner, tmp_path) -> None:
    shown = renderer(live.folder)
    assert shown.vision is not None
    head = learner.policy.module.model.get_input_embeddings().weight
    with torch.no_grad():  # tied: these ids become by far the likeliest
        head.to_local()[list(shown.vision.banned)] = head.to_local().mean(0) * 40
    publish(live, learner, 1, replace(probe_of(live, tmp_path), tolerance=10.0))
    groups = answers(live, tmp_path, size=16)
    sampled = {
        token
        for group in groups
        for t in group.trajectories
        for token, is_sampled in zip(t.segments[0].token_ids, t.segments[0].loss_mask, strict=True)
        if is_sampled
    }
    assert not sampled & set(shown.vision.banned)
    batch = pack(groups, vision=shown.vision)
    (logprobs,) = learner.logprobs([batch])
    assert float((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs().max()) < 1e-3


def test_a_stale_tower_is_caught_by_a_probe_with_an_image_alone(live, learner, tmp_path) -> None:
    seeing = probe_of(live, tmp_path)
    blind = replace(seeing, sequences=seeing.sequences[-1:], images=seeing.images[-1:])
    assert blind.images == [()]
    publish(live, learner, 1, seeing)
    live.run(live.engine.init_transfer({"fault": "stale_tower"}))
    for name, parameter in learner.policy.parameters.items():
        if part_of(name) == "vision":
            with torch.no_grad():
                parameter.to_local().mul_(1.5)
    publish(live, learner, 2, blind)
    with pytest.raises(SyncError, match="arrived intact in engine 0"):
        publish(live, learner, 3, seeing)
    live.run(live.engine.init_transfer({"fault": ""}))
    assert publish(live, learner, 4, seeing)["sync/probe_gap"] < 1e-4


def test_an_image_that_asks_for_other_tokens_is_refused(live, tmp_path) -> None:
    prompt = prompts(tmp_path)[1]
    ids = renderer(live.folder).encode_prompt(prompt)
    request = GenerateRequest(
        prompt_token_ids=ids,
        sampling=Sampling(max_tokens=2),
        seeds=(0,),
        images=(picture(tmp_path, 9, (64, 64)),),
    )

    async def ask() -> None:
        async for _ in live.engine.generate_many([request]):
            pass

    with pytest.raises(EngineError, match="they part at id"):
        live.run(ask())


def test_a_thousand_rollouts_leave_memory_flat(live, tmp_path) -> None:
    one = prompts(tmp_path)[1]
    shown = [replace(one, images=(picture(tmp_path, seed, (64, 64)),)) for seed in range(8)]

    def private_mb() -> float:
        gc.collect()
        ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(process.memory_full_info().uss for process in ours) / 2**20

    def roll_out(num_groups: int) -> None:
        for first in range(0, num_groups, len(shown)):
            rollouts(live, shown[: num_groups - first], size=10)

    roll_out(40)
    before = private_mb()
    roll_out(100)
    grown = private_mb() - before
    assert grown < 12, grown


def test_runs_of_image_tokens_become_one_each() -> None:
    assert one_each([1, 9, 9, 9, 2, 9, 3], image_id=9) == [1, 9, 2, 9, 3]
    assert one_each([4, 4, 9, 9], image_id=9) == [4, 4, 9]
