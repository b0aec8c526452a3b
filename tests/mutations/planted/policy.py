"""The policy terms and the selection by covariance."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation,
    file="rlhf/algorithms/policy_terms.py",
    tests=("tests/unit/algorithms/test_policy_terms.py", "tests/unit/algorithms/test_losses.py"),
)

CLIPPING = (
    plant("ppo: max for min", "loss = -torch.minimum(ratio", "loss = -torch.maximum(ratio"),
    plant("ppo: bounds swapped", "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
    plant("ppo: only the clipped branch", "loss = -torch.minimum(ratio * advantages, ", "loss = -("),
    plant("ppo: no clip", "ratio.clamp(1 - low, 1 + high) * advantages", "ratio * advantages"),
    plant("ppo: sign", "loss = -torch.minimum(ratio", "loss = torch.minimum(ratio"),
    plant(
        "ppo: detached ratio",
        "ratio = inputs.log_ratio.exp()\n    return",
        "ratio = inputs.log_ratio.exp().detach() + 0 * inputs.new\n    return",
    ),
    plant(
        "ppo: the log-ratio for the ratio",
        "ratio = inputs.log_ratio.exp()\n    return",
        "ratio = 1 + inputs.log_ratio\n    return",
    ),
    plant("ppo: a tie counts as clipped", "(ratio > 1 + high)", "(ratio >= 1 + high)"),
    plant("ppo: a lower tie counts as clipped", "(ratio < 1 - low))\n", "(ratio <= 1 - low))\n"),
    plant(
        "ppo: clip share without the advantage's sign",
        "caught = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))",
        "caught = (ratio > 1 + high) | (ratio < 1 - low)",
    ),
    plant(
        "dual clip where A > 0",
        "beyond = (advantages < 0) & (ratio > dual_clip)",
        "beyond = (advantages > 0) & (ratio > dual_clip)",
    ),
    plant(
        "dual clip whatever A",
        "beyond = (advantages < 0) & (ratio > dual_clip)",
        "beyond = ratio > dual_clip",
    ),
    plant("dual clip: sign", "-dual_clip * advantages, loss)", "dual_clip * advantages, loss)"),
    plant("dual clip: absolute one more", "(ratio > dual_clip)", "(ratio > 1 + dual_clip)"),
    plant("dual clip is not in the clip share", "caught = caught | beyond", "caught = caught | caught"),
    plant(
        "dual clip always on",
        '0.2, dual_clip: float | None = None\n) -> Term:\n    """-min(r A',
        '0.2, dual_clip: float | None = 3.0\n) -> Term:\n    """-min(r A',
    ),
    plant("log-ratios bounded above only", "log_ratio.clamp(-limit, limit)", "log_ratio.clamp(max=limit)"),
    plant("log-ratios bounded below only", "log_ratio.clamp(-limit, limit)", "log_ratio.clamp(min=-limit)"),
    plant("log-ratios bounded at 10", "LOG_RATIO_LIMIT = 20.0", "LOG_RATIO_LIMIT = 10.0"),
)

SEQUENCES = (
    plant(
        "gspo: sum for mean",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old))",
        "inputs.bounded(inputs.row_sums(inputs.new - inputs.old))",
    ),
    plant(
        "gspo: mean of the ratios",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old)).exp()",
        "inputs.row_means(inputs.log_ratio.exp())",
    ),
    plant(
        "gspo: detached ratio",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old)).exp()",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old)).exp().detach() + 0 * inputs.new",
    ),
    plant(
        "gspo: ratio per token",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old))",
        "inputs.bounded(inputs.new - inputs.old)",
    ),
    plant(
        "gspo: means of tokens already bounded",
        "inputs.bounded(inputs.row_means(inputs.new - inputs.old))",
        "inputs.bounded(inputs.row_means(inputs.log_ratio))",
    ),
    plant(
        "gspo: bounds of ppo",
        'clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None\n) -> Term:\n    """PPO',
        'clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None\n) -> Term:\n    """PPO',
    ),
    plant(
        "gspo_token: bounds swapped",
        'clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float | None = None\n) -> Term:\n    """As',
        'clip_low: float = 4e-4, clip_high: float = 3e-4, dual_clip: float | None = None\n) -> Term:\n    """As',
    ),
    plant(
        "gspo_token: the mean is not detached",
        "inputs.row_means((inputs.new - inputs.old).detach())",
        "inputs.row_means(inputs.new - inputs.old)",
    ),
    plant(
        "gspo_token: no straight-through term",
        "log_mean + inputs.new - inputs.new.detach()",
        "log_mean + 0 * inputs.new",
    ),
    plant(
        "row means by the average row",
        "self.row_sums(values) / self.row_sums(torch.ones_like(values))",
        "self.row_sums(values) / max(values.numel() / max(self.num_rows, 1), 1)",
    ),
    plant("row sums over the batch", "return sums[self.rows]", "return sums.sum().expand_as(values)"),
)

TERMS = (
    plant(
        "reinforce: sign",
        "return -inputs.advantages * inputs.new, _no",
        "return inputs.advantages * inputs.new, _no",
    ),
    plant(
        "reinforce: a ratio",
        "return -inputs.advantages * inputs.new, _no",
        "return -inputs.advantages * inputs.log_ratio.exp(), _no",
    ),
    plant(
        "cispo: weight not detached",
        "ratio = inputs.log_ratio.detach().exp()",
        "ratio = inputs.log_ratio.exp()",
    ),
    plant("cispo: cap as an absolute value", "ratio.clamp(max=1 + clip_high)", "ratio.clamp(max=clip_high)"),
    plant("cispo: no cap", "ratio.clamp(max=1 + clip_high)", "ratio.clone()"),
    plant(
        "cispo: the floor is always on",
        "clip_low: float | None = None, clip_high: float = 4.0",
        "clip_low: float | None = 0.2, clip_high: float = 4.0",
    ),
    plant(
        "cispo: floor as an absolute value", "weight.clamp(min=1 - clip_low)", "weight.clamp(min=clip_low)"
    ),
    plant(
        "cispo: a capped token loses its gradient",
        "return -weight * inputs.advantages * inputs.new, weight != ratio",
        "return -weight * inputs.advantages * torch.where(weight != ratio, inputs.new.detach(), inputs.new), "
        "weight != ratio",
    ),
    plant(
        "cispo: the share of tokens that are not capped",
        "inputs.new, weight != ratio",
        "inputs.new, weight == ratio",
    ),
    plant(
        "sapo: temperatures swapped",
        "torch.where(inputs.advantages > 0, tau_positive * ones",
        "torch.where(inputs.advantages < 0, tau_positive * ones",
    ),
    plant("sapo: gate of the log-ratio", "(inputs.log_ratio.exp() - 1)", "inputs.log_ratio"),
    plant("sapo: gate not centred", "(inputs.log_ratio.exp() - 1)", "inputs.log_ratio.exp()"),
    plant("sapo: not scaled by the temperature", "-(4 / tau) * gate", "-4 * gate"),
    plant("sapo: one temperature by default", "tau_negative: float = 1.05", "tau_negative: float = 1.0"),
    plant(
        "sapo: the positive temperature at A = 0",
        "torch.where(inputs.advantages > 0, tau_positive",
        "torch.where(inputs.advantages >= 0, tau_positive",
        equivalent="At A = 0 the term is -(4 / tau) gate 0 with a finite gate: 0, and so is its gradient, for "
        "either tau > 0.",
    ),
    plant(
        "dppo: ratios for probabilities",
        "inputs.new.detach().exp() - inputs.old.exp()",
        "(inputs.new - inputs.old).detach().exp() - 1",
    ),
    plant(
        "dppo: thresholds swapped",
        "(positive & (moved > delta_high)) | (~positive & (moved < -delta_low))",
        "(positive & (moved > delta_low)) | (~positive & (moved < -delta_high))",
    ),
    plant(
        "dppo: drops what comes back",
        "(positive & (moved > delta_high)) | (~positive & (moved < -delta_low))",
        "(positive & (moved < -delta_low)) | (~positive & (moved > delta_high))",
    ),
    plant("dppo: keeps A = 0 out of the dropped", "(~positive & (moved", "((inputs.advantages < 0) & (moved"),
    plant(
        "dppo: half the pull",
        "+ k * inputs.log_ratio.square(), dropped",
        "+ k * inputs.log_ratio.square() / 2, dropped",
    ),
    plant(
        "dppo: no pull on dropped tokens",
        "return torch.where(dropped, torch.zeros_like(loss), loss) + k * inputs.log_ratio.square(), dropped",
        "return torch.where(dropped, torch.zeros_like(loss), loss + k * inputs.log_ratio.square()), dropped",
    ),
    plant("dppo: the pull is pushed away", "loss) + k * inputs", "loss) - k * inputs"),
    plant("dppo: nothing is dropped", "torch.where(dropped, torch.zeros_like(loss), loss) + k", "loss + k"),
)

SELECTION = (
    plant(
        "clip_cov: selected tokens keep their gradient",
        "torch.where(selected, loss.detach(), loss)",
        "torch.where(selected, loss, loss)",
    ),
    plant(
        "clip_cov: the others lose theirs",
        "torch.where(selected, loss.detach(), loss)",
        "torch.where(selected, loss, loss.detach())",
    ),
    plant(
        "clip_cov: selected tokens lose their value",
        "torch.where(selected, loss.detach(), loss)",
        "torch.where(selected, 0.0, loss)",
    ),
    plant("clip_cov: selected tokens are not in the share", "caught | selected", "caught"),
    plant(
        "kl_cov: penalty on every token",
        "torch.where(selected, loss + coef * inputs.log_ratio.abs(), loss)",
        "loss + coef * inputs.log_ratio.abs()",
    ),
    plant("kl_cov: signed log-ratio", "coef * inputs.log_ratio.abs()", "coef * inputs.log_ratio"),
    plant(
        "kl_cov: reward for the gap",
        "loss + coef * inputs.log_ratio.abs()",
        "loss - coef * inputs.log_ratio.abs()",
    ),
    plant(
        "kl_cov: ratio detached",
        "loss = -inputs.log_ratio.exp() * inputs.advantages\n    selected",
        "loss = -inputs.log_ratio.detach().exp() * inputs.advantages\n    selected",
    ),
    plant("covariance: advantages not centred", "(advantages - advantages.mean())", "advantages"),
    plant("covariance: log-probabilities not centred", "(logprobs - logprobs.mean())", "logprobs"),
    plant(
        "covariance: the mean has masked tokens in it",
        "(advantages - advantages.mean())",
        "(advantages - batch.advantages.double().mean())",
    ),
    plant(
        "covariance: log-probabilities of the engine",
        "old = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs",
        "old = batch.rollout_logprobs",
    ),
    plant(
        "covariance: the smallest",
        "covariance, descending=True, stable=True",
        "covariance, descending=False, stable=True",
    ),
    plant(
        "covariance: the largest by size",
        "torch.argsort(covariance, descending",
        "torch.argsort(covariance.abs(), descending",
    ),
    plant(
        "covariance: none of a small batch",
        "max(int(fraction * trained.numel()), 1)",
        "int(fraction * trained.numel())",
    ),
    plant(
        "covariance: a fraction of those inside",
        "max(int(fraction * trained.numel()), 1)",
        "max(int(fraction * order.numel()), 1)",
    ),
    plant(
        "covariance: the window has no upper end",
        "(covariance > low) & (covariance < high)",
        "covariance > low",
    ),
    plant(
        "covariance: the window has no lower end",
        "(covariance > low) & (covariance < high)",
        "covariance < high",
    ),
    plant(
        "clip_cov: the first in the batch, not a random choice",
        "order = inside[torch.argsort(_hash(trained[inside], seed), stable=True)]",
        "order = inside",
    ),
    plant(
        "clip_cov: the same choice for every seed",
        "_hash(trained[inside], seed)",
        "_hash(trained[inside], 0)",
    ),
    plant(
        "clip_cov: the choice hashes the place in the window",
        "_hash(trained[inside], seed)",
        "_hash(inside, seed)",
    ),
    plant(
        "selected places count trained tokens only",
        "selected[trained[picked]] = True",
        "selected[picked] = True",
    ),
    plant("tokens of weight 0 are trained", "batch.loss_mask & (batch.loss_weights != 0)", "batch.loss_mask"),
    plant(
        "tokens under the mask are trained",
        "batch.loss_mask & (batch.loss_weights != 0)",
        "batch.loss_weights != 0",
    ),
)

BUGS = (*CLIPPING, *SEQUENCES, *TERMS, *SELECTION)
