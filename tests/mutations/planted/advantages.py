"""Group statistics."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation, file="rlhf/algorithms/advantages.py", tests=("tests/unit/algorithms/test_advantages.py",)
)

BUGS = (
    plant("std with ddof 0", "(count - 1).clamp(min=1)", "count.clamp(min=1)"),
    plant("epsilon of 1e-4", "STD_EPSILON = 1e-6", "STD_EPSILON = 1e-4"),
    plant("no epsilon", "(std + STD_EPSILON)[group]", "std[group]"),
    plant(
        "epsilon under the root",
        "(std + STD_EPSILON)[group]",
        "(std.square() + STD_EPSILON).sqrt()[group]",
    ),
    plant("variance for std", "(count - 1).clamp(min=1)).sqrt()", "(count - 1).clamp(min=1))"),
    plant(
        "the batch's mean for the group's",
        "mean = zeros.index_add(0, group, values) / count.clamp(min=1)",
        "mean = zeros + values.sum() / count.sum().clamp(min=1)",
    ),
    plant(
        "the batch's std for the group's",
        "std = (zeros.index_add(0, group, centred.square()) / (count - 1).clamp(min=1)).sqrt()",
        "std = zeros + (centred.square().sum() / (count.sum() - 1).clamp(min=1)).sqrt()",
    ),
    plant(
        "an unscorable reward counts as 0",
        "valid = ~torch.isnan(rewards)",
        "rewards = rewards.nan_to_num()\n    valid = torch.ones_like(rewards, dtype=torch.bool)",
    ),
    plant(
        "an unscorable reward is in the denominator",
        "zeros.index_add(0, group, valid.double())",
        "zeros.index_add(0, group, torch.ones_like(values))",
    ),
    plant(
        "an unscorable reward pushes its trajectory",
        "centred = torch.where(valid, values - mean[group], 0)",
        "centred = values - mean[group]",
    ),
    plant(
        "groups by position",
        "_, group = torch.unique(group_ids, return_inverse=True)",
        "_, group = torch.unique_consecutive(group_ids, return_inverse=True)",
    ),
    plant(
        "equal rewards by an exact comparison",
        "high - low > _EQUAL * torch.maximum(high.abs(), low.abs())",
        "high - low > 0",
    ),
    plant(
        "a group of one keeps its raw reward",
        "scaled = centred\n    return torch.where(valid & _varied(values, valid, group)[group], scaled, 0)",
        "scaled = centred\n    alone = torch.where(count[group] == 1, values, 0)\n"
        "    return torch.where(valid & _varied(values, valid, group)[group], scaled, alone)",
    ),
    plant("worse than the mean is better", "values - mean[group], 0)", "mean[group] - values, 0)"),
    plant(
        "leave-one-out mean",
        "values - mean[group], 0)",
        "(values - mean[group]) * (count / (count - 1).clamp(min=1))[group], 0)",
    ),
    plant("no centring", "values - mean[group], 0)", "values, 0)"),
    plant("std where none was asked for", "    if normalise:\n", "    if True:\n"),
    plant(
        "statistics in float32",
        "values = torch.where(valid, rewards, 0).double()\n"
        "    _, group = torch.unique(group_ids, return_inverse=True)\n"
        "    zeros = values.new_zeros(int(group.max()) + 1 if group.numel() else 0)\n"
        "    count = zeros.index_add(0, group, valid.double())",
        "values = torch.where(valid, rewards, 0).float()\n"
        "    _, group = torch.unique(group_ids, return_inverse=True)\n"
        "    zeros = values.new_zeros(int(group.max()) + 1 if group.numel() else 0)\n"
        "    count = zeros.index_add(0, group, valid.float())",
    ),
    plant(
        "a trajectory counts once per row",
        "first, trajectory = _first_rows(batch)",
        "first = trajectory = torch.arange(batch.num_rows)",
    ),
    plant(
        "advantages on prompt tokens",
        "return torch.where(batch.loss_mask, per_token, torch.zeros_like(per_token))",
        "return per_token",
    ),
    plant(
        "a trajectory speaks by its last row",
        'torch.full_like(ids, batch.num_rows).scatter_reduce(0, trajectory, rows, "amin")',
        'torch.full_like(ids, -1).scatter_reduce(0, trajectory, rows, "amax")',
        equivalent="The rows of a trajectory share its reward and its group, so each of them says the same.",
    ),
    plant(
        "the std's ddof is not guarded",
        "(count - 1).clamp(min=1)",
        "(count - 1)",
        equivalent="Only groups with fewer than two rewards divide by 0 or -1, and those are not varied: 0.",
    ),
)
