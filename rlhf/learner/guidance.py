"""Null rows beside rows: what the learner needs to score image codes as the engine drew them.

The distribution of a guided code is that of u + s (c - u), c the logits of its row and u those of its null row. The
head is linear, so it is the head of the same mix of hidden states, and the gradient runs through both passes. Code that
trains the log-probability of the row alone (as T2I-R1's trainer does, which samples with s = 5) scores another
distribution than it sampled from: it is off-policy by construction, however fresh the weights. Measured in
docs/decisions/0008.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf.batch import Batch
from rlhf.errors import LearnerError
from rlhf.image_codes import ImageCodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """Rows as one forward pass lays them: those of a batch, then the null rows of those with trained codes."""

    tokens: Tensor
    positions: Tensor
    lengths: Tensor
    origins: Tensor
    """As Batch.origins gives them."""
    null_before: Tensor | None = None
    """[M]: what predicts each trained token where its text is replaced; of a token of text, what predicts it anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """Of the M trained tokens: which are image codes, and what that restricts and mixes."""

    rule: ImageCodes
    is_code: Tensor
    """[M]"""

    def outside(self, size: int, part: slice) -> Tensor:
        """[chunk, V]: True for ids that are not of a token's kind."""
        is_code = torch.zeros(size, dtype=torch.bool, device=self.is_code.device)
        is_code[self.rule.first_id : self.rule.stop_id] = True
        return is_code[None] != self.is_code[part, None]


def kinds_of(batch: Batch, trained: Tensor) -> Kinds | None:
    """Kinds of the tokens at `trained`; None where the policy draws text alone."""
    if batch.image_codes is None or batch.code_mask is None:
        return None
    return Kinds(rule=batch.image_codes, is_code=batch.code_mask[trained])


def lay(batch: Batch, trained: Tensor) -> Laid:
    """The rows of a batch with what guides the tokens at `trained`.

    Null rows lie in the groups of their rows, so that they share as much.
    """
    plain = Laid(
        tokens=batch.tokens,
        positions=batch.positions,
        lengths=batch.row_lengths(),
        origins=batch.origins(),
    )
    kinds = kinds_of(batch, trained)
    if kinds is None or not kinds.rule.is_guided or not bool(kinds.is_code.any()):
        return plain
    if batch.routing is not None or batch.image_ids is not None:
        raise LearnerError(
            "guided image codes are not scored together with recorded experts or images that are seen"
        )
    assert batch.code_mask is not None
    guided = trained[kinds.is_code]
    rows = torch.unique(batch.segment_ids[guided])
    keeps = batch.code_mask | (batch.tokens == kinds.rule.begin_id)
    null = replace(batch, tokens=torch.where(keeps, batch.tokens, kinds.rule.null_id)).select_rows(rows)
    place = torch.zeros_like(batch.tokens)
    place[batch.token_index(rows)] = batch.num_tokens + torch.arange(null.num_tokens, device=place.device)
    null_before = trained - 1
    null_before[kinds.is_code] = place[guided] - 1
    return Laid(
        tokens=torch.cat([plain.tokens, null.tokens]),
        positions=torch.cat([plain.positions, null.positions]),
        lengths=torch.cat([plain.lengths, null.row_lengths()]),
        origins=torch.cat([plain.origins, batch.num_tokens + null.origins()]),
        null_before=null_before,
    )


def mix(rows: Tensor, null: Tensor, rule: ImageCodes) -> Tensor:
    """[M, H] of the hidden states of rows and of null rows: u + s (c - u), which is c where both are one."""
    # fp32: the difference of two bfloat16 numbers, times s, is too coarse.
    return (null.float() + rule.guidance * (rows.float() - null.float())).to(rows.dtype)
