import asyncio

import pytest

from rlhf.engines.scripted import ScriptedEngine
from rlhf.interfaces import GenerateRequest
from rlhf.types import Sampling

REQUEST = GenerateRequest(
    prompt_token_ids=(5, 6), sampling=Sampling(max_tokens=3, stop_token_ids=(1,)), seeds=(0, 9)
)


def script(request, seed):
    return ([7, 1], [-0.5, -0.1]) if seed == 0 else ([7, 8, 9, 1], [-1.0] * 4)


async def all_of(engine, requests):
    return {index: group async for index, group in engine.generate_many(requests)}


def test_scripted_engine_cuts_at_the_limit_and_knows_its_stop_tokens():
    stopped, cut = asyncio.run(all_of(ScriptedEngine(script), [REQUEST]))[0]
    assert (stopped.token_ids, stopped.finish_reason) == ((7, 1), "stop")
    assert (cut.token_ids, cut.finish_reason) == ((7, 8, 9), "length")


def test_scripted_engine_labels_tokens_with_the_version_that_came():
    async def scenario():
        engine = ScriptedEngine(script)
        await engine.begin_update()
        await engine.update({"version": 4})
        await engine.finish_update(4)
        return await engine.weight_version(), (await all_of(engine, [REQUEST]))[0][0].versions

    assert asyncio.run(scenario()) == (4, (4, 4))


def test_scripted_engine_answers_nothing_while_paused():
    async def scenario():
        engine = ScriptedEngine(script)
        await engine.pause()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_of(engine, [REQUEST]), 0.05)
        await engine.resume()
        return await all_of(engine, [REQUEST])

    assert len(asyncio.run(scenario())) == 1
