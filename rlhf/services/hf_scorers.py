"""What the small server scores with: sequence classifiers, those that see images among them, and dual encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch

from rlhf.data.dual_inputs import DualInputs, folder_config
from rlhf.data.scoring_models import is_dual, scoring_class
from rlhf.data.vision_model import ImageProcessor, VisionModel, find_vision
from rlhf.errors import DataError
from rlhf.services.hf_models import BadRequest, ServedModel
from rlhf.services.settings import ServiceSettings

_IMAGE_PARTS = ("image_url", "image")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the model takes it."""

    ids: Sequence[int]
    images: tuple[str, ...] = ()


class Scoring(Protocol):
    """A model that gives numbers for requests, several in a call."""

    network: Any

    def read(self, body: Mapping[str, Any]) -> Asked:
        """The request of a body. BadRequest for one that this model cannot answer."""

    def classify(self, asked: Sequence[Asked]) -> list[list[float]]:
        """The logits of each request."""


def load_scorer(settings: ServiceSettings) -> Scoring:
    """The model of a folder, by what its config.json says of it."""
    return PictureScorer(settings) if is_dual(folder_config(settings.model)) else Classifier(settings)


class Classifier(ServedModel):
    """A sequence classifier: the numbers of the last token. It may see the images of a conversation."""

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings, scoring_class(folder_config(settings.model)))
        # Sequences of one length go together, so nothing is padding, not even a token that pads elsewhere.
        self.network.config.get_text_config().pad_token_id = -1
        vision = find_vision(settings.model)
        self._sight = None if vision is None else _Sight(vision, self.tokenizer)

    def read(self, body: Mapping[str, Any]) -> Asked:
        """A text, or a conversation; where it shows an image, that has as many tokens as its size asks for."""
        images = tuple(_reference(given) for kind, given in _parts(body) if kind in _IMAGE_PARTS)
        if self._sight is None:
            if images:
                raise BadRequest("it shows an image, and this model sees none")
            return Asked(self.encode(body, asks=False))
        ids = self._sight.expanded(self.encode(self._sight.spelt(body), asks=False), images)
        if len(ids) > self.longest:
            raise BadRequest(f"it has {len(ids)} tokens, expected 1 to {self.longest} (max_model_len)")
        return Asked(ids, images)

    @torch.inference_mode()
    def classify(self, asked: Sequence[Asked]) -> list[list[float]]:
        """The logits of each request."""
        found: dict[int, list[float]] = {}
        by_length = sorted(range(len(asked)), key=lambda i: len(asked[i].ids))
        for _, group in groupby(by_length, key=lambda i: len(asked[i].ids)):
            places = list(group)
            ids = torch.tensor([asked[i].ids for i in places], device=self.network.device)
            seen = {} if self._sight is None else self._sight.inputs(ids, [asked[i].images for i in places])
            logits = self.network(input_ids=ids, **seen).logits.float().tolist()
            found |= dict(zip(places, logits, strict=True))
        return [found[i] for i in range(len(asked))]


class _Sight:
    """How a language model is shown the images of a request."""

    def __init__(self, vision: VisionModel, tokenizer: Any) -> None:
        self._processor = ImageProcessor(vision)
        self._image_id = vision.image_id
        tokens = [vision.start_id, vision.image_id, vision.end_id]
        self._text = "".join(tokenizer.convert_ids_to_tokens(tokens))

    def spelt(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The body with text alone, in which each image is its tokens, unexpanded."""
        if not isinstance(body.get("messages"), list):
            return body
        return {**body, "messages": [self._spelt(message) for message in body["messages"]]}

    def expanded(self, ids: Sequence[int], images: Sequence[str]) -> list[int]:
        """The ids with all the tokens of each image."""
        num_slots = list(ids).count(self._image_id)
        if num_slots != len(images):
            raise BadRequest(f"its text becomes {num_slots} image tokens, but it shows {len(images)} images")
        try:
            sizes = iter([self._processor.num_tokens(image) for image in images])
        except DataError as error:
            raise BadRequest(str(error)) from error
        return [token for one in ids for token in [one] * (next(sizes) if one == self._image_id else 1)]

    def inputs(self, ids: torch.Tensor, images: Sequence[Sequence[str]]) -> Mapping[str, torch.Tensor]:
        """What the network takes beside the ids [B, T], whose rows show these images."""
        seen = [image for shown in images for image in self._processor.of_all(shown)]
        if not seen:
            return {}
        return {
            "pixel_values": torch.cat([image.values for image in seen]).to(ids.device),
            "image_grid_thw": torch.tensor([image.grid for image in seen], device=ids.device),
            "mm_token_type_ids": (ids == self._image_id).int(),
        }

    def _spelt(self, message: Any) -> Any:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
            return message
        parts = _parts({"messages": [message]})
        return {
            **message,
            "content": "".join(self._text if kind in _IMAGE_PARTS else str(given) for kind, given in parts),
        }


class PictureScorer:
    """A dual encoder: its logit of one picture and the text that answers it, or that it answers."""

    def __init__(self, settings: ServiceSettings) -> None:
        torch.set_num_threads(settings.threads)
        network = scoring_class(folder_config(settings.model)).from_pretrained(
            settings.model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
        )
        self.network: Any = network.to(settings.device).eval()
        self._inputs = DualInputs(settings.model, trust_remote_code=settings.trust_remote_code)

    def read(self, body: Mapping[str, Any]) -> Asked:
        """A conversation with one picture: it is scored with the last message, or with what asked for the picture."""
        messages = body.get("messages")
        shown = [_reference(given) for kind, given in _parts(body) if kind in _IMAGE_PARTS]
        if not isinstance(messages, list) or len(shown) != 1:
            raise BadRequest(f"it shows {len(shown)} pictures in its messages, expected one and a text")
        last = _parts({"messages": messages[-1:]})
        if any(kind in _IMAGE_PARTS for kind, _ in last) and len(messages) > 1:
            last = _parts({"messages": messages[-2:-1]})
        text = "".join(str(given) for kind, given in last if kind == "text")
        try:
            return Asked(self._inputs.text_ids(text, where="the text"), tuple(shown))
        except DataError as error:
            raise BadRequest(str(error)) from error

    @torch.inference_mode()
    def classify(self, asked: Sequence[Asked]) -> list[list[float]]:
        """The logit of each request."""
        texts = self._inputs.texts([one.ids for one in asked])
        pixels = self._inputs.pictures([image for one in asked for image in one.images])
        given = {**texts, "pixel_values": pixels}
        logits = self.network(
            **{name: values.to(self.network.device) for name, values in given.items()}
        ).logits
        found: list[list[float]] = logits.float().tolist()
        return found


def _parts(body: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(kind, text or image) of every part of the messages; a content that is text is one part of text."""
    found: list[tuple[str, Any]] = []
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else [{"type": "text", "text": content or ""}]:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", *_IMAGE_PARTS):
                raise BadRequest(f"a part is {part!r:.80}, expected {{type: text}} or {{type: image_url}}")
            found.append((kind, part.get(kind)))
    return found


def _reference(given: Any) -> str:
    """The image of a part; a server opens no files for who asks, and fetches nothing."""
    image = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(image, str) or not image.startswith("data:"):
        raise BadRequest(f"an image is {image!r:.80}, expected a data: URI")
    return image
