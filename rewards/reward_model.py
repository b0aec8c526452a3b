"""Rewards by the score of a reward model that vLLM serves (`vllm serve MODEL --runner pooling`)."""

import base64
import math
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewards.endpoint import Endpoint, EndpointError, as_endpoint
from rewards.response_format import visible
from rlhf.errors import ConfigError
from rlhf.types import Prompt

_SLOT = "<image>"
"""Where an image of a prompt stands in its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedScorer:
    """A reward of (prompt, completion), and a `Scorer`: the model's number as it is, of any size and sign.

    Its scale is the model's, so give it a weight that fits, or an algorithm that normalises each reward by itself.
    """

    endpoint: Endpoint | Mapping[str, Any]
    """As `rewards.endpoint.Endpoint`; `url` without `/v1`."""
    api: Literal["classify", "pooling", "score"] = "classify"
    """`classify`: a sequence classifier. `pooling`: a model with values for each token, of which the last token's
    count. `score`: a cross-encoder of the last question and the answer. All are asked for without the activation."""
    label: int | None = None
    """Which of several classes counts; a model with one needs none."""
    with_thought: bool = False
    """Score the whole completion; else what follows the think block (nothing, where that is not closed)."""
    prompt_opens_think: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", as_endpoint(self.endpoint))
        if self.api not in ("classify", "pooling", "score"):
            raise ConfigError(f"api is {self.api!r}, expected classify, pooling or score.")

    async def __call__(self, completion: str, prompt: Prompt) -> float:
        """The score of the completion as the assistant's answer to the prompt."""
        answer = completion
        if not self.with_thought:
            answer = (visible(completion, prompt_opens_think=self.prompt_opens_think) or "").strip()
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        return await self.score([*messages, {"role": "assistant", "content": answer}], prompt.images)

    async def score(self, messages: Sequence[Mapping[str, str]], images: Sequence[str] = ()) -> float:
        """The score of a conversation that ends with the answer. `images` are addresses (http, https, data) or files.

        They go where the messages have `<image>`, else before the first message of the user. Files are sent as what
        is in them. Errors are those of `rewards.endpoint`.
        """
        endpoint = as_endpoint(self.endpoint)
        if self.api == "score":
            if images:
                raise ConfigError("api is score, which takes no images here; expected classify or pooling.")
            body: dict[str, Any] = {"text_1": messages[-2]["content"], "text_2": messages[-1]["content"]}
        else:
            body = {"messages": _with_images(messages, images)}
        found = await endpoint.post(f"/{self.api}", {**body, "use_activation": False})
        return self._number(found, {"classify": "probs", "pooling": "data", "score": "score"}[self.api])

    def _number(self, found: Mapping[str, Any], key: str) -> float:
        try:
            (item,) = found["data"]
            values = item[key]
            if isinstance(values, list) and values and isinstance(values[0], list):
                values = values[-1]  # of the last token
            if isinstance(values, list) and len(values) != 1 and self.label is None:
                raise EndpointError(
                    f"the reward model gives {len(values)} numbers: set label to the one that counts."
                )
            number = float(values[self.label or 0] if isinstance(values, list) else values)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointError(f"the reward model sent no score ({error!r}): {found!r:.300}") from None
        if not math.isfinite(number):
            raise EndpointError(f"the reward model's score is {number}, expected a finite number.")
        return number


def _with_images(messages: Sequence[Mapping[str, str]], images: Sequence[str]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = [dict(message) for message in messages]
    if not images:
        return listed
    asked = [message for message in listed if message["role"] != "assistant"]
    num_slots = sum(message["content"].count(_SLOT) for message in asked)
    if not num_slots:
        first = next(message for message in listed if message["role"] == "user")
        first["content"] = _SLOT * len(images) + first["content"]
    elif num_slots != len(images):
        raise ConfigError(
            f"the messages have {num_slots} image placeholders and there are {len(images)} images, expected as many of "
            "one as of the other."
        )
    left = iter(images)
    for message in asked:
        if _SLOT in message["content"]:
            message["content"] = _parts(message["content"], left)
    return listed


def _parts(text: str, images: Iterator[str]) -> list[dict[str, Any]]:
    """Text and images of a message in order."""
    found: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(_SLOT)):
        if index:
            found.append({"type": "image_url", "image_url": {"url": _address(next(images))}})
        if piece:
            found.append({"type": "text", "text": piece})
    return found


def _address(image: str) -> str:
    if image.startswith(("http://", "https://", "data:")):
        return image
    file = Path(image)
    if not file.is_file():
        raise ConfigError(f"an image is {image!r:.80}, expected an address (http, https or data) or a file.")
    kind = mimetypes.guess_type(file.name)[0] or "image/*"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
