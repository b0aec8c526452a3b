"""The reference engine shows images: as the learner scores them, without tokens of images, in bounded memory."""

import asyncio
import gc
import itertools
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rlhf.config.schema import EngineConfig, ModelConfig
from rlhf.data.packing import pack
from rlhf.engines.hf import HfEngine
from rlhf.engines.settings import EngineSettings
from rlhf.episodes.runner import SingleTurn
from rlhf.errors import EngineError
from rlhf.interfaces import GenerateRequest
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.types import Prompt, RewardResult, Sampling, TrajectoryGroup
from rlhf.weight_sync.files import FileSender, read_weights
from tests.tiny import picture, save_tiny, save_tiny_vision
from tests.unit.learner.conftest import place  # noqa: F401
from tests.unit.learner.ranks import plan, policy_gradient
from tests.vision_rows import prompts, renderer, seen_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision"))


def start(folder: Path) -> HfEngine:
    settings = EngineSettings(
        model=str(folder), config=EngineConfig(kind="hf"), device="cpu", dtype="float32", max_model_len=256,
        max_images=2,
    )  # fmt: skip
    return HfEngine(settings, read=read_weights)


class Door:
    """interfaces.Sampler over one engine."""

    def __init__(self, engine: HfEngine) -> None:
        self.engine = engine

    async def generate(self, request: GenerateRequest):
        (done,) = [done async for _, done in self.engine.generate_many([request])]
        return done


async def answers(
    engine: HfEngine, folder: Path, asked: list[Prompt], *, size: int = 4, **changes
) -> list[TrajectoryGroup]:
    shown = renderer(folder)
    assert shown.vision is not None
    sampling = Sampling(max_tokens=6, banned=shown.vision.banned, stop_token_ids=shown.stop_token_ids)
    rollout = SingleTurn(Door(engine), renderer=shown)
    found = []
    for index, prompt in enumerate(asked):
        made = await rollout(prompt, seeds=list(range(size)), sampling=replace(sampling, **changes))
        scored = tuple(replace(t, reward=RewardResult(value=0.0)) for t in made)
        found.append(TrajectoryGroup(index=index, prompt=prompt, trajectories=scored))
    return found


def test_engine_and_learner_agree_and_go_on_agreeing(folder: Path, tmp_path: Path, place: RankPlace) -> None:  # noqa: F811
    engine, asked = start(folder), prompts(tmp_path)
    learner = FsdpLearner(plan(ModelConfig(path=str(folder), dtype="float32")), place)
    learner.open_sender(lambda rank, _: FileSender(run="unit", rank=rank))

    async def one_round(version: int) -> None:
        if version:
            learner.update([[seen_batch(folder, asked, seed=version)]], policy_gradient)
            await engine.pause()
            await engine.begin_update()
            info = learner.send(version)
            assert info is not None
            await engine.update(info)
            await engine.finish_update(version)
            await engine.resume()
            learner.release_weights()
        batch = pack(await answers(engine, folder, asked), vision=renderer(folder).vision)
        (logprobs,) = learner.logprobs([batch])
        assert float((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs().max()) < 1e-4
        sequences = [(*renderer(folder).encode_prompt(p), 20, 21, 22) for p in asked]
        images = [p.images for p in asked]
        ours, theirs = learner.probe(sequences, images), await engine.probe(sequences, images)
        gaps = (abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
        assert max(gaps) < 1e-4

    for version in range(3):
        asyncio.run(one_round(version))


def test_prompts_of_one_length_are_decoded_together_as_alone(folder: Path, tmp_path: Path) -> None:
    engine, shown = start(folder), renderer(folder)
    one = prompts(tmp_path)[1]
    same = [replace(one, id=str(i), images=(picture(tmp_path, 20 + i, (48, 32)),)) for i in range(3)]
    requests = [
        GenerateRequest(
            prompt_token_ids=shown.encode_prompt(p),
            sampling=Sampling(max_tokens=5),
            seeds=(1, 2),
            images=p.images,
        )
        for p in same
    ]

    async def ask(some) -> dict[int, list]:
        return {index: done async for index, done in engine.generate_many(some)}

    together = asyncio.run(ask(requests))
    alone = [asyncio.run(ask([request]))[0] for request in requests]
    for index, expected in enumerate(alone):
        for found, single in zip(together[index], expected, strict=True):
            assert found.token_ids == single.token_ids
            assert found.logprobs == pytest.approx(single.logprobs, abs=1e-4)
    assert together[0][0].logprobs != pytest.approx(together[1][0].logprobs, abs=1e-4)


def test_banned_ids_are_never_sampled(folder: Path, tmp_path: Path) -> None:
    every = tuple(range(3, 128))
    (group,) = asyncio.run(
        answers(start(folder), folder, prompts(tmp_path)[:1], size=8, banned=every, temperature=2.0)
    )
    assert all(set(t.segments[0].token_ids[-1:]) <= {0, 1, 2} for t in group.trajectories)


def test_changed_images_are_refused(folder: Path, tmp_path: Path) -> None:
    request = GenerateRequest(
        prompt_token_ids=renderer(folder).encode_prompt(prompts(tmp_path)[1]),
        sampling=Sampling(max_tokens=2),
        seeds=(0,),
        images=(picture(tmp_path, 9, (64, 64)),),
    )
    with pytest.raises(EngineError, match=r"runs of \[6\] image tokens for 1 images .* of \[16\]"):
        asyncio.run(Door(start(folder)).generate(request))


def test_a_model_that_sees_nothing_refuses_images(tmp_path: Path) -> None:
    request = GenerateRequest(
        prompt_token_ids=(5, 6), sampling=Sampling(max_tokens=2), seeds=(0,), images=("x.png",)
    )
    with pytest.raises(EngineError, match="the model of the engine sees none"):
        asyncio.run(Door(start(save_tiny(tmp_path))).generate(request))


@pytest.mark.slow
def test_a_thousand_rollouts_leave_memory_flat(folder: Path, tmp_path: Path) -> None:
    engine, one = start(folder), prompts(tmp_path)[1]
    paths = itertools.cycle([picture(tmp_path, seed, (64, 64)) for seed in range(8)])

    async def roll_out(num_groups: int) -> None:
        for path in itertools.islice(paths, num_groups):
            await answers(engine, folder, [replace(one, images=(path,))], size=10)

    def resident_mb() -> float:
        gc.collect()
        return psutil.Process().memory_info().rss / 2**20

    asyncio.run(roll_out(30))
    before = resident_mb()
    asyncio.run(roll_out(100))
    grown = resident_mb() - before
    assert grown < 8, grown
