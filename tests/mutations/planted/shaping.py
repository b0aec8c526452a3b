"""What length does to rewards."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(Mutation, file="rlhf/algorithms/shaping.py", tests=("tests/unit/algorithms/test_shaping.py",))

BUGS = (
    plant(
        "cosine: another paper's numbers",
        "wrong: tuple[float, float] = (-10.0, 0.0)",
        "wrong: tuple[float, float] = (-1.0, 0.0)",
    ),
    plant(
        "cosine: correct ones gain by length",
        "correct: tuple[float, float] = (2.0, 1.0)",
        "correct: tuple[float, float] = (1.0, 2.0)",
    ),
    plant(
        "a reward on the threshold is correct",
        "rewards, correct = task, task > self.correct_above",
        "rewards, correct = task, task >= self.correct_above",
    ),
    plant(
        "any positive reward is correct",
        "rewards, correct = task, task > self.correct_above",
        "rewards, correct = task, task > 0",
    ),
    plant(
        "cosine: on top of the task's reward",
        "rewards = cosine_reward(lengths, correct,",
        "rewards = rewards + cosine_reward(lengths, correct,",
    ),
    plant(
        "cosine: truncated ones keep their place on the curve",
        "rewards = torch.where(batch.truncated, self.cosine.truncated, rewards)",
        "rewards = 1 * rewards",
    ),
    plant(
        "cosine: only wrong truncated ones are punished",
        "torch.where(batch.truncated, self.cosine.truncated, rewards)",
        "torch.where(batch.truncated & ~correct, self.cosine.truncated, rewards)",
    ),
    plant(
        "kimi: coefficient forgotten",
        "rewards + self.kimi_coef * kimi_length_reward(",
        "rewards + kimi_length_reward(",
    ),
    plant(
        "kimi: sign",
        "rewards + self.kimi_coef * kimi_length_reward(",
        "rewards - self.kimi_coef * kimi_length_reward(",
    ),
    plant(
        "kimi: in place of the task's reward",
        "rewards + self.kimi_coef * kimi_length_reward(",
        "self.kimi_coef * kimi_length_reward(",
    ),
    plant(
        "kimi: ungradable rows are compared with",
        "valid = ~torch.isnan(task)",
        "valid = torch.ones_like(correct)",
    ),
    plant(
        "kimi: over the batch",
        "correct, valid=valid, group_ids=batch.group_ids",
        "correct, valid=valid, group_ids=0 * batch.group_ids",
    ),
    plant(
        "truncated rewards after the overlong penalty",
        "        if self.truncated_coef is not None:\n"
        "            rewards = scale_truncated(rewards, batch.truncated, coef=self.truncated_coef)\n"
        "        if self.overlong_cache is not None:\n"
        "            penalty = overlong_penalty(lengths, max_tokens=self.max_tokens, cache=self.overlong_cache)\n"
        "            rewards = rewards + self.overlong_coef * penalty\n",
        "        if self.overlong_cache is not None:\n"
        "            penalty = overlong_penalty(lengths, max_tokens=self.max_tokens, cache=self.overlong_cache)\n"
        "            rewards = rewards + self.overlong_coef * penalty\n"
        "        if self.truncated_coef is not None:\n"
        "            rewards = scale_truncated(rewards, batch.truncated, coef=self.truncated_coef)\n",
    ),
    plant(
        "truncated rewards are the task's",
        "rewards = scale_truncated(rewards, batch.truncated",
        "rewards = scale_truncated(task, batch.truncated",
    ),
    plant("overlong: coefficient forgotten", "rewards + self.overlong_coef * penalty", "rewards + penalty"),
    plant(
        "overlong: sign", "rewards + self.overlong_coef * penalty", "rewards - self.overlong_coef * penalty"
    ),
    plant(
        "overlong: correct ones are spared",
        "rewards + self.overlong_coef * penalty",
        "rewards + torch.where(correct, 0, self.overlong_coef * penalty)",
    ),
    plant(
        "overlong: truncated ones only",
        "rewards + self.overlong_coef * penalty",
        "rewards + torch.where(batch.truncated, self.overlong_coef * penalty, 0)",
    ),
    plant("overlong: another default weight", "overlong_coef: float = 1.0", "overlong_coef: float = 0.5"),
    plant("correct above 0 by default", "correct_above: float = 0.5", "correct_above: float = 0.0"),
    plant(
        "an ungradable reward is shaped",
        "torch.where(torch.isnan(task), task, rewards)",
        "torch.where(torch.isnan(task), 0, rewards)",
    ),
    plant("the task's reward is forgotten", "task_rewards=batch.rewards)", "task_rewards=shaped)"),
    plant(
        "a shaped batch keeps the task's reward",
        "return replace(batch, rewards=shaped,",
        "return replace(batch, rewards=batch.rewards,",
    ),
    plant(
        "lengths: of the row",
        "if batch.trajectory_ids is None:\n        return sampled",
        "if True:\n        return sampled",
    ),
    plant(
        "lengths: tool tokens count",
        "torch.bincount(batch.segment_ids[batch.versions != NOT_SAMPLED], minlength=batch.num_rows)",
        "batch.row_lengths()",
    ),
    plant(
        "lengths: sampled tokens that are not trained are left out",
        "batch.versions != NOT_SAMPLED",
        "batch.loss_mask",
    ),
    plant(
        "lengths: by position",
        "ids, trajectory = torch.unique(batch",
        "ids, trajectory = torch.unique_consecutive(batch",
    ),
    plant("overlong: not capped", ".clamp(min=-1, max=0)", ".clamp(max=0)"),
    plant("overlong: short ones are rewarded", ".clamp(min=-1, max=0)", ".clamp(min=-1)"),
    plant(
        "overlong: falls beyond the maximum",
        "(max_tokens - cache - lengths.double()) / cache",
        "(max_tokens - lengths.double()) / cache",
    ),
    plant(
        "overlong: share of the maximum",
        "(max_tokens - cache - lengths.double()) / cache",
        "(max_tokens - cache - lengths.double()) / max_tokens",
    ),
    plant(
        "overlong: a step for the slope",
        "((max_tokens - cache - lengths.double()) / cache)",
        "((max_tokens - cache - lengths.double()) / cache).floor()",
    ),
    plant(
        "overlong: off by one",
        "(max_tokens - cache - lengths.double()) / cache",
        "(max_tokens - cache - lengths.double() + 1) / cache",
    ),
    plant(
        "kimi: the longest is best",
        "reward = 0.5 - torch.where(varied, size - low, 0.5) / spread",
        "reward = torch.where(varied, size - low, 0.5) / spread - 0.5",
    ),
    plant(
        "kimi: from 1 to 0",
        "reward = 0.5 - torch.where(varied, size - low, 0.5)",
        "reward = 1.0 - torch.where(varied, size - low, 1.0)",
    ),
    plant(
        "kimi: relative to the longest",
        "spread = torch.where(varied, high - low, 1)",
        "spread = torch.where(varied, high, 1)",
    ),
    plant(
        "kimi: equal lengths gain",
        "torch.where(varied, size - low, 0.5) / spread",
        "torch.where(varied, size - low, 0) / spread",
    ),
    plant(
        "kimi: wrong ones gain by being short", "torch.where(correct, reward, reward.clamp(max=0))", "reward"
    ),
    plant(
        "kimi: wrong ones are not punished",
        "torch.where(correct, reward, reward.clamp(max=0))",
        "torch.where(correct, reward, 0)",
    ),
    plant(
        "kimi: correct ones do not gain",
        "torch.where(correct, reward, reward.clamp(max=0))",
        "torch.where(correct, reward.clamp(max=0), reward.clamp(max=0))",
    ),
    plant(
        "kimi: groups by position",
        "_, group = torch.unique(group_ids",
        "_, group = torch.unique_consecutive(group_ids",
    ),
    plant("kimi: the shortest of the invalid, too", "torch.where(valid, size, torch.inf)", "size"),
    plant("kimi: the longest of the invalid, too", "torch.where(valid, size, -torch.inf)", "size"),
    plant("kimi: invalid rows gain", "varied = valid & (high > low)", "varied = high > low"),
    plant("cosine: a whole cosine", "torch.cos(math.pi * progress)", "torch.cos(2 * math.pi * progress)"),
    plant(
        "cosine: a quarter", "(1 + torch.cos(math.pi * progress)) / 2", "torch.cos(math.pi / 2 * progress)"
    ),
    plant("cosine: a line", "(1 + torch.cos(math.pi * progress)) / 2", "1 - progress"),
    plant(
        "cosine: sine", "(1 + torch.cos(math.pi * progress)) / 2", "(1 + torch.sin(math.pi * progress)) / 2"
    ),
    plant(
        "cosine: rises again beyond the maximum",
        "(lengths.double() / max_tokens).clamp(max=1)",
        "lengths.double() / max_tokens",
    ),
    plant(
        "cosine: by the longest of the batch",
        "(lengths.double() / max_tokens).clamp(max=1)",
        "lengths.double() / lengths.max().clamp(min=1) if lengths.numel() else lengths.double()",
    ),
    plant("cosine: ends exchanged", "long + (short - long) * share", "short + (long - short) * share"),
    plant(
        "cosine: wrong for correct",
        "short = torch.where(correct, values.correct[0], values.wrong[0])",
        "short = torch.where(correct, values.wrong[0], values.correct[0])",
    ),
    plant(
        "truncated: ended ones are scaled",
        "torch.where(truncated, rewards * coef",
        "torch.where(~truncated, rewards * coef",
    ),
    plant(
        "truncated: a negative coefficient scales",
        "rewards * coef if coef >= 0 else torch.full_like(rewards, coef)",
        "rewards * coef",
    ),
    plant(
        "truncated: never better",
        "torch.where(truncated, rewards * coef if coef >= 0 else torch.full_like(rewards, coef), rewards)",
        "torch.where(truncated, torch.minimum(rewards, rewards * coef if coef >= 0 else "
        "torch.full_like(rewards, coef)), rewards)",
    ),
    plant(
        "shaped mean: over rows",
        "1 / rows[trajectory].double()",
        "torch.ones_like(rows)[trajectory].double()",
    ),
    plant(
        "shaped mean: ungradable ones in the denominator",
        "float(total / weights.sum())",
        "float(total / rows.numel())",
    ),
    plant(
        "shaped mean: of the task's reward",
        "torch.where(gradable, batch.rewards.double(), 0)",
        "torch.where(gradable, batch.task_rewards.double(), 0)",
    ),
)
