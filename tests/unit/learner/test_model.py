"""What can be trained, and what is refused by name."""

from pathlib import Path

import pytest
import torch

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.errors import ModelError
from rlhf.learner.model import build_model
from tests.tiny import MOE, tiny_config


def configured(**changes: object) -> ModelConfig:
    return ModelConfig(config=tiny_config(**changes), dtype="float32")


def test_random_model_is_fixed_by_its_seed_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (build_model(configured(), seed, on_meta=False).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off() -> None:
    model = build_model(configured(model_type="phi3", resid_pdrop=0.5), 0, on_meta=False)
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling"),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "layers of type conv"),
        ({"model_type": "mamba"}, "Mamba"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_model_that_cannot_be_packed_is_refused(changes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        build_model(configured(**changes), 0, on_meta=True)


def test_model_with_attention_classes_of_its_own_is_refused() -> None:
    config = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ModelError, match="model type 'falcon' does not support attention backends"):
        build_model(ModelConfig(config=config), 0, on_meta=True)


def test_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.path"):
        build_model(ModelConfig(path=str(tmp_path / "nowhere")), 0, on_meta=False)


@pytest.mark.parametrize("config", [{"hidden_size": 64}, {"model_type": "nonsense"}], ids=str)
def test_config_that_transformers_cannot_read_is_named(config: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"model\.config"):
        build_model(ModelConfig(config=config), 0, on_meta=False)


@pytest.mark.parametrize("target", ["nothing", "lm_head", "embed_tokens"])
def test_lora_target_that_cannot_be_adapted_is_named(target: str) -> None:
    model = ModelConfig(config=tiny_config(tie_word_embeddings=False), lora=LoraConfig(targets=(target,)))
    with pytest.raises(ModelError, match=r"model\.lora\.targets"):
        build_model(model, 0, on_meta=True)


@pytest.mark.parametrize("target", [("gate_proj", "up_proj"), ("down_proj",), "all-linear"], ids=str)
def test_lora_on_fused_experts_is_refused(target) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets reaches the experts"):
        build_model(ModelConfig(config=tiny_config(**MOE), lora=LoraConfig(targets=target)), 0, on_meta=True)


def test_model_whose_checkpoint_fuses_what_it_holds_apart_is_refused() -> None:
    config = {"model_type": "hrm_text", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    with pytest.raises(ModelError, match=r"splits .* of its checkpoint into several tensors"):
        build_model(ModelConfig(config=config), 0, on_meta=True)
