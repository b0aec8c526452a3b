"""Byte-level tokenizers trained on the spot, with the special tokens and chat templates of real model families."""

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pydoc_data.topics import topics

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
    stops: tuple[str, ...] = ()
    """Further tokens that end a turn, as generation_config.json has them."""


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
_SPECIAL = re.compile(
    r"<\|\w+\|?>|<\w+\|>|<｜[^｜>]+｜>|<(?:start|end)_of_turn>|\[gMASK\]|<sop>|<\w+_TOKEN>", re.ASCII
)
_ADDED = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
_TURN_ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "diffusion_gemma": ("<turn|>",),
    "gemma": ("<end_of_turn>",),
    "gemma4": ("<turn|>", "<|tool_response>"),
    "glm4moe": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
    "lfm2": ("<|im_end|>",),
    "llama3": ("<|eot_id|>", "<|eom_id|>"),
    "muse_glimmer": ("<|eot|>", "<|eom|>"),
    "nemotron": ("<|im_end|>",),
    "phi3": ("<|endoftext|>", "<|end|>"),
    "qwen": ("<|im_end|>", "<|endoftext|>"),
}
_IMAGES = ("idefics3", "llava_next", "smolvlm", "_vl")


def text_templates() -> list[str]:
    """The names of all templates of text models that the installed TRL ships as their makers wrote them."""
    files = resources.files("trl").joinpath("chat_templates").iterdir()
    names = sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))
    return [n for n in names if not n.endswith("_training") and not any(part in n for part in _IMAGES)]


def family_of(template: str) -> Family:
    """A family made from what a template's text shows: every token that it may write."""
    text = template_text(template)
    ends = next(_TURN_ENDS[name] for name in sorted(_TURN_ENDS, reverse=True) if template.startswith(name))
    bos = "<bos>" if "bos_token" in text else None
    special = dict.fromkeys([*ends, *filter(None, [bos]), "<pad>", *_SPECIAL.findall(text)])
    added = dict.fromkeys(_ADDED.findall(text))
    return Family(template, ends[0], tuple(special), tuple(added), bos=bos, stops=ends[1:])


def template_text(name: str) -> str:
    """A chat template of the installed TRL."""
    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def _pieces() -> Tokenizer:
    """Byte-level pieces learned from the prose that Python brings along: no edit of ours changes a token."""
    texts = [text for _, text in sorted(topics.items())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(folder: Path, family: Family, chat_template: str | None = None) -> Path:
    """Write the family's tokenizer, with its template or another, into `folder`."""
    fresh = Tokenizer.from_str(_pieces().to_str())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fresh,
        eos_token=family.end,
        pad_token=family.special[0],
        bos_token=family.bos,
        additional_special_tokens=list(family.special),
    )
    tokenizer.add_tokens(list(family.added))
    tokenizer.chat_template = chat_template or template_text(family.template)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids([family.end, *family.stops])})
    )
    return folder
