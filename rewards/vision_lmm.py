"""A multimodal model behind an OpenAI-compatible server as the judge of images: one by one, and row against row.

The prompts are of the three kinds of 2406.09397 (its words could not be read, these are ours). A reply without a strict
verdict in its last line is an EndpointError that shows the reply: never a tie, never a lowest score.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, get_args

from PIL.Image import Image

from rewards.endpoint import Endpoint, Reply, as_endpoint
from rewards.judge_text import ask, verdict
from rewards.response_format import THINK_CLOSE
from rewards.vision_chat import Chat, chat_of, image_part, unread
from rlhf.errors import ConfigError, DataError
from rlhf.retrieval import Verdict

Kind = Literal["ranker", "scorer", "cp-scorer"]
LOWEST, HIGHEST = 1, 5
_CRITERIA = (
    "The answers are images that a search found. Judge two things together: whether they show what was searched for, "
    "and how beautiful they are (composition, light, colour, style, sharpness)."
)
_IMAGE = f"Score the image with a whole number from {LOWEST} (worst) to {HIGHEST} (best)."
_ROW = (
    "The images are one row of results. Score the row with a whole number from "
    f"{LOWEST} (worst) to {HIGHEST} (best)."
)
_BOTH = (
    "The images are two rows of results, row A and row B. Score each row with a whole number from "
    f"{LOWEST} (worst) to {HIGHEST} (best)."
)
_CHOOSE = (
    "The images are two rows of results, row A and row B. Choose the better row, even where they are close."
)
_TWO_SCORES = re.compile(r"VERDICT:\s*A\s*=\s*(\d)[\s,;]+B\s*=\s*(\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMM:
    """A `Judge` and a `PairJudge`: scores of 1 to 5, and the better of two rows.

    ranker: chooses a row; one call. scorer: scores each row alone, two calls, equal scores tie. cp-scorer: sees both
    rows and scores both; one call. `score` asks once for each image, whatever `kind` is. Models like what is shown
    first: put a ranker and a cp-scorer into `rlhf.vision.judging.OrderConsistent`.
    """

    endpoint: Endpoint | Mapping[str, Any]
    """As `rewards.endpoint.Endpoint`."""
    kind: Kind = "ranker"
    criteria: str = _CRITERIA
    max_side: int = 512
    """Larger images are sent smaller."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """As `rewards.vision_chat.Chat`: at_once, retries, pause_s, max_tokens."""
    name: str = "lmm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", as_endpoint(self.endpoint))
        self._chat()
        if self.kind not in get_args(Kind) or self.max_side < 1:
            raise ConfigError(
                f"kind is {self.kind!r} and max_side {self.max_side}, expected one of {', '.join(get_args(Kind))}, "
                "and 1 or more."
            )

    @property
    def version(self) -> str:
        """Of the model's name and what it is asked."""
        asked = sha256("\0".join([self.criteria, _IMAGE, _ROW, _BOTH, _CHOOSE]).encode()).hexdigest()[:12]
        return f"{as_endpoint(self.endpoint).model} {self.kind} {self.max_side} {asked}"

    @property
    def range(self) -> tuple[float, float]:
        """Between which numbers scores lie."""
        return (LOWEST, HIGHEST)

    reads_query = True

    def score(self, images: Sequence[Image], queries: Sequence[str] | None = None) -> list[float]:
        """1 to 5 for each image, for its query where that is given; all calls are under way together."""
        if queries is not None and len(queries) != len(images):
            raise DataError(f"judge {self.name!r} got {len(images)} images and {len(queries)} queries.")
        texts = [{} if queries is None else {"query": query} for query in queries or [""] * len(images)]
        asked = [
            self._messages(_IMAGE, "<number>", text, [("", [image])])
            for text, image in zip(texts, images, strict=True)
        ]
        replies = self._chat().ask(asked)
        return [
            self._number(reply, f"image {place} of {len(images)}, {text}")
            for place, (reply, text) in enumerate(zip(replies, texts, strict=True))
        ]

    def compare(self, query: str, row_a: Sequence[Image], row_b: Sequence[Image]) -> Verdict:
        """The better row."""
        if not row_a or not row_b:
            raise DataError(
                f"judge {self.name!r}: rows of {len(row_a)} and {len(row_b)} images for query {query!r}."
            )
        texts, about = {"query": query}, f"the rows for query {query!r}"
        both = [("Row A:", row_a), ("Row B:", row_b)]
        if self.kind == "scorer":
            asked = [self._messages(_ROW, "<number>", texts, [("", row)]) for row in (row_a, row_b)]
            a, b = (self._number(reply, about) for reply in self._chat().ask(asked))
            return _higher(a, b)
        if self.kind == "cp-scorer":
            (reply,) = self._chat().ask([self._messages(_BOTH, "A=<number> B=<number>", texts, both)])
            return _higher(*self._two_numbers(reply, about))
        (reply,) = self._chat().ask([self._messages(_CHOOSE, "<A or B>", texts, both)])
        match verdict(reply):
            case "A":
                return "a"
            case "B":
                return "b"
        raise unread(reply, "A or B", about=self._about(about))

    def _messages(
        self, task: str, form: str, texts: Mapping[str, str], rows: Sequence[tuple[str, Sequence[Image]]]
    ) -> list[dict[str, Any]]:
        system, user = ask(self.criteria, task, form, texts)
        parts: list[dict[str, Any]] = [{"type": "text", "text": user["content"]}] if texts else []
        for title, images in rows:
            parts += [{"type": "text", "text": title}] if title else []
            parts += [image_part(image, max_side=self.max_side) for image in images]
        return [system, {"role": "user", "content": parts}]

    def _number(self, reply: Reply, about: str) -> float:
        said = verdict(reply) or ""
        if said not in {str(number) for number in range(LOWEST, HIGHEST + 1)}:
            raise unread(reply, f"a number from {LOWEST} to {HIGHEST}", about=self._about(about))
        return float(said)

    def _two_numbers(self, reply: Reply, about: str) -> tuple[float, float]:
        lines = reply.text.rpartition(THINK_CLOSE)[2].strip().splitlines() or [""]
        found = _TWO_SCORES.fullmatch(lines[-1].strip(" \t*_`"))
        scores = [int(score) for score in found.groups()] if found and reply.is_complete else []
        if not scores or not all(LOWEST <= score <= HIGHEST for score in scores):
            raise unread(
                reply, f"A=<{LOWEST} to {HIGHEST}> B=<{LOWEST} to {HIGHEST}>", about=self._about(about)
            )
        return float(scores[0]), float(scores[1])

    def _about(self, about: str) -> str:
        return f"judge {self.name!r} on {about}"

    def _chat(self) -> Chat:
        return chat_of(self.endpoint, self.chat)


def _higher(a: float, b: float) -> Verdict:
    return "tie" if a == b else "a" if a > b else "b"
