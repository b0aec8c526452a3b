"""How the reference engine draws image codes among text: which kind comes next, from which logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.errors import EngineError
from rlhf.image_codes import DrawnImages, ImageCodes
from rlhf.interfaces import GenerateRequest


class Drawing:
    """Where one sample is in its text and images."""

    def __init__(self, rule: ImageCodes, *, is_begun: bool) -> None:
        """`is_begun`: the prompt ends with the token that begins an image."""
        self.rule = rule
        self._left = rule.num_tokens if is_begun else 0
        self._length = 0
        self._spans: list[tuple[int, int]] = []

    @property
    def is_code_next(self) -> bool:
        """Whether the next token is a code of an image."""
        return self._left > 0

    @property
    def drawn(self) -> DrawnImages:
        """The images so far."""
        return DrawnImages(rule=self.rule, spans=tuple(self._spans))

    def add(self, token: int) -> None:
        """Count a token that was drawn."""
        if self._left > 0:
            start = self._length if self._left == self.rule.num_tokens else self._spans.pop()[0]
            self._spans.append((start, self._length + 1))
            self._left -= 1
        elif token == self.rule.begin_id:
            self._left = self.rule.num_tokens
        self._length += 1

    def of_kind(self, logits: Tensor) -> Tensor:
        """[V] logits, minus infinity for tokens that are not of the next one's kind."""
        is_code = torch.zeros(logits.shape, dtype=torch.bool)
        is_code[self.rule.first_id : self.rule.stop_id] = True
        return logits.masked_fill(is_code != self.is_code_next, -torch.inf)


def open_drawing(request: GenerateRequest) -> Drawing | None:
    """The state of a sample before its first token; None where it is text alone. EngineError for its prompt."""
    rule, ids = request.sampling.image_codes, request.prompt_token_ids
    if rule is None:
        return None
    if (problem := rule.prompt_problem(ids)) is not None:
        raise EngineError(
            f"a prompt of {len(ids)} tokens {problem}; expected text, at most ended by that token"
        )
    return Drawing(rule, is_begun=ids[-1:] == (rule.begin_id,))


def mixed(logits: Tensor, drawings: Sequence[Drawing]) -> Tensor:
    """[rows, V] of [2 rows, V], the rows and then their null rows: u + s (c - u) where a code is next, else c.

    Source: classifier-free guidance as Janus samples with it (arXiv 2410.13848).
    """
    rows, null = logits.float().chunk(2)
    scales = torch.tensor([[drawing.rule.guidance] for drawing in drawings], device=logits.device)
    is_code_next = torch.tensor([[drawing.is_code_next] for drawing in drawings], device=logits.device)
    return torch.where(is_code_next, null + scales * (rows - null), rows)
