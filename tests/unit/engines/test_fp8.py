"""FP8 rollout: what the hf engine simulates, by a slow version; where it is allowed; that vLLM quantises every sync."""

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf.config.schema import EngineConfig
from rlhf.engines import precision
from rlhf.engines.hf import HfEngine
from rlhf.engines.precision import check_precision
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_arguments, engine_environment
from rlhf.errors import ConfigError
from rlhf.weight_sync.files import FileSender, read_weights
from rlhf.weight_sync.probe import Probe, probe_gap
from rlhf.weight_sync.verified import VerifiedSync
from tests.live_vllm import LiveEngine, LocalLearner, OneEngine, model_logprobs
from tests.tiny import MOE, save_tiny, tiny_model

SEQUENCES = [[(7 * i * k + 3) % 90 + 3 for i in range(24)] for k in range(1, 5)]
FP8 = EngineConfig(max_sequences=8, kv_cache_mb=64, quantization="fp8")


def settings(folder, **changes) -> EngineSettings:
    plain = EngineSettings(model=str(folder), config=FP8, device="cpu", dtype="float32", max_model_len=128)
    return replace(plain, **changes)


class SlowLinear(nn.Module):
    """A linear layer whose weights (per output) and inputs (per token) pass through e4m3."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(rounded(row)) for row in linear.weight.detach()])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = torch.stack([rounded(token) for token in inputs.flatten(0, -2)])
        return (flat @ torch.stack(list(self.rows)).T).unflatten(0, inputs.shape[:-1])


def rounded(values: torch.Tensor) -> torch.Tensor:
    scale = values.abs().max().clamp_min(1e-30) / 448
    return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def slow_fp8(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, SlowLinear(child))
    return model


def test_hf_engine_rounds_linear_layers_and_their_inputs_and_nothing_else(tmp_path) -> None:
    engine = HfEngine(settings(save_tiny(tmp_path / "model")), read=read_weights)
    found = asyncio.run(engine.probe(SEQUENCES))
    assert probe_gap(model_logprobs(slow_fp8(tiny_model()), SEQUENCES), found) < 1e-4
    assert 0.01 < probe_gap(model_logprobs(tiny_model(), SEQUENCES), found) < 1


def test_hf_engine_rounds_the_weights_of_experts(tmp_path) -> None:
    folder = save_tiny(tmp_path / "model", **MOE)
    engine = HfEngine(settings(folder), read=read_weights)
    assert (
        probe_gap(model_logprobs(tiny_model(**MOE), SEQUENCES), asyncio.run(engine.probe(SEQUENCES))) > 0.01
    )


def test_hf_engine_rounds_what_every_update_brings(tmp_path) -> None:
    engine = HfEngine(settings(save_tiny(tmp_path / "model")), read=read_weights)
    for version in (1, 2):
        model = tiny_model(version)
        learner = LocalLearner(model, FileSender(run="unit", rank=0))
        sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1.0))
        assert asyncio.run(sync.publish(version))["sync/probe_gap"] > 0.01
        found = asyncio.run(engine.probe(SEQUENCES))
        assert probe_gap(model_logprobs(slow_fp8(model), SEQUENCES), found) < 1e-4


def test_vllm_is_asked_for_scales_per_channel_only_where_the_recipe_says_fp8(tmp_path) -> None:
    both = FP8.model_copy(update={"kv_cache_dtype": "fp8"})
    arguments = engine_arguments(settings(tmp_path, config=both))
    assert (arguments["quantization"], arguments["kv_cache_dtype"]) == ("fp8_per_channel", "fp8")
    assert (
        not {"quantization", "kv_cache_dtype"}
        & engine_arguments(settings(tmp_path, config=EngineConfig())).keys()
    )


@pytest.mark.parametrize(
    ("config", "place", "says"),
    [
        (
            {"quantization": "fp8"},
            {"dtype": "float32"},
            "engine.quantization is fp8 and model.dtype is float32",
        ),
        ({"kv_cache_dtype": "fp8"}, {"kind": "hf"}, "engine.kv_cache_dtype is fp8 but the engine is hf"),
        (
            {"quantization": "fp8"},
            {"device": "cuda"},
            "compute capability 8.0, and FP8 arithmetic begins at 8.9",
        ),
        ({"kv_cache_dtype": "fp8"}, {"device": "cuda"}, "Set engine.kv_cache_dtype: auto"),
    ],
)
def test_fp8_is_refused_where_the_engine_cannot(monkeypatch, config, place, says: str) -> None:
    monkeypatch.setattr(precision, "_capability", lambda: (8, 0))
    where = {"kind": "vllm", "device": "cpu", "dtype": "bfloat16"} | place
    with pytest.raises(ConfigError) as caught:
        check_precision(EngineConfig(**config), **where)
    assert says in str(caught.value)
    assert check_precision(EngineConfig(), **where) is None


@pytest.mark.parametrize(
    ("kind", "device", "says"),
    [("hf", "cpu", "is simulated"), ("vllm", "cpu", "CPU kernels"), ("vllm", "cuda", "every sync")],
)
def test_log_says_how_fp8_is_computed(monkeypatch, kind: str, device: str, says: str) -> None:
    monkeypatch.setattr(precision, "_capability", lambda: (8, 9))
    assert says in str(check_precision(FP8, kind=kind, device=device, dtype="bfloat16"))


@pytest.fixture
def live(tmp_path) -> Iterator[LiveEngine]:
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path / "model")
    config = FP8.model_copy(update={"kv_cache_dtype": "fp8"})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(config, "cpu").items():
            patch.setenv(name, value)
        loop = asyncio.new_event_loop()
        started = settings(folder, config=config, dtype="bfloat16", transfer="cpu")
        engine = LiveEngine(loop.run_until_complete(VllmEngine.start(started)), loop, folder)
        yield engine
        engine.run(engine.engine.close())
        loop.close()


@pytest.mark.slow
def test_vllm_in_fp8_quantises_the_weights_of_every_sync(live: LiveEngine) -> None:
    engine = live.engine
    for version in (1, 2):
        model = tiny_model(version).bfloat16()
        expected = model_logprobs(tiny_model(version), SEQUENCES)
        assert probe_gap(expected, live.run(engine.probe(SEQUENCES))) > 1.5  # those of the version before
        learner = LocalLearner(model, FileSender(run="unit", rank=0))
        sync = VerifiedSync(learner, OneEngine(engine), probe=Probe(sequences=SEQUENCES, tolerance=1.0))
        live.run(sync.publish(version))
        found = live.run(engine.probe(SEQUENCES))
        gap = probe_gap(expected, found)
        assert 0.05 < gap < 1.0
        assert probe_gap(model_logprobs(slow_fp8(tiny_model(version)), SEQUENCES), found) < 1.0
