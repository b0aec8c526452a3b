"""Trajectories as sequences of trained tokens and their rewards."""

from functools import partial

from tests.mutations.mutation import Mutation

_TESTS = "tests/unit/algorithms/test_"
trajectories = partial(
    Mutation,
    file="rlhf/algorithms/trajectories.py",
    tests=(f"{_TESTS}gae.py", f"{_TESTS}token_rewards.py", f"{_TESTS}estimators.py"),
)
rewards = partial(
    Mutation,
    file="rlhf/algorithms/token_rewards.py",
    tests=(f"{_TESTS}token_rewards.py", f"{_TESTS}gae.py"),
)

TRAJECTORIES = (
    trajectories("every row is a trajectory", "if batch.trajectory_ids is None:", "if True:"),
    trajectories(
        "a trajectory speaks by its last row",
        'torch.full_like(ids, batch.num_rows).scatter_reduce(0, trajectory, rows, "amin")',
        'torch.full_like(ids, -1).scatter_reduce(0, trajectory, rows, "amax")',
        equivalent="The rows of a trajectory share its rewards and its group, so each of them says the same.",
    ),
    trajectories(
        "trajectories by position",
        "torch.unique(batch.trajectory_ids, return",
        "torch.unique_consecutive(batch.trajectory_ids, return",
    ),
    trajectories(
        "tool tokens are steps",
        "torch.nonzero(batch.loss_mask).squeeze(1)",
        "torch.nonzero(batch.loss_mask | (batch.positions > 0)).squeeze(1)",
    ),
    trajectories(
        "the first trained token is lost",
        "torch.nonzero(batch.loss_mask).squeeze(1)",
        "torch.nonzero(batch.loss_mask).squeeze(1)[1:]",
    ),
    trajectories(
        "rows of a trajectory backwards",
        "order = torch.argsort(trajectory, stable=True)",
        "order = torch.argsort(trajectory.flip(0), stable=True)\n    order = len(order) - 1 - order",
    ),
    trajectories(
        "tokens in the order of the batch",
        "order = torch.argsort(trajectory, stable=True)",
        "order = torch.arange(len(trajectory))",
    ),
    trajectories(
        "a row's last token ends the episode",
        "is_last[:-1] = trajectory[1:] != trajectory[:-1]",
        "rows = batch.segment_ids[trained[order]]\n    is_last[:-1] = rows[1:] != rows[:-1]",
    ),
    trajectories(
        "the first trained token is the last",
        "is_last[:-1] = trajectory[1:] != trajectory[:-1]",
        "is_last[1:] = trajectory[1:] != trajectory[:-1]",
    ),
    trajectories(
        "only the batch's last token ends an episode",
        "is_last[:-1] = trajectory[1:] != trajectory[:-1]",
        "is_last[:-1] = False",
    ),
    trajectories(
        "the batch's last token ends no episode",
        "is_last[:-1] = trajectory[1:] != trajectory[:-1]",
        "is_last[:-1] = trajectory[1:] != trajectory[:-1]\n    is_last[-1:] = False",
    ),
    trajectories(
        "sums run into the next trajectory",
        "torch.where(same, power[:-span] * sums[span:], 0)",
        "power[:-span] * sums[span:]",
    ),
    trajectories(
        "sums are not discounted",
        "torch.where(same, power[:-span] * sums[span:], 0)",
        "torch.where(same, sums[span:], 0)",
    ),
    trajectories(
        "sums are discounted once per round",
        "power, span = power.square(), 2 * span",
        "power, span = power, 2 * span",
    ),
    trajectories("one round of doubling too few", "while span < longest:", "while 2 * span < longest:"),
    trajectories(
        "doubling ends at the shortest trajectory",
        "torch.bincount(trajectory).max()",
        "torch.bincount(trajectory).min()",
    ),
    trajectories(
        "sums look back",
        "sums[:-span] += torch.where(same, power[:-span] * sums[span:], 0)",
        "sums[span:] += torch.where(same, power[span:] * sums[:-span].clone(), 0)",
    ),
    trajectories(
        "the token's own value is discounted, too",
        "sums, power, span = values, decay, 1",
        "sums, power, span = decay * values, decay, 1",
    ),
    trajectories(
        "sums in float32",
        "sums, power, span = values, decay, 1",
        "sums, power, span = values.float(), decay.float(), 1",
    ),
    trajectories(
        "one round of doubling too many",
        "while span < longest:",
        "while span <= longest:",
        equivalent="No two tokens of a trajectory are as far apart as it is long, so the round adds nothing.",
    ),
    trajectories(
        "ungradable trajectories are pushed", "torch.where(gradable, values, 0)", "values.nan_to_num()"
    ),
    trajectories("ungradable trajectories are NaN", "torch.where(gradable, values, 0)", "values"),
    trajectories(
        "values back in the order of trajectories",
        "result[sequence.places] =",
        "result[sequence.places.sort().values] =",
    ),
    trajectories(
        "values on the token after",
        "result[sequence.places] =",
        "result[(sequence.places + 1) % result.numel()] =",
    ),
)

REWARDS = (
    rewards("KL in the reward: sign", "(-kl_coef * terms)", "(kl_coef * terms)"),
    rewards("KL in the reward: coefficient forgotten", "(-kl_coef * terms)", "(-terms)"),
    rewards(
        "KL in the reward: always the engine's",
        "policy = rollout if batch.old_logprobs is None else batch.old_logprobs.detach()[mask].double()",
        "policy = rollout",
    ),
    rewards(
        "KL in the reward: of the engine to the learner",
        "reference = batch.ref_logprobs.detach()[mask].double()",
        "reference = rollout",
    ),
    rewards(
        "KL in the reward: the wrong way round", "kl_terms(policy, reference,", "kl_terms(reference, policy,"
    ),
    rewards("KL in the reward: no ratio", "log_ratio=policy - rollout", "log_ratio=0 * policy"),
    rewards(
        "KL in the reward: ratio upside down", "log_ratio=policy - rollout", "log_ratio=rollout - policy"
    ),
    rewards(
        "KL in the reward: ratio to the reference",
        "log_ratio=policy - rollout",
        "log_ratio=policy - reference",
    ),
    rewards("KL in the reward: estimator ignored", "estimator=estimator)", 'estimator="k1")'),
    rewards(
        "KL in the reward: another default", 'estimator: KlEstimator = "k1"', 'estimator: KlEstimator = "k2"'
    ),
    rewards(
        "KL in the reward: differentiated", "batch.old_logprobs.detach()[mask]", "batch.old_logprobs[mask]"
    ),
    rewards(
        "KL in the reward: mean over the tokens",
        "(-kl_coef * terms)",
        "(-kl_coef * terms.mean().expand_as(terms))",
    ),
    rewards("KL in the reward: clamped at 0", "(-kl_coef * terms)", "(-kl_coef * terms.clamp(min=0))"),
    rewards("KL in the reward: a token late", "result[mask] =", "result[mask.roll(1)] ="),
    rewards(
        "a trajectory's reward without its token rewards",
        "[trajectory].double() + dense[trajectory]",
        "[trajectory].double() + 0 * dense[trajectory]",
    ),
    rewards(
        "a trajectory's reward once per row",
        "batch.rewards[first][trajectory].double() + dense[trajectory]",
        "batch.rewards.double() * torch.bincount(trajectory)[trajectory] + dense[trajectory]",
    ),
    rewards(
        "token rewards of the own row only",
        "of_token = trajectory[batch.segment_ids]",
        "of_token = trajectory[batch.segment_ids]\n"
        "    own = rows_of = batch.rewards.new_zeros(batch.num_rows, dtype=torch.float64)\n"
        "    own = own.index_add(0, batch.segment_ids, _trained_token_rewards(batch))\n"
        "    if rows_of.numel():\n"
        "        return batch.rewards.double() + own",
    ),
    rewards(
        "a trajectory's mean token reward",
        "double() + dense[trajectory]",
        "double() + dense[trajectory] / torch.bincount(of_token, minlength=first.numel()).clamp(min=1)[trajectory]",
    ),
    rewards(
        "the terminal reward on the first trained token",
        "sequence.places[sequence.is_last]",
        "sequence.places[sequence.is_last.roll(1)]",
    ),
    rewards(
        "the terminal reward on each row's last trained token",
        "last = sequence.places[sequence.is_last]",
        "ends = torch.nonzero(batch.loss_mask).squeeze(1)\n"
        "    rows = batch.segment_ids[ends]\n"
        "    last = ends[torch.cat([rows[1:] != rows[:-1], rows[:1] == rows[:1]])]",
    ),
    rewards(
        "the terminal reward on every trained token", "sequence.places[sequence.is_last]", "sequence.places"
    ),
    rewards(
        "the terminal reward on the row's last token",
        "last = sequence.places[sequence.is_last]",
        "last = torch.cumsum(batch.row_lengths(), 0)[batch.segment_ids[sequence.places[sequence.is_last]]] - 1",
    ),
    rewards(
        "the terminal reward in place of the last token reward",
        "_trained_token_rewards(batch).index_add(0, last,",
        "_trained_token_rewards(batch).index_copy(0, last,",
    ),
    rewards(
        "an ungradable reward is 0 on its last token",
        "batch.rewards[batch.segment_ids[last]].double()",
        "batch.rewards[batch.segment_ids[last]].double().nan_to_num()",
    ),
    rewards(
        "the terminal reward of the neighbour",
        "batch.rewards[batch.segment_ids[last]].double()",
        "batch.rewards[batch.segment_ids[last]].roll(1).double()",
    ),
    rewards(
        "rewards of tokens that are not trained",
        "torch.where(batch.loss_mask, batch.token_rewards.double(), zeros)",
        "torch.where(batch.loss_mask | batch.token_rewards.isfinite(), batch.token_rewards.double(), zeros)",
    ),
    rewards(
        "a NaN among token rewards is 0",
        "torch.where(batch.loss_mask, batch.token_rewards.double(), zeros)",
        "torch.where(batch.loss_mask, batch.token_rewards.double(), zeros).nan_to_num()",
    ),
)

BUGS = (*TRAJECTORIES, *REWARDS)
