"""How token losses become one number."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(Mutation, file="rlhf/algorithms/reduce.py", tests=("tests/unit/algorithms/test_reduce.py",))

BUGS = (
    plant(
        "sequence means count empty rows",
        "num_rows = (row_tokens > 0).sum().clamp(min=1)",
        "num_rows = torch.ones_like(row_tokens).sum().clamp(min=1)",
    ),
    plant(
        "token_sum divided by the rows",
        'case "token_sum":\n            per_row = torch.ones_like(row_tokens)',
        'case "token_sum":\n            per_row = torch.ones_like(row_tokens) / num_rows',
    ),
    plant(
        "token_mean over prompt tokens, too",
        "torch.ones_like(row_tokens) / row_tokens.sum().clamp(min=1)",
        "torch.ones_like(row_tokens) / max(batch.num_tokens, 1)",
    ),
    plant(
        "seq_mean_token_mean by the padded length",
        "per_row = 1 / row_tokens.clamp(min=1) / num_rows",
        "per_row = 1 / row_tokens.max().clamp(min=1).expand_as(row_tokens) / num_rows"
        " if len(row_tokens) else row_tokens",
    ),
    plant(
        "seq_mean_token_mean by prompt plus completion",
        "per_row = 1 / row_tokens.clamp(min=1) / num_rows",
        "per_row = 1 / batch.row_lengths().double().clamp(min=1) / num_rows",
    ),
    plant(
        "seq_mean_token_mean without the mean over rows",
        "per_row = 1 / row_tokens.clamp(min=1) / num_rows",
        "per_row = 1 / row_tokens.clamp(min=1)",
    ),
    plant(
        "seq_mean_token_sum without the mean over rows",
        "per_row = torch.ones_like(row_tokens) / num_rows\n        case",
        "per_row = torch.ones_like(row_tokens)\n        case",
    ),
    plant(
        "seq_mean_token_sum_norm without the mean over rows",
        "torch.ones_like(row_tokens) / num_rows / normaliser",
        "torch.ones_like(row_tokens) / normaliser",
    ),
    plant(
        "the constant is the longest row instead",
        "torch.ones_like(row_tokens) / num_rows / normaliser",
        "torch.ones_like(row_tokens) / num_rows / max(row_tokens.tolist(), default=1)",
    ),
    plant(
        "prompt mean: rows of the group for its tokens",
        "row_tokens.new_zeros(ids.numel()).index_add(0, group, row_tokens)",
        "row_tokens.new_zeros(ids.numel()).index_add(0, group, (row_tokens > 0).double())",
    ),
    plant(
        "prompt mean: groups without tokens are counted",
        "(group_tokens > 0).sum().clamp(min=1)",
        "max(ids.numel(), 1)",
    ),
    plant(
        "prompt mean: groups by position",
        "ids, group = torch.unique(batch.group_ids, return_inverse=True)",
        "ids, group = torch.unique_consecutive(batch.group_ids, return_inverse=True)",
    ),
    plant(
        "rows left out by the caller are weighed",
        "mask = batch.loss_mask if kept is None else batch.loss_mask & kept[batch.segment_ids]",
        "mask = batch.loss_mask",
    ),
    plant(
        "tokens that are not trained are weighed",
        "return torch.where(mask, per_token, torch.zeros_like(per_token))",
        "return per_token",
    ),
    plant(
        "counts in float32",
        "dtype=torch.float64, device=mask.device)\n    return zeros.index_add(0, segment_ids, mask.double())",
        "device=mask.device)\n    return zeros.index_add(0, segment_ids, mask.float())",
    ),
    plant("counts mask nothing", "mask.double())", "torch.ones_like(mask).double())"),
    plant(
        "seq_mean_token_mean without the guard of empty rows",
        "per_row = 1 / row_tokens.clamp(min=1) / num_rows",
        "per_row = 1 / row_tokens / num_rows",
        equivalent="Only a row without trained tokens divides by 0, and none of its tokens passes the last "
        "where.",
    ),
)
