"""Rewards by the score of a reward model that vLLM serves (`vllm serve MODEL --runner pooling`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.endpoint import Endpoint, EndpointError, as_endpoint
from rewards.response_format import visible
from rlhf.errors import ConfigError
from rlhf.types import Prompt


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
        """The score of a conversation that ends with the answer. `images` are addresses (http, https, data).

        They go with the first message of the user. Errors are those of `rewards.endpoint`.
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
    bad = [image for image in images if not image.startswith(("http://", "https://", "data:"))]
    if bad:
        raise ConfigError(f"an image is {bad[0]!r:.80}, expected an address (http, https or data).")
    if images:
        asked = next(message for message in listed if message["role"] == "user")
        shown = [{"type": "image_url", "image_url": {"url": image}} for image in images]
        asked["content"] = [*shown, {"type": "text", "text": asked["content"]}]
    return listed
