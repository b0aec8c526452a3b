"""Group statistics and whitening."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation,
    file="rlhf/algorithms/advantages.py",
    tests=("tests/unit/algorithms/test_advantages.py", "tests/unit/algorithms/test_estimators.py"),
)

GROUPS = (
    plant("std with ddof 0", "(self.count - 1).clamp(min=1)", "self.count.clamp(min=1)"),
    plant("epsilon of 1e-4", "STD_EPSILON = 1e-6", "STD_EPSILON = 1e-4"),
    plant(
        "no epsilon",
        "return on_tokens(found.centred / (found.std() + STD_EPSILON)",
        "return on_tokens(found.centred / torch.where(found.varied, found.std(), 1)",
    ),
    plant(
        "epsilon under the root",
        "return on_tokens(found.centred / (found.std() + STD_EPSILON)",
        "return on_tokens(found.centred / (found.std().square() + STD_EPSILON).sqrt()",
    ),
    plant(
        "variance for std",
        "(self.count - 1).clamp(min=1)).sqrt()",
        "(self.count - 1).clamp(min=1))",
    ),
    plant(
        "the batch's mean for the group's",
        "mean = group_sums(values, group) / count.clamp(min=1)",
        "mean = torch.ones_like(values) * (values.sum() / valid.sum().clamp(min=1))",
    ),
    plant(
        "the batch's std for the group's",
        "(group_sums(self.centred.square(), self.group) / (self.count - 1).clamp(min=1)).sqrt()",
        "(self.centred.square().sum() / (self.valid.sum() - 1).clamp(min=1)).sqrt() + 0 * self.mean",
    ),
    plant(
        "an unscorable reward counts as 0",
        "valid = ~torch.isnan(rewards)",
        "rewards = rewards.nan_to_num()\n    valid = torch.ones_like(rewards, dtype=torch.bool)",
    ),
    plant(
        "an unscorable reward is in the denominator",
        "count = group_sums(valid.double(), group)",
        "count = group_sums(torch.ones_like(values), group)",
    ),
    plant(
        "an unscorable reward pushes its trajectory",
        "varied = valid & _differ(low, high)[group]",
        "varied = _differ(low, high)[group]",
    ),
    plant(
        "an unscorable reward is the group's lowest",
        "torch.where(valid, values, torch.inf)",
        "values",
    ),
    plant(
        "groups by position",
        "_, group = torch.unique(group_ids, return_inverse=True)",
        "_, group = torch.unique_consecutive(group_ids, return_inverse=True)",
    ),
    plant(
        "all rows are one group",
        "return_inverse=True)\n    count",
        "return_inverse=True)\n    group = 0 * group\n    count",
    ),
    plant(
        "equal rewards are compared",
        "varied = valid & _differ(low, high)[group]",
        "varied = valid & (count > 1)",
    ),
    plant(
        "equal rewards by an exact comparison",
        "high - low > EQUAL * torch.maximum(high.abs(), low.abs())",
        "high - low > 0",
    ),
    plant(
        "equal rewards by an absolute distance",
        "high - low > EQUAL * torch.maximum(high.abs(), low.abs())",
        "high - low > EQUAL",
    ),
    plant(
        "a group of one keeps its raw reward",
        "return torch.where(self.varied, self.rewards - self.mean, 0)",
        "alone = torch.where(self.count == 1, self.rewards, 0)\n"
        "        return torch.where(self.varied, self.rewards - self.mean, alone)",
    ),
    plant("worse than the mean is better", "self.rewards - self.mean, 0)", "self.mean - self.rewards, 0)"),
    plant(
        "leave-one-out mean",
        "self.rewards - self.mean, 0)",
        "(self.rewards - self.mean) * self.count / (self.count - 1).clamp(min=1), 0)",
    ),
    plant("no centring", "self.rewards - self.mean, 0)", "self.rewards, 0)"),
    plant(
        "a group's std where none was asked for",
        "return found.centred / (found.std() + STD_EPSILON) if normalise else found.centred",
        "return found.centred / (found.std() + STD_EPSILON)",
    ),
    plant(
        "no group's std where one was asked for",
        "return found.centred / (found.std() + STD_EPSILON) if normalise else found.centred",
        "return found.centred",
    ),
    plant(
        "a trajectory's std where none was asked for",
        "on_tokens(found.centred / (found.std() + STD_EPSILON) if normalise else found.centred, batch)",
        "on_tokens(found.centred / (found.std() + STD_EPSILON), batch)",
    ),
    plant(
        "statistics in float32",
        "torch.where(valid, rewards.double(), 0)",
        "torch.where(valid, rewards.float(), 0)",
    ),
    plant(
        "token rewards are forgotten",
        "group_rewards(sequence_rewards(batch)[first], batch",
        "group_rewards(batch.rewards[first], batch",
    ),
    plant(
        "truncated trajectories are not in the baseline",
        "group_rewards(sequence_rewards(batch)[first], batch",
        "group_rewards(torch.where(batch.truncated, torch.nan, sequence_rewards(batch))[first], batch",
    ),
    plant(
        "advantages on prompt tokens", "return torch.where(batch.loss_mask, per_token, 0)", "return per_token"
    ),
    plant(
        "advantages on the token after",
        "return torch.where(batch.loss_mask, per_token, 0)",
        "return torch.where(batch.loss_mask, per_token, 0).roll(1)",
    ),
    plant(
        "advantages shared out over a row's tokens",
        "return torch.where(batch.loss_mask, per_token, 0)",
        "return torch.where(batch.loss_mask, per_token / batch.row_sampled().clamp(min=1)[batch.segment_ids], 0)",
    ),
    plant(
        "advantages in float32",
        "per_trajectory.to(batch.rollout_logprobs.dtype)[trajectory]",
        "per_trajectory.float().to(batch.rollout_logprobs.dtype)[trajectory]",
    ),
    plant(
        "group sums are those of the group before",
        ".index_add(0, group, values)[group]",
        ".index_add(0, group, values).roll(1)[group]",
    ),
    plant(
        "the std's ddof is not guarded",
        "(self.count - 1).clamp(min=1)",
        "(self.count - 1)",
    ),
)

WHITENING = (
    plant("whiten: ddof 0", "chosen.var(correction=1)", "chosen.var(correction=0)"),
    plant("whiten: no epsilon", "_VARIANCE_EPSILON = 1e-8", "_VARIANCE_EPSILON = 0.0"),
    plant(
        "whiten: epsilon beside the root",
        "(chosen.var(correction=1) + _VARIANCE_EPSILON).sqrt()",
        "chosen.var(correction=1).sqrt() + _VARIANCE_EPSILON",
    ),
    plant(
        "whiten: mean over all tokens of the batch",
        "chosen - chosen.mean()) / scale",
        "chosen - values.nan_to_num(posinf=0, neginf=0).clamp(-9, 9).double().mean()) / scale",
    ),
    plant("whiten: no mean", "((chosen - chosen.mean()) / scale)", "(chosen / scale)"),
    plant("whiten: no std", "((chosen - chosen.mean()) / scale)", "(chosen - chosen.mean())"),
    plant(
        "whiten: the mean is added again",
        "((chosen - chosen.mean()) / scale)",
        "((chosen - chosen.mean()) / scale + chosen.mean())",
    ),
    plant(
        "whiten: tokens of ungradable trajectories are in the statistics",
        "used = batch.loss_mask & ~torch.isnan(batch.rewards)[batch.segment_ids]",
        "used = batch.loss_mask",
    ),
    plant(
        "whiten: tool tokens are in the statistics",
        "used = batch.loss_mask & ~torch.isnan(batch.rewards)[batch.segment_ids]",
        "used = values.isfinite() & (values.abs() < 99) & ~torch.isnan(batch.rewards)[batch.segment_ids]",
    ),
    plant(
        "whiten: what is left out keeps its value",
        "result = torch.zeros_like(values)",
        "result = values.clone()",
    ),
    plant(
        "whiten: equal values",
        "chosen.numel() > 1 and bool(_differ(chosen.min(), chosen.max()))",
        "chosen.numel() > 1",
    ),
    plant("whiten: in float32", "chosen = values[used].double()", "chosen = values[used].float()"),
)

BUGS = (*GROUPS, *WHITENING)
