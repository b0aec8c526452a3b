"""Families of models between transformers and a real vLLM: their weights arrive, and are used, biases included."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.config.schema import EngineConfig
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.errors import SyncError
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe, probe_sequences
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import REPOSITORY, LocalLearner, OneEngine, weight_files
from tests.tiny import save_tiny, tiny_model

FAMILIES: Mapping[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "hidden_size": 128},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "phi3": {"model_type": "phi3", "hidden_size": 128, "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False},
    "gemma3": {
        "model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64,
    },
    "olmo2": {"model_type": "olmo2", "hidden_size": 128, "tie_word_embeddings": False},
    "smollm3": {"model_type": "smollm3", "hidden_size": 128},
    "glm4": {"model_type": "glm4", "tie_word_embeddings": False},
    "starcoder2": {"model_type": "starcoder2", "hidden_size": 128, "sliding_window": None},
}  # fmt: skip
IN_EVERY_RUN = ("qwen2",)


class Forgetful(FileSender):
    """Sends all tensors but one."""

    def __init__(self, *, run: str, rank: int, lost: str) -> None:
        super().__init__(run=run, rank=rank)
        self._lost = lost

    def send(self, weights, version):
        return super().send([pair for pair in weights if pair[0] != self._lost], version)


def other(seed: int, changes: dict[str, Any]) -> nn.Module:
    """Random everywhere: biases begin at 0 in a new model."""
    model = tiny_model(seed, **changes).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES],
)
def test_weights_of_a_family_arrive_and_a_lost_bias_is_named(family, tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    changes = FAMILIES[family]
    config = EngineConfig(max_sequences=8, kv_cache_mb=64)
    for name, value in engine_environment(config, "cpu").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    settings = EngineSettings(
        model=str(save_tiny(tmp_path / "model", **changes)), config=config, device="cpu", dtype="float32",
        max_model_len=128, transfer="cpu",
    )  # fmt: skip
    probe = Probe(sequences=probe_sequences(96, seed=0, num=4, length=32), tolerance=1e-3, every=1)

    async def publish_twice() -> None:
        engine = await VllmEngine.start(settings)
        try:
            for version in (1, 2):
                learner = LocalLearner(other(version, changes), FileSender(run="families", rank=0))
                metrics = await VerifiedSync(learner, OneEngine(engine), probe=probe).publish(version)
                assert metrics["sync/probe_gap"] < 1e-4
            if biases := [name for name, _ in learner.model.named_parameters() if name.endswith("bias")]:
                learner = LocalLearner(other(3, changes), Forgetful(run="families", rank=0, lost=biases[0]))
                with pytest.raises(SyncError, match="left parameters without new weights"):
                    await VerifiedSync(learner, OneEngine(engine), probe=probe).publish(3)
        finally:
            await engine.close()

    asyncio.run(publish_twice())
    assert weight_files() == []
