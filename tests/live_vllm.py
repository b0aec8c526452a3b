"""A real vLLM engine on the CPU for all tests of a session, and local stand-ins for what Ray wires."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.config.schema import EngineConfig
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.interfaces import WeightSender
from tests.tiny import save_tiny, tiny_model

SHAPE = {"num_hidden_layers": 4, "hidden_size": 128, "vocab_size": 128}
MAX_MODEL_LEN = 512
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class LiveEngine:
    """The engine, the loop it lives on, and the folder its model came from."""

    engine: VllmEngine
    loop: asyncio.AbstractEventLoop
    folder: Path

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 600))


@pytest.fixture(scope="session")
def live_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    """A tied tiny Qwen3 in vLLM. Its transfer backend is ours with faults that a test can switch on."""
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path_factory.mktemp("model"), **SHAPE)
    config = EngineConfig(max_sequences=64, kv_cache_mb=256)
    plugin = faulty_plugin(tmp_path_factory.mktemp("plugin"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(config, "cpu").items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [str(REPOSITORY), str(plugin), *sys.path])
        settings = EngineSettings(
            model=str(folder), config=config, device="cpu", dtype="float32", max_model_len=MAX_MODEL_LEN,
            transfer="cpu_faulty",
        )  # fmt: skip
        loop = asyncio.new_event_loop()
        live = LiveEngine(loop.run_until_complete(VllmEngine.start(settings)), loop, folder)
        yield live
        live.run(live.engine.close())
        loop.close()


def faulty_plugin(folder: Path) -> Path:
    """A distribution of one entry point: how the faulty backend gets into the engine's child process."""
    metadata = folder / "faulty_transfer-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-transfer\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nfaulty_transfer = tests.faulty_transfer:register\n"
    )
    return folder


def changed_model(seed: int) -> nn.Module:
    """Another random model of the live engine's shape."""
    return tiny_model(seed, **SHAPE).eval()


def model_logprobs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """[sequence][T-1] by a plain forward pass."""
    with torch.inference_mode():
        ids = torch.tensor(sequences)
        logprobs = model(ids).logits[:, :-1].log_softmax(-1)
        return logprobs.gather(-1, ids[:, 1:, None])[..., 0].tolist()


@dataclass(slots=True)
class LocalLearner:
    """weight_sync.verified.SendingLearner over a model here. `change` alters the update message."""

    model: nn.Module
    sender: WeightSender
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict

    async def send_weights(self, version: int) -> Mapping[str, Any] | None:
        info = self.sender.send(self.model.named_parameters(), version)
        return None if info is None else self.change(dict(info))

    async def release_weights(self) -> None:
        self.sender.release()

    async def offload(self) -> None:
        pass

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        return model_logprobs(self.model, sequences)


@dataclass(frozen=True, slots=True)
class OneEngine:
    """weight_sync.verified.ReceivingEngines over one engine in this process."""

    engine: Any

    async def pause(self) -> None:
        await self.engine.pause()

    async def resume(self) -> None:
        await self.engine.resume()

    async def wake(self) -> None:
        await self.engine.wake()

    async def begin_update(self) -> None:
        await self.engine.begin_update()

    async def update(self, info: Mapping[str, Any]) -> None:
        await self.engine.update(info)

    async def finish_update(self, version: int) -> None:
        await self.engine.finish_update(version)

    async def weight_versions(self) -> list[int]:
        return [await self.engine.weight_version()]

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[list[float]]]:
        return [await self.engine.probe(sequences, images)]


def weight_files() -> list[str]:
    """Weight files of this process in shared memory."""
    return [
        name
        for name in os.listdir("/dev/shm")
        if name.startswith("rlhf-weights") and str(os.getpid()) in name
    ]
