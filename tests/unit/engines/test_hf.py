import asyncio
import random

import pytest
import torch

from rlhf.config.schema import EngineConfig
from rlhf.engines.hf import HfEngine, processed_logprobs
from rlhf.engines.settings import EngineSettings
from rlhf.errors import EngineError, SyncError
from rlhf.interfaces import GenerateRequest
from rlhf.types import Sampling
from rlhf.weight_sync.files import FileSender, read_weights
from rlhf.weight_sync.probe import Probe
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import LocalLearner, OneEngine, model_logprobs
from tests.tiny import EOS, MOE, save_tiny, tiny_model
from tests.unit.engines.mixtures import assert_kept_as, assert_routed_as

MIXTURE = MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]}
SEQUENCES = [[5, 9, 30, 44, 60], [70, 3, 8, 8, 21]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder):
    config = EngineConfig(max_sequences=6)
    settings = EngineSettings(
        model=str(folder), config=config, device="cpu", dtype="float32", max_model_len=128
    )
    return HfEngine(settings, read=read_weights)


def request(index, *, length, samples=4, **sampling):
    draw = random.Random(index)
    options = {"max_tokens": 12, "stop_token_ids": (EOS,)} | sampling
    seeds = tuple(100 * index + i for i in range(samples))
    prompt = tuple(draw.choices(range(3, 90), k=length))
    return GenerateRequest(prompt_token_ids=prompt, sampling=Sampling(**options), seeds=seeds)


def generate(engine, requests):
    async def collect():
        return {index: group async for index, group in engine.generate_many(requests)}

    finished = asyncio.run(collect())
    return [finished[index] for index in range(len(requests))]


def test_hf_logprobs_are_those_of_the_model(engine):
    requests = [request(0, length=7), request(1, length=9), request(2, length=7, samples=5)]
    for asked, group in zip(requests, generate(engine, requests), strict=True):
        assert len(group) == len(asked.seeds)
        for completion in group:
            whole = [*asked.prompt_token_ids, *completion.token_ids]
            expected = model_logprobs(tiny_model(), [whole])[0][-len(completion.token_ids) :]
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_hf_tokens_do_not_depend_on_the_other_requests(engine):
    requests = [request(i, length=5 + i % 2) for i in range(5)]
    together = generate(engine, requests)
    alone = [generate(engine, [r])[0] for r in requests]
    assert [[c.token_ids for c in g] for g in together] == [[c.token_ids for c in g] for g in alone]


def test_hf_greedy_takes_the_most_likely_token(engine):
    group = generate(engine, [request(0, length=6, temperature=0.0)])[0]
    assert len({c.token_ids for c in group}) == 1


def test_top_k_and_top_p_leave_the_smallest_set_that_reaches_them():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = processed_logprobs(logits, Sampling(max_tokens=1, top_k=2)).exp()
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    kept = processed_logprobs(logits, Sampling(max_tokens=1, top_p=0.7)).exp()
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    kept = processed_logprobs(logits, Sampling(max_tokens=1, top_p=0.01)).exp()
    assert kept.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_hf_update_in_mid_flight_splits_the_versions(engine):
    learner = LocalLearner(tiny_model(1), FileSender(run="unit", rank=0))
    sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1e-3))

    async def scenario():
        asked = request(0, length=6, samples=2, max_tokens=60, stop_token_ids=())
        running = asyncio.create_task(anext(engine.generate_many([asked])))
        await asyncio.sleep(0.05)
        metrics = await sync.publish(1)
        return metrics, (await running)[1]

    metrics, group = asyncio.run(scenario())
    assert metrics["sync/probe_gap"] < 1e-4
    for completion in group:
        boundary = completion.versions.count(0)
        assert 0 < boundary < 60
        assert completion.versions == (0,) * boundary + (1,) * (60 - boundary)


def test_hf_names_the_tensor_that_was_not_sent(engine):
    class Forgetful(FileSender):
        def send(self, weights, version):
            return super().send([pair for pair in weights if "layers.1.mlp.up_proj" not in pair[0]], version)

    learner = LocalLearner(tiny_model(1), Forgetful(run="unit", rank=0))
    sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1e-3))
    with pytest.raises(SyncError, match=r"not received: \['model.layers.1.mlp.up_proj.weight'\]"):
        asyncio.run(sync.publish(1))


def test_probe_runs_at_its_cadence_and_the_first_time(engine):
    learner = LocalLearner(tiny_model(1), FileSender(run="unit", rank=0))
    sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1e-3, every=2))

    async def scenario():
        return ["sync/probe_gap" in await sync.publish(version) for version in (1, 2, 3)]

    assert asyncio.run(scenario()) == [True, False, True]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("moe"), **MIXTURE)
    return HfEngine(recording(folder), read=read_weights)


def recording(folder):
    return EngineSettings(
        model=str(folder), config=EngineConfig(max_sequences=6), device="cpu", dtype="float32",
        max_model_len=128, record_routing=True, kept_limit=8,
    )  # fmt: skip


def test_hf_routing_is_that_of_the_models_router(mixture):
    model = tiny_model(**MIXTURE).eval()
    requests = [request(0, length=7), request(1, length=9), request(2, length=7, samples=5)]
    for asked, group in zip(requests, generate(mixture, requests), strict=True):
        for completion in group:
            assert_routed_as(model, asked, completion)


@pytest.mark.parametrize("sampling", [{"top_k": 5}, {"top_p": 0.4}, {"top_k": 12, "top_p": 0.9}])
def test_hf_kept_sets_are_those_of_the_definition(mixture, sampling):
    asked = request(3, length=8, kept_limit=8, temperature=0.9, **sampling)
    for completion in generate(mixture, [asked])[0]:
        assert_kept_as(tiny_model(**MIXTURE).eval(), asked, completion)
    assert all(c.kept is None for c in generate(mixture, [request(3, length=8, **sampling)])[0])


def test_hf_kept_limit_beyond_the_engines_is_refused(mixture):
    with pytest.raises(
        EngineError, match=r"up to 9 tokens are asked for, but the engine was started with .* 8"
    ):
        generate(mixture, [request(3, length=8, kept_limit=9)])


def test_hf_routing_of_a_dense_model_is_refused_by_key(folder):
    with pytest.raises(
        EngineError, match=r"sampling\.keep_routing is true, but Qwen3ForCausalLM has no layer"
    ):
        HfEngine(recording(folder), read=read_weights)


def test_top_k_keeps_all_that_tie_with_the_last():
    logits = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    kept = processed_logprobs(logits, Sampling(max_tokens=1, top_k=2)).isfinite()
    assert kept.tolist() == [True, True, True, True, False]
