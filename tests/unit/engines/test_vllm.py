import asyncio
import os
import random

import psutil
import pytest
import torch

from rlhf.config.schema import EngineConfig
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import engine_arguments, engine_environment
from rlhf.episodes.ledger import TokenLedger
from rlhf.errors import EngineError
from rlhf.interfaces import GenerateRequest
from rlhf.rollout.statistics import rollout_metrics
from rlhf.types import Completion, Message, Prompt, Sampling, Trajectory, TrajectoryGroup
from rlhf.weight_sync.files import FileSender
from tests.live_vllm import LiveEngine, LocalLearner, changed_model, model_logprobs, weight_files
from tests.tiny import EOS

slow = pytest.mark.slow
PROMPT = Prompt(id="p", messages=(Message(role="user", content="q"),))


def request(index: int = 0, *, samples: int = 4, length: int = 40, **sampling: object) -> GenerateRequest:
    draw = random.Random(index)
    options = {"max_tokens": 24, "stop_token_ids": (EOS,)} | sampling
    return GenerateRequest(
        prompt_token_ids=tuple(draw.choices(range(3, 90), k=length)),
        sampling=Sampling(**options),
        seeds=tuple(1000 * index + i for i in range(samples)),
    )


def generate(live: LiveEngine, requests: list[GenerateRequest]) -> list[list[Completion]]:
    async def collect() -> dict[int, list[Completion]]:
        return {index: group async for index, group in live.engine.generate_many(requests)}

    finished = live.run(collect())
    return [finished[index] for index in range(len(requests))]


async def update(live: LiveEngine, learner: LocalLearner, version: int) -> None:
    info = await learner.send_weights(version)
    await live.engine.pause()
    await live.engine.begin_update()
    await live.engine.update(info)
    await live.engine.finish_update(version)
    await live.engine.resume()
    await learner.release_weights()


def test_environment_gives_the_engine_its_threads_and_lets_waiting_ones_sleep():
    environment = engine_environment(EngineConfig(threads=3), "cpu")
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert all(isinstance(value, str) for value in environment.values())


def test_environment_on_cuda_leaves_threads_alone():
    assert "OMP_NUM_THREADS" not in engine_environment(EngineConfig(), "cuda")


def test_arguments_let_the_recipe_have_the_last_word():
    config = EngineConfig(args={"block_size": 64, "swap_space": 1})
    settings = EngineSettings(model="m", config=config, device="cpu", dtype="float32", max_model_len=100)
    arguments = engine_arguments(settings)
    assert arguments["block_size"] == 64
    assert arguments["swap_space"] == 1
    assert arguments["logprobs_mode"] == "processed_logprobs"


@slow
def test_same_call_gives_same_tokens_and_bitwise_same_logprobs(live_vllm):
    requests = [request(i, samples=8) for i in range(12)]
    first = generate(live_vllm, requests)
    assert live_vllm.run(live_vllm.engine.reset_cache())
    assert generate(live_vllm, requests) == first
    assert len({c.token_ids for group in first for c in group}) > 48


@slow
def test_logprobs_are_those_of_the_model(live_vllm):
    learner = LocalLearner(changed_model(3), FileSender(run="unit", rank=0))
    live_vllm.run(update(live_vllm, learner, 1))
    asked = request(1, samples=2)
    for completion in generate(live_vllm, [asked])[0]:
        expected = model_logprobs(learner.model, [[*asked.prompt_token_ids, *completion.token_ids]])[0]
        assert completion.logprobs == pytest.approx(expected[-len(completion.token_ids) :], abs=1e-4)


@slow
@pytest.mark.parametrize("temperature", [0.6, 1.4])
def test_logprobs_are_those_of_the_model_at_the_asked_temperature(live_vllm, temperature):
    learner = LocalLearner(changed_model(3), FileSender(run="unit", rank=0))
    live_vllm.run(update(live_vllm, learner, 1))
    asked = request(1, samples=2, temperature=temperature)
    for completion in generate(live_vllm, [asked])[0]:
        ids = torch.tensor([*asked.prompt_token_ids, *completion.token_ids])
        log_p = (learner.model(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
        expected = log_p[:-1].gather(1, ids[1:, None])[-len(completion.token_ids) :, 0].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@slow
def test_logprobs_are_those_of_the_processed_distribution(live_vllm):
    for completion in generate(live_vllm, [request(2, top_k=1, temperature=0.7)])[0]:
        assert completion.logprobs == pytest.approx([0.0] * len(completion.logprobs))


@slow
def test_greedy_samples_agree(live_vllm):
    group = generate(live_vllm, [request(3, temperature=0.0)])[0]
    assert len({completion.token_ids for completion in group}) == 1


@slow
def test_completion_ends_with_its_stop_token_or_at_the_limit(live_vllm):
    group = generate(live_vllm, [request(4, samples=32, stop_token_ids=tuple(range(3, 40)))])[0]
    assert {completion.finish_reason for completion in group} == {"stop", "length"} or all(
        completion.finish_reason == "stop" for completion in group
    )
    for completion in group:
        stops = [token in range(3, 40) for token in completion.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] == (completion.finish_reason == "stop")


@slow
def test_update_in_mid_flight_splits_the_versions_and_the_request_finishes(live_vllm):
    learner = LocalLearner(changed_model(4), FileSender(run="unit", rank=0))
    asked = request(5, samples=4, max_tokens=400, stop_token_ids=())

    async def scenario() -> list[Completion]:
        await update(live_vllm, learner, 10)
        running = asyncio.create_task(anext(live_vllm.engine.generate_many([asked])))
        await asyncio.sleep(0.4)
        learner.model = changed_model(5)
        await update(live_vllm, learner, 11)
        return (await running)[1]

    for completion in live_vllm.run(scenario()):
        boundary = completion.versions.count(10)
        assert 0 < boundary < 400
        assert completion.versions == (10,) * boundary + (11,) * (400 - boundary)
        # The first tokens were scored by the old weights and the next one by the new: they tell the boundary.
        whole = [*asked.prompt_token_ids, *completion.token_ids]
        old = model_logprobs(changed_model(4), [whole])[0][-400:]
        assert completion.logprobs[:boundary] == pytest.approx(old[:boundary], abs=1e-3)
        assert completion.logprobs[boundary : boundary + 3] != pytest.approx(
            old[boundary : boundary + 3], abs=1e-3
        )


@slow
def test_submission_waits_for_the_end_of_an_update(live_vllm):
    async def scenario() -> bool:
        await live_vllm.engine.pause()
        running = asyncio.create_task(anext(live_vllm.engine.generate_many([request(6)])))
        done, _ = await asyncio.wait([running], timeout=0.5)
        await live_vllm.engine.resume()
        await running
        return bool(done)

    assert live_vllm.run(scenario()) is False


@slow
def test_probe_refuses_a_paused_engine_instead_of_hanging(live_vllm):
    async def scenario() -> None:
        await live_vllm.engine.pause()
        try:
            await live_vllm.engine.probe([[3, 4, 5]])
        finally:
            await live_vllm.engine.resume()

    with pytest.raises(EngineError, match="paused"):
        live_vllm.run(scenario())


@slow
def test_turns_of_a_growing_conversation_find_their_past_in_the_prefix_cache(live_vllm):
    async def turn(ids: tuple[int, ...], ledger: TokenLedger, segment: int) -> None:
        asked = GenerateRequest(
            prompt_token_ids=ids, sampling=Sampling(max_tokens=24, stop_token_ids=()), seeds=(len(ids),)
        )
        _, (completion,) = await anext(live_vllm.engine.generate_many([asked]))
        ledger.append(segment, completion, seen=ids, message=Message(role="assistant", content=""))

    async def episode() -> Trajectory:
        ledger = TokenLedger()
        segment = ledger.open(request(9, length=70).prompt_token_ids)
        for number in range(4):
            await turn(ledger.context(segment), ledger, segment)
            answer = request(20 + number, length=30).prompt_token_ids
            ledger.observe(segment, answer, messages=[Message(role="tool", content="")])
        segments, turns, _ = ledger.finish()
        return Trajectory(
            segments=segments, turns=turns, stop="env_done", sample_index=0, seed=0, is_episode=True
        )

    assert live_vllm.run(live_vllm.engine.reset_cache())
    played = live_vllm.run(episode())
    # Whole blocks of 32, of all that was computed before: the last token of an answer was no input yet.
    starts = [t.start for t in played.turns if t.finish is not None]
    assert starts == [70, 124, 178, 232]
    assert [t.num_cached for t in played.turns if t.finish is not None] == [0, 64, 128, 192]
    found = rollout_metrics([TrajectoryGroup(index=0, prompt=PROMPT, trajectories=(played,))], version=0)
    assert found["env/cached_share"] == (64 + 128 + 192) / (124 + 178 + 232)
    assert found["rollout/cached_share"] == (64 + 128 + 192) / sum(starts)


@slow
def test_sleeping_engine_answers_after_it_wakes(live_vllm):
    async def scenario() -> int:
        await live_vllm.engine.sleep()
        running = asyncio.create_task(anext(live_vllm.engine.generate_many([request(7)])))
        await asyncio.sleep(0.2)
        assert not running.done()
        await live_vllm.engine.wake()
        return (await running)[0]

    assert live_vllm.run(scenario()) == 0


@slow
def test_cancelled_call_leaves_nothing_in_the_engine(live_vllm):
    async def scenario() -> int:
        running = asyncio.create_task(anext(live_vllm.engine.generate_many([request(8, max_tokens=400)])))
        await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.3)
        return live_vllm.engine._llm.get_num_unfinished_requests()

    assert live_vllm.run(scenario()) == 0


@slow
def test_weight_files_are_gone_after_updates(live_vllm):
    learner = LocalLearner(changed_model(6), FileSender(run="unit", rank=0))
    live_vllm.run(update(live_vllm, learner, 20))
    assert weight_files() == []
    assert live_vllm.run(live_vllm.engine.weight_version()) == 20


@slow
def test_engine_core_is_the_only_child_of_the_engine(live_vllm):
    names = [p.name() for p in psutil.Process().children(recursive=True)]
    assert sum("EngineCore" in name for name in names) == 1


@slow
def test_sockets_to_the_engine_core_have_no_files(live_vllm):
    bound = [c.laddr for c in psutil.Process().net_connections("unix") if "/rlhf-" in str(c.laddr)]
    assert bound
    assert not [path for path in bound if os.path.exists(path) or os.path.exists(os.path.dirname(path))]
    assert "VLLM_RPC_BASE_PATH" not in os.environ
