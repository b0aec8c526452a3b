"""Image tokens that a policy draws in one sequence with text: the ids of a codebook, and what they are drawn from.

Source: Janus-Pro (arXiv 2501.17811) and T2I-R1 (arXiv 2505.00703), with text and codes in one vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCodes:
    """The rule by which text and image codes take turns. A token is drawn among those of its kind alone.

    `begin_id` is followed by exactly `num_tokens` codes, these by text. With `guidance` s the logits of a code are
    u + s (c - u): c those of the row, u those of its null row, in which all text is `null_id`.
    """

    first_id: int
    num_codes: int
    """The codes are first_id ... first_id + num_codes - 1."""
    begin_id: int
    num_tokens: int
    null_id: int
    guidance: float = 1.0
    """1: the null row has no part in it."""

    @property
    def is_guided(self) -> bool:
        """Whether null rows are needed."""
        return self.guidance != 1

    @property
    def stop_id(self) -> int:
        """One more than the last code."""
        return self.first_id + self.num_codes

    def is_code(self, token: int) -> bool:
        """Whether an id is one of the codebook."""
        return self.first_id <= token < self.stop_id

    def null_row(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The same row with every token of text replaced: images and where they begin stay."""
        return tuple(
            token if token == self.begin_id or self.is_code(token) else self.null_id for token in ids
        )

    def prompt_problem(self, ids: Sequence[int]) -> str | None:
        """What is wrong with a prompt; None where nothing is: it is text, at most ended by `begin_id`."""
        if any(map(self.is_code, ids)):
            return "holds image codes"
        if self.begin_id in ids[:-1]:
            return "goes on after the token that begins an image"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImages:
    """Which of a record's tokens are image codes, and the rule by which all of its sampled tokens were drawn."""

    rule: ImageCodes
    spans: tuple[tuple[int, int], ...]
    """(start, stop) of each image; the last one may have been cut."""

    def moved(self, by: int) -> "DrawnImages":
        """The same in a record that has so many tokens more before them."""
        return DrawnImages(rule=self.rule, spans=tuple((start + by, stop + by) for start, stop in self.spans))

    def of_part(self, start: int, stop: int) -> "DrawnImages":
        """Those of the tokens from `start` to `stop`, in a record of these alone."""
        inside = tuple(span for span in self.spans if start <= span[0] and span[1] <= stop)
        return DrawnImages(rule=self.rule, spans=inside).moved(-start)
