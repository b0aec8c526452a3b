import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf.config.schema import ModelConfig
from rlhf.errors import ModelError
from rlhf.stages.model_folder import context_problem, prepare_model_folder

TINY = {
    "model_type": "qwen3",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def tiny(tokenizer="characters", **changes):
    return ModelConfig(config=TINY | changes, tokenizer=tokenizer)


def test_random_model_is_a_complete_folder(tmp_path):
    folder = prepare_model_folder(tiny(), tmp_path, seed=0)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 1
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen3"


def test_random_model_follows_from_the_seed_alone(tmp_path):
    torch.manual_seed(5)
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = AutoModelForCausalLM.from_pretrained(prepare_model_folder(tiny(), tmp_path / name, seed=seed))
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_existing_folder_is_used_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert prepare_model_folder(ModelConfig(path=str(tmp_path)), tmp_path / "unused", seed=0) == str(tmp_path)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ModelConfig(path="./nowhere"), r"model\.path: there is no folder '\./nowhere'"),
        (tiny(head_dim=16), r"model\.config: head_dim is 16, expected 32 or more"),
        (tiny(vocab_size=64), r"model\.config\.vocab_size is 64"),
        (tiny(model_type="qwen33"), r"model\.config cannot be used: .*qwen33"),
        (tiny(tokenizer=None), r"model\.tokenizer is missing"),
        (ModelConfig(config={"vocab_size": 5}), r"model\.config has no model_type"),
    ],
)
def test_unusable_model_names_the_key(tmp_path, model, says):
    with pytest.raises(ModelError, match=says):
        prepare_model_folder(model, tmp_path / "model", seed=0)


def test_folder_without_config_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path: .* holds no config\.json"):
        prepare_model_folder(ModelConfig(path=str(tmp_path)), tmp_path, seed=0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, None),
        ({"max_position_embeddings": 100}, None),
        ({"max_position_embeddings": 99}, "100, but the model has 99 positions"),
        ({"text_config": {"max_position_embeddings": 99}}, "99 positions"),
        ({"sliding_window": None}, None),
        ({"sliding_window": 100}, None),
        ({"sliding_window": 64}, "64 tokens of sliding window"),
        ({"sliding_window": 64, "use_sliding_window": True}, "64 tokens of sliding window"),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
    ],
)
def test_rows_longer_than_the_context_are_a_problem(config, says):
    problem = context_problem(config, longest=100)
    assert problem is None if says is None else says in problem
