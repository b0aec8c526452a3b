"""A real engine: a collection that was stopped and taken up again has the bytes of one that was not."""

import asyncio

import pytest

from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import SingleTurn
from rlhf.offline.collect import CollectPlan, collect, read_collected
from rlhf.types import Message, Prompt, RewardResult, Sampling


class Waves:
    """An interfaces.Sampler: requests of one tick go to the engine in one call."""

    def __init__(self, engine):
        self._engine = engine
        self._waiting = []

    async def generate(self, request):
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(0.01, lambda: setattr(self, "_task", loop.create_task(self._send())))
        self._waiting.append((request, loop.create_future()))
        return await self._waiting[-1][1]

    async def _send(self):
        waiting, self._waiting = self._waiting, []
        async for index, completions in self._engine.generate_many([request for request, _ in waiting]):
            waiting[index][1].set_result(completions)


class Reward:
    def __init__(self, fails_at=-1):
        self.num_left = fails_at

    async def score(self, group):
        if self.num_left == 0:
            raise RuntimeError("stopped")
        self.num_left -= 1
        values = [float(sum(map(ord, t.completion)) % 2) for t in group.trajectories]
        return [RewardResult(value=v, parts={"task": v}) for v in values]


@pytest.mark.slow
def test_a_stopped_collection_ends_in_the_bytes_of_one_that_was_not(live_vllm, tmp_path):
    renderer = Renderer(model_folder=str(live_vllm.folder), template="{prompt}=")
    prompts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=f"the same long beginning of all {i}"),))
        for i in range(6)
    ]
    plan = CollectPlan(
        prompts=prompts,
        sampling=Sampling(max_tokens=12, stop_token_ids=renderer.stop_token_ids),
        samples_per_prompt=4,
        prompts_per_chunk=2,
        forget=live_vllm.engine.reset_cache,
    )

    def run(name, reward):
        rollout = SingleTurn(Waves(live_vllm.engine), renderer=renderer)
        live_vllm.run(collect(rollout, reward, plan, tmp_path / name))

    run("whole", Reward())
    with pytest.raises(RuntimeError, match="stopped"):
        run("stopped", Reward(fails_at=3))
    assert len(list((tmp_path / "stopped").glob("chunk-*"))) == 1
    run("stopped", Reward())
    for file in (tmp_path / "whole").glob("*.json*"):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes()
    assert len({s.completion for c in read_collected(tmp_path / "whole") for s in c.samples}) > 12
