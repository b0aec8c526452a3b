"""Recorded experts and kept sets on a real vLLM whose KV cache is too small for all requests at once."""

import asyncio
import sys
from dataclasses import replace

import pytest
import torch

from rlhf.config.schema import EngineConfig
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_arguments, engine_environment
from rlhf.errors import EngineError
from tests.live_vllm import REPOSITORY, LiveEngine
from tests.tiny import MOE, save_tiny, tiny_model
from tests.unit.engines.mixtures import ask, assert_kept_as, assert_routed_as, collect, random_prompt

slow = pytest.mark.slow
TIED = range(40, 50)
"""Tokens of one embedding and so of one logit."""
SHAPE = MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]}
SETTINGS = EngineSettings(
    model="m", config=EngineConfig(max_sequences=32, kv_cache_mb=1), device="cpu", dtype="float32",
    max_model_len=256, record_routing=True, kept_limit=24,
)  # fmt: skip
NUM_SLOTS = (1 << 20) // (3 * 2 * 2 * 32 * 4)
"""Tokens that 1 MiB of KV cache holds: layers, keys and values, heads, their width, bytes."""


@pytest.fixture(scope="module")
def live(tmp_path_factory, model):
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path_factory.mktemp("moe"), **SHAPE)
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(SETTINGS.config, "cpu", record_routing=True).items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
        loop = asyncio.new_event_loop()
        start = VllmEngine.start(replace(SETTINGS, model=str(folder)))
        engine = LiveEngine(loop.run_until_complete(start), loop, folder)
        yield engine
        engine.run(engine.engine.close())
        loop.close()


@pytest.fixture(scope="module")
def model():
    model = tiny_model(**SHAPE).eval()
    with torch.no_grad():
        model.lm_head.weight[TIED] = model.lm_head.weight[47].clone()
    return model


def num_held(live):
    return live.run(live.engine._llm.collective_rpc("forget_routing", args=([],)))[0]


def generate(live, requests):
    return live.run(collect(live.engine, requests))


def test_recording_loads_the_recorder_and_allows_enough_logprobs():
    arguments = engine_arguments(SETTINGS)
    assert arguments["worker_extension_cls"] == "rlhf.engines.recorder.RoutingRecorder"
    assert arguments["max_logprobs"] == 25
    plain = engine_arguments(replace(SETTINGS, record_routing=False, kept_limit=0))
    assert not {"worker_extension_cls", "max_logprobs"} & set(plain)


@slow
def test_routing_is_that_of_the_models_router(live, model):
    requests = [ask(random_prompt(i, 5 + 20 * i), samples=3) for i in range(4)]
    for request, group in zip(requests, generate(live, requests), strict=True):
        for completion in group:
            assert_routed_as(model, request, completion)
            assert (completion.routing[:, 1] == -1).all()


@slow
def test_routing_survives_prefix_cache_hits(live, model):
    prompt = random_prompt(9, 100)
    assert live.run(live.engine.reset_cache())
    first = generate(live, [ask(prompt)])[0][0]
    longer = [*prompt, *first.token_ids, *random_prompt(10, 20)]
    requests = [ask(prompt, samples=4, seed=5), ask(prompt[:70]), ask(longer)]
    groups = generate(live, requests)
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            assert_routed_as(model, request, completion)
    # 3 blocks of 32 tokens were cached: their rows are the very ones of the first request.
    assert (groups[0][3].routing[:96] == first.routing[:96]).all()


@slow
def test_routing_survives_preemption(live, model):
    requests = [ask(random_prompt(20 + i, 20), samples=2, max_tokens=90, stop_token_ids=()) for i in range(8)]
    assert 2 * NUM_SLOTS < 8 * 2 * 110
    for request, group in zip(requests, generate(live, requests), strict=True):
        for completion in group:
            assert_routed_as(model, request, completion)
    assert num_held(live) == 0


@slow
def test_routing_of_finished_probed_and_cancelled_requests_is_forgotten(live):
    async def scenario():
        running = asyncio.create_task(collect(live.engine, [ask(random_prompt(30, 30), max_tokens=200)]))
        await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await live.engine.probe([[5, 6, 7]])

    live.run(scenario())
    generate(live, [ask(random_prompt(31, 30), samples=2)])
    assert num_held(live) == 0


@slow
@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 5},
        {"top_p": 0.5},
        {"top_p": 0.2, "temperature": 0.7},
        {"top_k": 6, "top_p": 0.6, "temperature": 1.3},
        {"top_k": 1},
        {"top_k": 20},
    ],
)
def test_kept_sets_are_those_of_the_definition(live, model, sampling):
    requests = [ask(random_prompt(40 + i, 30), samples=4, kept_limit=8, **sampling) for i in range(2)]
    for request, group in zip(requests, generate(live, requests), strict=True):
        for completion in group:
            assert_kept_as(model, request, completion)


@slow
def test_kept_sets_hold_all_tokens_that_tie_with_the_last_one(live):
    request = ask(random_prompt(60, 20), samples=32, max_tokens=60, kept_limit=24, top_k=8, temperature=1.5)
    sets = [set(kept.tolist()) for c in generate(live, [request])[0] for kept in c.kept]
    assert all(len(kept) == 8 or kept >= set(TIED) for kept in sets)
    assert any(len(kept) > 8 for kept in sets)


@slow
def test_kept_sets_are_reported_only_to_who_asks_for_them(live):
    prompt = random_prompt(50, 20)
    asked = [ask(prompt, top_k=3, kept_limit=4), ask(prompt, top_k=3), ask(prompt, kept_limit=4)]
    kept, unasked, whole = (group[0].kept for group in generate(live, asked))
    assert all(1 <= len(ids) <= 4 for ids in kept)
    assert unasked is None
    assert whole is None


@slow
def test_kept_limit_beyond_the_engines_is_refused(live):
    with pytest.raises(
        EngineError, match=r"up to 25 tokens are asked for, but the engine was started with .* 24"
    ):
        generate(live, [ask([5, 6], top_k=3, kept_limit=25)])


@slow
def test_routing_of_a_dense_model_is_refused_by_key(tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path)
    for name, value in engine_environment(SETTINGS.config, "cpu", record_routing=True).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    with pytest.raises(EngineError, match=r"sampling.keep_routing .* Qwen3ForCausalLM has no experts"):
        asyncio.run(VllmEngine.start(replace(SETTINGS, model=str(folder))))
