"""A model small enough to train in a test, and the Hugging Face folder that holds it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHARACTERS = "\n !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"
PAD, EOS = 0, 1


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A Qwen3 config of 0.1 M parameters; head_dim 32 because vLLM's CPU attention refuses less."""
    config = {
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    return config | changes


MOE: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}  # fmt: skip
"""Changes to `tiny_config` that make a mixture of experts in every layer."""
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "norm_topk_prob": True, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
    "head_dim": 16, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
"""Latent attention, a dense first layer, a selection bias, experts chosen by groups, one that is always used."""


def tiny_model(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The model of `tiny_config`, random but fixed by `seed`."""
    config = AutoConfig.for_model(**tiny_config(**changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def save_tiny(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the tiny model with a tokenizer of single characters as a Hugging Face folder."""
    tiny_model(seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: ids 0 and 1 are <pad> and <eos>, 2 is <unk>."""
    names = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


CHAT = (
    "{% for m in messages %}{{ m['content'] }}{{ '<eos>' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
)
"""A question, a line's end, the answer, its end: nothing is written before an answer."""


def save_tiny_classifier(folder: Path, seed: int = 0) -> Path:
    """Write a sequence classifier of the tiny shape with one number, its tokenizer and a chat template."""
    config = AutoConfig.for_model(**tiny_config(num_labels=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder
