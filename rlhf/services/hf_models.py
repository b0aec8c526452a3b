"""What the small server answers with: models of transformers, of which those that write answers one call at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.services.settings import ServiceSettings

MAX_TOKENS = 1024
"""Of an answer whose request says nothing."""


class BadRequest(ValueError):
    """A request that this model cannot answer; its text goes to who asked."""


class ServedModel:
    """A network and its tokenizer."""

    def __init__(self, settings: ServiceSettings, kind: Any) -> None:
        torch.set_num_threads(settings.threads)
        trusted = settings.trust_remote_code
        self.tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=trusted)
        if settings.chat_template is not None:
            self.tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8")
        network = kind.from_pretrained(settings.model, dtype=settings.dtype, trust_remote_code=trusted)
        self.network = network.to(settings.device).eval()
        positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
        self.longest: int = settings.max_model_len or positions or 1 << 30

    def encode(self, body: Mapping[str, Any], *, asks: bool) -> list[int]:
        """Token ids of a conversation, with the opening of the answer where the model `asks` for one."""
        try:
            ids = self._ids(body, asks=asks)
        except (KeyError, TypeError, ValueError, TemplateError) as error:
            raise BadRequest(f"cannot be made tokens: {type(error).__name__}: {error}") from error
        if not 0 < len(ids) <= self.longest:
            raise BadRequest(f"it has {len(ids)} tokens, expected 1 to {self.longest} (max_model_len)")
        return ids

    def _ids(self, body: Mapping[str, Any], *, asks: bool) -> list[int]:
        if "messages" not in body:
            if not isinstance(body["input"], str):
                raise TypeError("input is not a text")
            plain: list[int] = self.tokenizer(body["input"])["input_ids"]
            return plain
        if not isinstance(body["messages"], list):
            raise TypeError("messages is not a list")
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=asks
        )
        # The template writes the special tokens itself.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class ChatModel(ServedModel):
    """A language model: one answer at a time."""

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings, AutoModelForCausalLM)

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int], body: Mapping[str, Any]) -> tuple[str, bool]:
        """The answer's text, and whether the model ended it by itself."""
        asked = _number(body, "max_tokens", _number(body, "max_completion_tokens", MAX_TOKENS))
        limit = min(int(asked), self.longest - len(prompt))
        if limit < 1:
            raise BadRequest(
                f"max_tokens is {asked:g} and the question has {len(prompt)} tokens of {self.longest}: none are left "
                "to answer"
            )
        temperature = _number(body, "temperature", 1.0)
        drawn: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": temperature,
                "top_p": _number(body, "top_p", 1.0),
                "top_k": 0,
            }
        torch.manual_seed(int(_number(body, "seed", 0)))
        ids = torch.tensor([list(prompt)], device=self.network.device)
        mask = torch.ones_like(ids)
        made = self.network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, **drawn)[0]
        new = made[len(prompt) :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        stops = self.network.generation_config.eos_token_id
        return text, bool(new) and new[-1] in (stops if isinstance(stops, list) else [stops])


def _number(body: Mapping[str, Any], key: str, default: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{key} is {value!r:.40}, expected a number")
    return value
