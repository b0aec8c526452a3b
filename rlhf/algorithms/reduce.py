"""How token losses become one number: a weight per token, computed once on the whole optimizer batch.

Loss = sum(weights * token losses), so any split into micro-batches and ranks adds up to the same gradient.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch

Aggregation = Literal[
    "token_sum",
    "token_mean",
    "seq_mean_token_mean",
    "seq_mean_token_sum",
    "seq_mean_token_sum_norm",
    "prompt_mean_token_mean",
]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def loss_weights(
    batch: Batch,
    aggregation: Aggregation,
    *,
    normaliser: float | None = None,
    kept: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, " N"]:
    """W of the aggregation, 0 on tokens that are not trained, in the dtype of `rollout_logprobs`.

    With m the loss mask, L_i a row's trained tokens and N the rows that have any:
    token_sum m; token_mean m / sum L; seq_mean_token_mean m / L_i / N; seq_mean_token_sum m / N;
    seq_mean_token_sum_norm m / N / C with C = `normaliser`;
    prompt_mean_token_mean m / (trained tokens of the prompt's group) / (number of such groups).
    Rows where `kept` is False count as empty; empty rows are not counted; nothing to train gives zeros.
    """
    mask = batch.loss_mask if kept is None else batch.loss_mask & kept[batch.segment_ids]
    row_tokens = _totals(batch.segment_ids, mask, batch.num_rows)
    num_rows = (row_tokens > 0).sum().clamp(min=1)
    match aggregation:
        case "token_sum":
            per_row = torch.ones_like(row_tokens)
        case "token_mean":
            per_row = torch.ones_like(row_tokens) / row_tokens.sum().clamp(min=1)
        case "seq_mean_token_mean":
            per_row = 1 / row_tokens.clamp(min=1) / num_rows
        case "seq_mean_token_sum":
            per_row = torch.ones_like(row_tokens) / num_rows
        case "seq_mean_token_sum_norm":
            if normaliser is None:
                raise ValueError("seq_mean_token_sum_norm needs its constant: give `normaliser`")
            per_row = torch.ones_like(row_tokens) / num_rows / normaliser
        case "prompt_mean_token_mean":
            ids, group = torch.unique(batch.group_ids, return_inverse=True)
            group_tokens = row_tokens.new_zeros(ids.numel()).index_add(0, group, row_tokens)
            per_row = 1 / group_tokens.clamp(min=1)[group] / (group_tokens > 0).sum().clamp(min=1)
    per_token = per_row.to(batch.rollout_logprobs.dtype)[batch.segment_ids]
    return torch.where(mask, per_token, torch.zeros_like(per_token))


def _totals(segment_ids: Int[Tensor, " N"], mask: Bool[Tensor, " N"], num_rows: int) -> Float[Tensor, " B"]:
    zeros = torch.zeros(num_rows, dtype=torch.float64, device=mask.device)
    return zeros.index_add(0, segment_ids, mask.double())
