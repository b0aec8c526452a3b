"""FP8 rollout in vLLM on a GPU that has FP8: it loads, and every sync is quantised anew."""

import asyncio
from pathlib import Path

import pytest
import torch

from rlhf.config.schema import EngineConfig
from rlhf.engines.precision import FP8_CAPABILITY
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe, probe_gap
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import LocalLearner, OneEngine, model_logprobs
from tests.tiny import save_tiny, tiny_model

pytestmark = pytest.mark.gpu
SEQUENCES = [[(7 * i * k + 3) % 90 + 3 for i in range(24)] for k in range(1, 5)]


@pytest.mark.parametrize("cache", ["auto", "fp8"])
def test_fp8_rollout_follows_the_learner_through_syncs(tmp_path: Path, monkeypatch, cache: str) -> None:
    pytest.importorskip("vllm")
    found = torch.cuda.get_device_capability()
    if found < FP8_CAPABILITY:
        pytest.skip(f"needs a GPU of compute capability {FP8_CAPABILITY}, found {found}")
    shape = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64}
    config = EngineConfig(max_sequences=8, gpu_memory_fraction=0.3, quantization="fp8", kv_cache_dtype=cache)
    settings = EngineSettings(
        model=str(save_tiny(tmp_path / "model", **shape)), config=config, device="cuda", dtype="bfloat16",
        max_model_len=128, transfer="disk",
    )  # fmt: skip
    for name, value in engine_environment(config, "cuda").items():
        monkeypatch.setenv(name, value)

    async def follow() -> list[float]:
        engine = await VllmEngine.start(settings)
        gaps = []
        for version in (1, 2):
            model = tiny_model(version, **shape)
            learner = LocalLearner(model.bfloat16(), FileSender(run="unit", rank=0, folder=tmp_path / "sync"))
            sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1.0))
            await sync.publish(version)
            expected = model_logprobs(tiny_model(version, **shape), SEQUENCES)
            gaps.append(probe_gap(expected, await engine.probe(SEQUENCES)))
        await engine.close()
        return gaps

    assert all(0.01 < gap < 1.0 for gap in asyncio.run(follow()))
