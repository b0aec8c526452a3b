"""A linear head on the embeddings of a model that is served: LAION's judge of images, without torch in this process.

vLLM serves CLIP and SigLIP: `vllm serve openai/clip-vit-large-patch14 --runner pooling`. How LAION's file becomes one
that is read here says `rewards.vision_heads`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image

from rewards.endpoint import Endpoint, EndpointError, as_endpoint
from rewards.vision_chat import Chat, chat_of, image_part
from rewards.vision_heads import LinearHead, load_head
from rlhf.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ServedHead:
    """A `Judge`: a head of `rewards.vision_heads` on what a server's model makes of each image.

    Which embedding a head was trained on only its maker knows: LAION's of 768 numbers is of CLIP ViT-L/14.
    """

    path: str
    """As of `load_head`."""
    endpoint: Endpoint | Mapping[str, Any]
    """As `rewards.endpoint.Endpoint`."""
    normalise: bool = True
    """Bring each embedding to length 1 first, as LAION's heads expect."""
    max_side: int = 512
    """Larger images are sent smaller."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """As `rewards.vision_chat.Chat`: at_once, retries, pause_s."""
    name: str = "served-head"
    _head: LinearHead = field(init=False, repr=False)
    reads_query = False

    def __post_init__(self) -> None:
        endpoint = as_endpoint(self.endpoint)
        object.__setattr__(self, "endpoint", endpoint)
        self._chat()
        if self.max_side < 1:
            raise ConfigError(f"max_side is {self.max_side}, expected 1 or more.")
        head = load_head(self.path, embedding=endpoint.model, normalise=self.normalise, name=self.name)
        object.__setattr__(self, "_head", head)

    @property
    def version(self) -> str:
        """Of the model's name, the size that it is shown, and the head."""
        return f"{self._head.version} {self.max_side}"

    def score(self, images: Sequence[Image], queries: Sequence[str] | None = None) -> list[float]:  # noqa: ARG002
        """The head's numbers; all calls are under way together. DataError for embeddings of another width."""
        if not images:
            return []
        shown = [
            [{"role": "user", "content": [image_part(image, max_side=self.max_side)]}] for image in images
        ]
        vectors = self._chat().embed(shown)
        widths = {len(vector) for vector in vectors}
        if len(widths) != 1:
            raise EndpointError(
                f"judge {self.name!r}: {as_endpoint(self.endpoint).url} gave embeddings of {sorted(widths)} numbers, "
                "expected one width."
            )
        return self._head.rate(np.asarray(vectors, np.float64))

    def _chat(self) -> Chat:
        return chat_of(self.endpoint, self.chat)
