"""The advantage estimators."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation, file="rlhf/algorithms/estimators.py", tests=("tests/unit/algorithms/test_estimators.py",)
)

CENTRED = (
    plant(
        "grpo without its std",
        "group_relative(batch, normalise=True)",
        "group_relative(batch, normalise=False)",
    ),
    plant(
        "dr_grpo with a std",
        "group_relative(batch, normalise=False)",
        "group_relative(batch, normalise=True)",
    ),
    plant("batch_std: ddof 0", "rewards.std(correction=1)", "rewards.std(correction=0)"),
    plant(
        "batch_std: no epsilon",
        "found.centred / (scale + STD_EPSILON)",
        "found.centred / scale.clamp(min=1e-300)",
    ),
    plant("batch_std: variance", "rewards.std(correction=1)", "rewards.var(correction=1)"),
    plant(
        "batch_std: about each group's mean",
        "scale = rewards.std(correction=1)",
        "scale = found.centred[found.valid].std(correction=1)",
    ),
    plant("batch_std: ungradable rewards are 0", "found.rewards[found.valid]", "found.rewards"),
    plant(
        "batch_std: over trained tokens",
        "scale = rewards.std(correction=1)",
        "every = found.rewards[trajectory_rows(batch)[1]][batch.segment_ids][batch.loss_mask]\n"
        "    scale = every.std(correction=1)",
    ),
    plant(
        "rloo: mean with itself",
        "on_tokens(found.centred * found.count / (found.count - 1).clamp(min=1), batch)",
        "on_tokens(found.centred, batch)",
    ),
    plant(
        "rloo: factor upside down",
        "found.centred * found.count / (found.count - 1).clamp(min=1)",
        "found.centred * (found.count - 1) / found.count.clamp(min=1)",
    ),
    plant(
        "rloo: factor of the whole batch",
        "found.centred * found.count / (found.count - 1).clamp(min=1)",
        "found.centred * found.valid.sum() / (found.valid.sum() - 1).clamp(min=1)",
    ),
    plant(
        "rloo: ungradable samples are counted",
        "found.centred * found.count / (found.count - 1).clamp(min=1)",
        "found.centred * (size := group_sums(torch.ones_like(found.count), found.group)) / (size - 1).clamp(min=1)",
    ),
    plant("opo: lengths of all tokens", "batch.row_sampled().double()", "batch.row_lengths().double()"),
    plant(
        "opo: number of rows for lengths",
        "batch.row_sampled().double()",
        "(batch.row_sampled() >= 0).double()",
    ),
    plant("opo: lengths squared", "batch.row_sampled().double()", "batch.row_sampled().double().square()"),
    plant(
        "opo: square root of lengths", "batch.row_sampled().double()", "batch.row_sampled().double().sqrt()"
    ),
    plant(
        "opo: ungradable lengths are counted",
        "lengths = torch.where(found.valid, lengths, 0)",
        "lengths = 1 * lengths",
    ),
    plant(
        "opo: plain mean",
        "found.varied, found.rewards - baseline, 0",
        "found.varied, found.rewards - found.mean, 0",
    ),
    plant(
        "opo: sign", "found.varied, found.rewards - baseline, 0", "found.varied, baseline - found.rewards, 0"
    ),
    plant(
        "opo: equal rewards and ungradable ones get the baseline",
        "torch.where(found.varied, found.rewards - baseline, 0)",
        "found.rewards - baseline",
    ),
    plant(
        "opo: each row is a sample",
        "torch.zeros_like(found.rewards).index_add(0, trajectory, batch.row_sampled().double())",
        "torch.zeros_like(found.rewards).scatter_reduce(0, trajectory, batch.row_sampled().double(), 'amax')",
    ),
    plant(
        "opo: no guard against a group that trains nothing",
        "group_sums(lengths, found.group).clamp(min=1)",
        "group_sums(lengths, found.group)",
        equivalent="A total is 0 only where no gradable trajectory of the group trains a token: the NaN is on none.",
    ),
    plant(
        "maxrl: by the std",
        "scale = torch.where(positive, found.mean, 1)",
        "scale = torch.where(positive, found.std(), 1)",
    ),
    plant(
        "maxrl: not centred",
        "torch.where(positive, found.centred / scale, 0)",
        "torch.where(positive & found.varied, found.rewards / scale, 0)",
    ),
    plant("maxrl: not normalised", "found.centred / scale, 0)", "found.centred, 0)"),
    plant(
        "maxrl: negative means",
        "positive = found.mean > EQUAL * size",
        "positive = found.mean.abs() > EQUAL * size",
    ),
    plant(
        "maxrl: a mean that is only rounding",
        "positive = found.mean > EQUAL * size",
        "positive = found.mean > 0",
    ),
    plant(
        "maxrl: an absolute bound on the mean",
        "positive = found.mean > EQUAL * size",
        "positive = found.mean > EQUAL",
    ),
    plant(
        "maxrl: a plain baseline where the mean is not above 0",
        "torch.where(positive, found.centred / scale, 0)",
        "found.centred / scale",
    ),
)

GDPO = (
    plant("gdpo: weights forgotten", "total + weight * group_advantages(", "total + group_advantages("),
    plant("gdpo: only the last part", "total = total + weight *", "total = weight *"),
    plant(
        "gdpo: no std",
        "group_advantages(scored, batch.group_ids[first], normalise=True)",
        "group_advantages(scored, batch.group_ids[first], normalise=False)",
    ),
    plant(
        "gdpo: weights add up to 1", "weights = [1.0] * num_parts", "weights = [1 / num_parts] * num_parts"
    ),
    plant(
        "gdpo: weights within the statistics",
        "scored = torch.where(gradable, part, torch.nan)",
        "scored = torch.where(gradable, part * weight, torch.nan)",
    ),
    plant(
        "gdpo: parts of ungradable trajectories",
        "scored = torch.where(gradable, part, torch.nan)",
        "scored = part",
    ),
    plant(
        "gdpo: a missing part is 0",
        "scored = torch.where(gradable, part, torch.nan)",
        "scored = torch.where(gradable, part.nan_to_num(), torch.nan)",
    ),
    plant(
        "gdpo: the batch for the group",
        "group_advantages(scored, batch.group_ids[first], normalise=True)",
        "group_advantages(scored, 0 * batch.group_ids[first], normalise=True)",
    ),
)

PASS_AT_K = (
    plant(
        "pass@k: a reward on the threshold is correct",
        "found.rewards <= correct_above",
        "found.rewards < correct_above",
    ),
    plant("pass@k: threshold ignored", "found.rewards <= correct_above", "found.rewards <= 0"),
    plant(
        "pass@k: ungradable samples are wrong",
        "is_wrong = found.valid & (found.rewards <= correct_above)",
        "is_wrong = found.rewards <= correct_above",
    ),
    plant(
        "pass@k: drawn with replacement",
        "failed = _share_of_subsets(wrong, found.count, k)",
        "failed = (wrong / found.count.clamp(min=1)) ** k",
    ),
    plant(
        "pass@k: wrong ones with replacement",
        "_share_of_subsets(wrong - 1, found.count - 1, k - 1)",
        "(wrong / found.count.clamp(min=1)) ** (k - 1)",
    ),
    plant(
        "pass@k: the sample itself is drawn again",
        "_share_of_subsets(wrong - 1, found.count - 1, k - 1)",
        "_share_of_subsets(wrong, found.count, k - 1)",
    ),
    plant(
        "pass@k: k others",
        "_share_of_subsets(wrong - 1, found.count - 1, k - 1)",
        "_share_of_subsets(wrong - 1, found.count - 1, k)",
    ),
    plant("pass@k: variance for std", "(failed * (1 - failed)).sqrt()", "failed * (1 - failed)"),
    plant(
        "pass@k: std of the samples",
        "std = (failed * (1 - failed)).sqrt()",
        "share = wrong / found.count.clamp(min=1)\n"
        "    std = torch.where(failed * (1 - failed) > 0, (share * (1 - share)).sqrt(), 0)",
    ),
    plant(
        "pass@k: wrong ones as correct ones", "torch.where(is_wrong, failed - failed_with, failed)", "failed"
    ),
    plant(
        "pass@k: sign of wrong ones",
        "torch.where(is_wrong, failed - failed_with, failed)",
        "torch.where(is_wrong, failed_with - failed, failed)",
    ),
    plant(
        "pass@k: a correct one gains the pass rate",
        "torch.where(is_wrong, failed - failed_with, failed)",
        "torch.where(is_wrong, failed - failed_with, 1 - failed)",
    ),
    plant(
        "pass@k: no std", "torch.where(known, gain / (std + STD_EPSILON), 0)", "torch.where(known, gain, 0)"
    ),
    plant(
        "pass@k: no epsilon",
        "torch.where(known, gain / (std + STD_EPSILON), 0)",
        "torch.where(known, gain / std, 0)",
    ),
    plant("pass@k: ungradable samples gain", "known = found.valid & (std > 0)", "known = std > 0"),
    plant(
        "pass@k: ungradable samples count in the group",
        "failed = _share_of_subsets(wrong, found.count, k)",
        "failed = _share_of_subsets(wrong, torch.where(found.count >= k, size, found.count), k)",
    ),
    plant(
        "pass@k: token rewards make it correct",
        "found = group_rewards(batch.rewards[first], batch.group_ids[first])",
        "found = trajectory_rewards(batch)",
    ),
    plant("pass@k: one factor too few", "for j in range(k):", "for j in range(max(k - 1, min(k, 1))):"),
    plant(
        "pass@k: the same factor k times",
        "share = share * (part - j).clamp(min=0) / (whole - j).clamp(min=1)",
        "share = share * part.clamp(min=0) / whole.clamp(min=1)",
    ),
    plant(
        "pass@k: more drawn than are wrong",
        "(part - j).clamp(min=0)",
        "(part - j)",
        equivalent="With fewer wrong ones than k, a whole number from 0, one of the k factors is already 0.",
    ),
)

TOKENS = (
    plant(
        "process: no std",
        "steps, batch.group_ids[rows], normalise=True",
        "steps, batch.group_ids[rows], normalise=False",
    ),
    plant(
        "process: in each trajectory",
        "steps, batch.group_ids[rows], normalise=True",
        "steps, sequence.trajectory, normalise=True",
    ),
    plant(
        "process: over the batch",
        "steps, batch.group_ids[rows], normalise=True",
        "steps, 0 * rows, normalise=True",
    ),
    plant(
        "process: only a step's own reward",
        "decay = torch.ones_like(rewards)\n    return",
        "decay = torch.zeros_like(rewards)\n    return",
    ),
    plant(
        "process: later steps count less",
        "decay = torch.ones_like(rewards)\n    return",
        "decay = 0.99 * torch.ones_like(rewards)\n    return",
    ),
    plant(
        "process: the step that ends here is over",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch, sequence\n"
        "    )\n"
        "\n"
        "\n"
        "def distill",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory) - rewards, batch, sequence\n"
        "    )\n"
        "\n"
        "\n"
        "def distill",
    ),
    plant(
        "process: steps of ungradable trajectories",
        "torch.isnan(batch.rewards)[rows], torch.nan, batch.step_rewards",
        "torch.zeros_like(rows, dtype=torch.bool), torch.nan, batch.step_rewards",
    ),
    plant(
        "process: no step is a step of 0",
        "batch.step_rewards[sequence.places].double()",
        "batch.step_rewards[sequence.places].nan_to_num().double()",
    ),
    plant(
        "process: steps are not normalised",
        "rewards = group_advantages(steps, batch.group_ids[rows], normalise=True)",
        "rewards = steps.nan_to_num()",
    ),
    plant(
        "process: the terminal reward, too",
        "batch.step_rewards[sequence.places].double()",
        "batch.step_rewards[sequence.places].double() + batch.rewards[rows].double()",
    ),
    plant(
        "distill: sign",
        "teacher - student.detach()[sequence.places].double()",
        "student.detach()[sequence.places].double() - teacher",
    ),
    plant(
        "distill: always the engine's",
        "batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs\n    teacher",
        "batch.rollout_logprobs\n    teacher",
    ),
    plant(
        "distill: the student is not detached",
        "teacher - student.detach()[sequence.places]",
        "teacher - student[sequence.places]",
    ),
    plant(
        "distill: the teacher is not detached", "batch.teacher_logprobs.detach()", "batch.teacher_logprobs"
    ),
    plant(
        "distill: probabilities",
        "teacher - student.detach()[sequence.places].double()",
        "teacher.exp() - student.detach()[sequence.places].double().exp()",
    ),
    plant(
        "distill: with a reward-to-go",
        "return on_gradable_tokens(teacher - student.detach()[sequence.places].double(), batch, sequence)",
        "gap = teacher - student.detach()[sequence.places].double()\n"
        "    sums = discounted_sums(gap, decay=torch.ones_like(gap), trajectory=sequence.trajectory)\n"
        "    return on_gradable_tokens(sums, batch, sequence)",
    ),
    plant(
        "reinforce_pp_baseline with a std",
        '"reinforce_pp_baseline": dr_grpo',
        '"reinforce_pp_baseline": grpo',
    ),
    plant(
        "reinforce_pp_baseline without it",
        '"reinforce_pp_baseline": dr_grpo',
        '"reinforce_pp_baseline": reinforce',
    ),
)

BUGS = (*CENTRED, *GDPO, *PASS_AT_K, *TOKENS)
