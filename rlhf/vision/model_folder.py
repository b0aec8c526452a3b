"""From `model` of an alignment recipe to a Hugging Face folder: its own, or a random dual encoder."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import read_retrieval_config
from rlhf.errors import ModelError
from rlhf.stages.dual_folder import write_dual
from rlhf.stages.model_folder import SMALLEST_HEAD, prepare_model_folder

WORDS = "words"
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_FIRST = "a"
"""vLLM wants a plain word as token 0."""


def prepare_dual_encoder(model: ModelConfig, folder: Path, *, texts: Iterable[str], seed: int) -> str:
    """The folder of the model: `model.path` itself, or a random one written to `folder`, the same for the same seed.

    A random model has a tokenizer of whole words, those of `texts`. Raises ModelError naming the key that is wrong.
    """
    if model.config is None:
        found = prepare_model_folder(model, folder, seed=seed)
        read_retrieval_config(model.model_copy(update={"path": found}))
        return found
    if model.tokenizer != WORDS:
        raise ModelError(
            f"model.tokenizer is {model.tokenizer!r}, expected {WORDS!r}: with model.config the tokenizer is made of "
            "the words of captions and queries."
        )
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())} - {_FIRST})
    config = _config(model, num_words=len(words) + 1 + len(_SPECIAL))
    tokenizer = _write_tokenizer(folder, [_FIRST, *_SPECIAL, *words])
    write_dual(config, tokenizer, folder, seed=seed)
    return str(folder)


def _config(model: ModelConfig, *, num_words: int) -> Any:
    assert model.config is not None
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
    text = {**model.config.get("text_config", {}), **ids}
    text.setdefault("vocab_size", num_words)
    if text["vocab_size"] < num_words:
        raise ModelError(
            f"model.config.text_config.vocab_size is {text['vocab_size']}, but captions and queries have {num_words} "
            "words with the special tokens. Raise it, or leave it out."
        )
    config = read_retrieval_config(model.model_copy(update={"config": {**model.config, "text_config": text}}))
    for name in ("text_config", "vision_config"):
        tower = getattr(config, name)
        head = tower.hidden_size // tower.num_attention_heads
        if head < SMALLEST_HEAD:
            raise ModelError(
                f"model.config.{name}: hidden_size / num_attention_heads is {head}, expected {SMALLEST_HEAD} or more "
                "(vLLM's CPU attention refuses less). Use fewer heads."
            )
    embedding = config.projection_dim if config.model_type == "clip" else config.text_config.projection_size
    if config.text_config.hidden_size > embedding:
        raise ModelError(
            f"model.config.text_config.hidden_size is {config.text_config.hidden_size} but embeddings have "
            f"{embedding} numbers: vLLM serves no text tower that is wider than them. Raise projection_dim "
            "(SigLIP: text_config.projection_size)."
        )
    if config.model_type == "clip" and config.text_config.projection_dim != config.projection_dim:
        raise ModelError(
            f"model.config.text_config.projection_dim is {config.text_config.projection_dim} and "
            f"model.config.projection_dim is {config.projection_dim}: vLLM reads the first, transformers the second. "
            "Set both alike."
        )
    return config


def _write_tokenizer(folder: Path, vocabulary: list[str]) -> PreTrainedTokenizerFast:
    ids = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", ids["<bos>"]), ("<eos>", ids["<eos>"])]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    whole.save_pretrained(folder)
    return whole
