"""Real training processes: DPO and the reward model learn toy preferences, and their results can be used."""

import json
import math

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig
from rlhf.episodes.render import Renderer
from rlhf.stages.dpo import run_dpo
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.preference_rows import read_pairs
from rlhf.stages.reward_model import run_reward_model
from rlhf.stages.sft import run_sft

TINY = {
    "model_type": "qwen3",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    model = ModelConfig(config=TINY, tokenizer="characters+tags")
    folder = prepare_model_folder(model, tmp_path_factory.mktemp("model"), seed=0)
    return Renderer(model_folder=folder, template="{prompt}")


def pairs(split, size, **kwargs):
    return {
        "generator": "rewards.reasoning_preferences:pairs",
        "limit": size,
        "kwargs": {"split": split, **kwargs},
    }


def summary(folder, kind):
    return json.loads((folder / f"{kind}.json").read_text())


def test_dpo_learns_to_prefer_whole_answers(renderer, tmp_path):
    config = DpoConfig(
        source=pairs("train", 200, against="careless"), heldout=pairs("heldout", 60, against="careless"),
        num_steps=20, batch_size=16, lr=1e-3, threads=1, max_length=64,
    )  # fmt: skip
    run_dpo(config, renderer=renderer, out_folder=tmp_path, seed=0)
    found = summary(tmp_path, "dpo")
    metrics = found["metrics"]
    assert metrics["trainer/loss_at_start"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["preference/accuracy_before_high"] < 0.2
    assert metrics["preference/accuracy_after_low"] > 0.5
    assert metrics["preference/accuracy_reward_low"] > 0.9
    assert metrics["length/is_biased"] == 1
    assert "length-biased" in found["warnings"][0]
    AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_reward_model_learns_and_its_folder_gives_the_scores_it_was_judged_by(renderer, tmp_path, lora):
    config = RewardModelConfig(
        source=pairs("train", 200, against="wordy"), heldout=pairs("heldout", 40, against="wordy"),
        num_steps=15, batch_size=16, lr=1e-3 if lora is None else 5e-3, threads=1, max_length=64, center_coef=0.01,
    )  # fmt: skip
    model = ModelConfig(path=renderer.model_folder, lora=lora)
    run_reward_model(config, renderer=renderer, out_folder=tmp_path, seed=0, model=model)
    metrics = summary(tmp_path, "reward_model")["metrics"]
    assert metrics["preference/accuracy_after_low"] > 0.9
    assert metrics["length/is_biased"] == 0

    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.num_labels == 1
    assert loaded.config.architectures == ["Qwen3ForSequenceClassification"]
    rows = read_pairs(config.heldout, config, renderer=renderer, key="reward_model.heldout").rows
    served = AutoTokenizer.from_pretrained(tmp_path)
    asked = served.decode(rows[0]["prompt_ids"])
    answer = served.decode(rows[0]["chosen_ids"][:-1])
    conversation = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    ids = served.apply_chat_template(conversation, return_dict=False)
    assert ids == rows[0]["prompt_ids"] + rows[0]["chosen_ids"]
    differences, lengths = [], []
    for row in rows:
        scores = [
            loaded(torch.tensor([row["prompt_ids"] + row[side]])).logits.item()
            for side in ("chosen_ids", "rejected_ids")
        ]
        differences.append(scores[0] - scores[1])
        lengths.append(len(row["chosen_ids"]) - len(row["rejected_ids"]))
    assert sum(d > 0 for d in differences) / 40 == metrics["preference/accuracy_after"]
    products = sum(d * n for d, n in zip(differences, lengths, strict=True))
    norm = math.sqrt(sum(d * d for d in differences) * sum(n * n for n in lengths))
    assert metrics["length/score_correlation"] == pytest.approx(products / norm, abs=1e-5)


def test_adapter_alone_is_kept_where_asked(renderer, tmp_path):
    rows = {"generator": "rewards.reasoning_tasks:demonstrations", "limit": 20}
    config = SftConfig(
        source=rows, num_steps=2, batch_size=4, lr=1e-2, threads=1, max_length=64, lora_result="adapter"
    )
    model = ModelConfig(path=renderer.model_folder, lora=LoraConfig(rank=4))
    run_sft(config, renderer=renderer, out_folder=tmp_path, seed=0, model=model)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.peft_config["default"].r == 4
    assert any("lora_B" in name and weights.abs().max() > 0 for name, weights in loaded.named_parameters())
