"""A reward for text read from a picture: how few characters must be changed to make it the reference's."""

import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from rewards.claims import claims
from rlhf.errors import ConfigError, DataError
from rlhf.types import RewardResult

Spacing = Literal["collapse", "ignore", "exact"]
Share = Literal["longest", "gold"]
MAX_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSimilarity:
    """1 - edit distance / the longer length, in characters, between the completion's text and the reference.

    `share: gold` divides by the reference's length (1 - character error rate, at least 0), so that listing texts does
    not pay. Below `threshold` it is 0 (0.5 as in ANLS, arXiv 1907.00490). Compared is what `normalised` leaves. The
    text stands in `<answer>` tags; with `tagged: false` all that follows the thought is it, where there is no pair.
    """

    case: bool = True
    """Whether capitals count."""
    spacing: Spacing = "collapse"
    """Each run of white space is one space; or there is none; or it counts as it stands. Never at the ends."""
    nfkc: bool = True
    """Unicode's compatible forms are one (NFKC), characters without width are left out."""
    share: Share = "longest"
    threshold: float = 0.0
    tagged: bool = True
    prompt_opens_think: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("spacing", self.spacing, get_args(Spacing)),
            ("share", self.share, get_args(Share)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(allowed)}.")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold!r}, expected 0 to 1.")

    def __call__(self, completion: str, reference: str | None) -> RewardResult:
        """The similarity; part `exact` is 1 for the very text. DataError when the reference has no text."""
        gold = self.normalised(reference or "")
        if not gold or len(gold) > MAX_CHARACTERS:
            raise DataError(
                f"reference is {reference!r:.80}, of {len(gold)} characters after normalisation: expected text of 1 "
                f"to {MAX_CHARACTERS}."
            )
        said = claims(completion, prompt_opens_think=self.prompt_opens_think, boxes=False, phrases=False)
        texts = {self.normalised(text) for text in said.texts} - {""}
        if len(texts) != 1 or (self.tagged and not said.is_marked):
            return RewardResult(value=0.0, outcome="unparsable", parts={"exact": 0.0})
        text = texts.pop()
        if len(text) > MAX_CHARACTERS:
            return RewardResult(value=0.0, outcome="limit", detail={"characters": float(len(text))})
        length = len(gold) if self.share == "gold" else max(len(gold), len(text))
        value = max(0.0, 1 - edit_distance(text, gold) / length)
        return RewardResult(
            value=value if value >= self.threshold else 0.0,
            outcome="ok" if text == gold else "wrong",
            parts={"exact": float(text == gold)},
            detail={"answer": text[:200]},
        )

    def normalised(self, text: str) -> str:
        """The characters that are compared."""
        if self.nfkc:
            text = unicodedata.normalize("NFKC", text)
            text = "".join(c for c in text if unicodedata.category(c) != "Cf")
        if not self.case:
            text = text.casefold()
        if self.spacing == "exact":
            return text.strip()
        return ("" if self.spacing == "ignore" else " ").join(text.split())


def edit_distance(one: str, other: str) -> int:
    """How many characters to insert, delete or replace to make one text the other.

    A column of the table at a time, its differences as the bits of an integer: 2,000 by 2,000 characters are 2,000
    steps. Source: Hyyrö (2003), "A bit-vector algorithm for computing Levenshtein and Damerau edit distances".
    """
    if not one or not other:
        return len(one) + len(other)
    places: dict[str, int] = {}
    for index, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << index
    mask, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    rises, falls, distance = mask, 0, len(one)
    for character in other:
        equal = places.get(character, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | (mask & ~(diagonal | rises))
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & mask
        right_falls = (right_falls << 1) & mask
        rises = right_falls | (mask & ~(diagonal | right_rises))
        falls = right_rises & diagonal & mask
    return distance
