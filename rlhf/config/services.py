"""The keys of `services`: models that run beside the policy and are asked over HTTP, and how rewards name them."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveInt

from rlhf.config.section import Count, Section

S = TypeVar("S", bound=Section)
_ADDRESS = re.compile(r"service://([A-Za-z0-9_-]+)")


class ServiceConfig(Section):
    """A model that starts with the run, in a process of its own, and ends with it."""

    model: str
    """A Hugging Face folder or hub name."""
    kind: Literal["reward_model", "chat"] = "reward_model"
    """reward_model: a sequence classifier at `/classify`. chat: a language model at `/v1/chat/completions`."""
    engine: Literal["auto", "vllm", "hf"] = "auto"
    """vllm: its own server. hf: a small one on transformers. auto: vllm on GPUs if it is installed, else hf."""
    gpus: Count | None = None
    """GPUs of its own; default: one where the run is on GPUs."""
    threads: PositiveInt = 1
    """Cores of its own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: that of the checkpoint (vLLM makes float32 a 16-bit type)."""
    max_model_len: PositiveInt | None = None
    """Longest input with its answer; default: what the model was made for."""
    chat_template: str | None = None
    """A Jinja file in place of the chat template of the model's tokenizer."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further options of `vllm serve`: {max_num_seqs: 64, enable_prefix_caching: true}."""


def named_services(section: Section) -> list[str]:
    """Services that the `kwargs` anywhere in a section name as `service://NAME`, each once."""
    found: dict[str, None] = {}

    def note(text: str) -> str:
        found.update(dict.fromkeys(_ADDRESS.findall(text)))
        return text

    _with_texts(section, note)
    return list(found)


def with_addresses(section: S, addresses: Mapping[str, str]) -> S:
    """The section with `service://NAME` in its `kwargs` replaced by the service's address, where it has one."""
    changed: S = _with_texts(
        section, lambda text: _ADDRESS.sub(lambda match: addresses.get(match[1], match[0]), text)
    )
    return changed


def with_no_addresses(section: S, services: Iterable[str]) -> S:
    """The section with an address of each service at which nobody answers: enough to load what would ask there."""
    return with_addresses(section, dict.fromkeys(services, "http://127.0.0.1:1"))


def unknown_service(section: Section, services: Mapping[str, ServiceConfig]) -> str | None:
    """What to say of the first name that no service has; None where every name is known."""
    for name in named_services(section):
        if name not in services:
            near = get_close_matches(name, list(services), n=1)
            known = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(services) or 'none'}."
            where = "the kwargs of a reward or an environment"
            return f"'service://{name}' is in {where}, but services has no {name!r}: {known}"
    return None


def _with_texts(value: Any, change: Callable[[str], str], *, inside: bool = False) -> Any:
    """A copy in which every text below a key `kwargs` is changed."""
    match value:
        case str():
            return change(value) if inside else value
        case Section():
            parts = {key: _with_texts(part, change, inside=key == "kwargs") for key, part in value}
            # Only what differs: a copied key counts as given, which `rlhf check` asks of task.gold_template.
            return value.model_copy(
                update={key: part for key, part in parts.items() if part != dict(value)[key]}
            )
        case dict():
            return {key: _with_texts(part, change, inside=inside) for key, part in value.items()}
        case list() | tuple():
            return type(value)(_with_texts(part, change, inside=inside) for part in value)
        case _:
            return value
