"""A model small enough to train in a test, and the Hugging Face folder that holds it."""

from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf.config.schema import ModelConfig
from rlhf.config.vision import ImageProcessorConfig
from rlhf.stages.model_folder import prepare_model_folder

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


VISION: dict[str, Any] = {
    "model_type": "qwen2_vl", "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
    },
    "vision_config": {
        "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "initializer_range": 0.1,
    },
}  # fmt: skip
"""A Qwen2-VL config of 0.1 M parameters, head_dim 32; an image of 32 x 32 pixels is 4 tokens."""


def save_tiny_vision(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the tiny model that sees images, with processor and tokenizer, as a Hugging Face folder."""
    model = ModelConfig(
        config=VISION | changes, tokenizer="characters", dtype="float32",
        image_processor=ImageProcessorConfig(min_pixels=256, max_pixels=4096),
    )  # fmt: skip
    return Path(prepare_model_folder(model, folder, seed=seed))


def picture(folder: Path, seed: int, size: tuple[int, int] = (32, 32)) -> str:
    """A PNG of random blocks; its path."""
    draw = numpy.random.default_rng(seed)
    blocks = draw.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    path = folder / f"{seed}-{size[0]}x{size[1]}.png"
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    return str(path)
