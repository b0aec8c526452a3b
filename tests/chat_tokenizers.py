"""Byte-level tokenizers trained on the spot, with the special tokens and chat templates of real model families."""

import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048


@dataclass(frozen=True, slots=True)
class Family:
    """A template file that TRL ships, and the tokens that it writes."""

    template: str
    end: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    """Added tokens that are not special: they are kept when special ones are skipped."""
    bos: str | None = None


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_LLAMA = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_DEEPSEEK = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")),
    *(f"<｜tool▁{name}｜>" for name in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end")),
)
FAMILIES = {
    "qwen3": Family("qwen3", "<|im_end|>", _IM, _TAGS),
    "qwen2.5": Family("qwen2_5", "<|im_end|>", _IM, _TAGS[:2]),
    "llama3.2": Family("llama3_2", "<|eot_id|>", _LLAMA, bos="<|begin_of_text|>"),
    "deepseek_v3": Family(
        "deepseekv3",
        "<｜end▁of▁sentence｜>",
        _DEEPSEEK,
        ("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
    ),
}


def template_text(name: str) -> str:
    """A chat template of the installed TRL."""
    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def _pieces() -> Tokenizer:
    """Byte-level pieces learned from this repository's own prose."""
    root = Path(__file__).parents[1]
    texts = [
        path.read_text(encoding="utf-8") for path in sorted([*root.glob("docs/*.md"), *root.glob("*.md")])
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(folder: Path, family: Family) -> Path:
    """Write the family's tokenizer, with its template, into `folder`."""
    fresh = Tokenizer.from_str(_pieces().to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fresh,
        eos_token=family.end,
        pad_token=family.special[0],
        bos_token=family.bos,
        additional_special_tokens=list(family.special),
    )
    tokenizer.add_tokens(list(family.added))
    tokenizer.chat_template = template_text(family.template)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids([family.end])})
    )
    return folder
