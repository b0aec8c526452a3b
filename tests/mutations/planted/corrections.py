"""Learner against engine."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation,
    file="rlhf/algorithms/correction.py",
    tests=("tests/unit/algorithms/test_correction.py", "tests/unit/algorithms/test_losses.py"),
)

GAP = "gap = (inputs.old - inputs.rollout).detach()"
OUTSIDE = "outside = (measured < low) | (measured > high)"
DRIFT = "drift = inputs.row_means((inputs.rollout - inputs.new).detach())"
DROP = "return (inputs.advantages < 0) & (drift > delta)"

WEIGHTS = (
    plant("the weight upside down", GAP, "gap = (inputs.rollout - inputs.old).detach()"),
    plant("the weight of the current policy", GAP, "gap = (inputs.new - inputs.rollout).detach()"),
    plant("the weight is not detached", GAP, "gap = inputs.old - inputs.rollout"),
    plant("the weight is not bounded", "token = inputs.bounded(gap).exp()", "token = gap.exp()"),
    plant("token_is is 1", 'token if correction == "token_is" else', 'token if correction == "none" else'),
    plant(
        "sequence weights are means",
        "inputs.bounded(inputs.row_sums(gap)).exp()",
        "inputs.bounded(inputs.row_means(gap)).exp()",
    ),
    plant(
        "geometric masks compare the product",
        "inputs.bounded(inputs.row_means(gap)).exp()",
        "inputs.bounded(inputs.row_sums(gap)).exp()",
    ),
    plant(
        "geometric masks compare the mean of weights",
        "inputs.bounded(inputs.row_means(gap)).exp()",
        "inputs.row_means(token)",
    ),
    plant(
        "geometric_mask weighs, too",
        'weight = token if correction == "geometric_mask_tis" else torch.ones_like(token)',
        "weight = token",
    ),
    plant(
        "geometric_mask_tis weighs by the mean",
        'weight = token if correction == "geometric_mask_tis" else torch.ones_like(token)',
        'weight = measured if correction == "geometric_mask_tis" else torch.ones_like(token)',
    ),
    plant(
        "geometric_mask_tis without its weight",
        'weight = token if correction == "geometric_mask_tis" else torch.ones_like(token)',
        "weight = torch.ones_like(token)",
    ),
    plant(
        "sequence weights are bounded, not their sum",
        "inputs.bounded(inputs.row_sums(gap)).exp()",
        "inputs.row_sums(inputs.bounded(gap)).exp()",
    ),
    plant("a weight on the cap is outside", OUTSIDE, "outside = (measured < low) | (measured >= high)"),
    plant("a weight on the floor is outside", OUTSIDE, "outside = (measured <= low) | (measured > high)"),
    plant("masks have no floor", OUTSIDE, "outside = measured > high"),
    plant("masks have no cap", OUTSIDE, "outside = measured < low"),
    plant("masks keep the outside", OUTSIDE, "outside = ~((measured < low) | (measured > high))"),
    plant("TIS at the floor instead of the cap", "weight.clamp(min=low, max=high)", "weight.clamp(min=high)"),
    plant("TIS without a floor", "weight.clamp(min=low, max=high)", "weight.clamp(max=high)"),
    plant("TIS without a cap", "weight.clamp(min=low, max=high)", "weight.clamp(min=low)"),
    plant(
        "TIS drops instead of cutting",
        "weight.clamp(min=low, max=high)",
        "torch.where(outside, torch.zeros_like(weight), weight)",
    ),
    plant(
        "IcePop cuts instead of dropping",
        '_MASKS = frozenset({"token_mis", "icepop",',
        '_MASKS = frozenset({"token_mis",',
    ),
    plant(
        "MIS cuts instead of dropping",
        '_MASKS = frozenset({"token_mis", "icepop",',
        '_MASKS = frozenset({"icepop",',
    ),
    plant(
        "IcePop without its weight",
        "weight = torch.where(outside, torch.zeros_like(weight), weight)",
        "weight = torch.where(outside, torch.zeros_like(weight), torch.ones_like(weight))",
    ),
    plant(
        "masked tokens keep their weight",
        "weight = torch.where(outside, torch.zeros_like(weight), weight)",
        "weight = weight.clone()",
    ),
    plant(
        "masked tokens are not reported",
        "Weights(weight=weight, capped=no, masked=outside)",
        "Weights(weight=weight, capped=no, masked=no)",
    ),
    plant("capped tokens are masked", "capped=outside, masked=no)", "capped=no, masked=outside)"),
    plant("IcePop: bounds of the ratio", '"icepop": (0.5, 5.0)', '"icepop": (0.8, 1.2)'),
    plant("TIS: no published cap", '"token_tis": (None, 2.0)', '"token_tis": (None, None)'),
)

OPSM = (
    plant("OPSM: sign", DRIFT, "drift = inputs.row_means((inputs.new - inputs.rollout).detach())"),
    plant(
        "OPSM: the learner's old log-probabilities",
        DRIFT,
        "drift = inputs.row_means((inputs.rollout - inputs.old).detach())",
    ),
    plant(
        "OPSM: old for the engine's", DRIFT, "drift = inputs.row_means((inputs.old - inputs.new).detach())"
    ),
    plant("OPSM: sum for mean", DRIFT, "drift = inputs.row_sums((inputs.rollout - inputs.new).detach())"),
    plant("OPSM: per token", DRIFT, "drift = (inputs.rollout - inputs.new).detach()"),
    plant(
        "OPSM: absolute drift",
        DRIFT,
        "drift = inputs.row_means((inputs.rollout - inputs.new).detach()).abs()",
    ),
    plant("OPSM: positive advantages", DROP, "return (inputs.advantages > 0) & (drift > delta)"),
    plant("OPSM: A = 0, too", DROP, "return (inputs.advantages <= 0) & (drift > delta)"),
    plant("OPSM: every advantage", DROP, "return drift > delta"),
    plant("OPSM: a drift on the bound", DROP, "return (inputs.advantages < 0) & (drift >= delta)"),
    plant("OPSM: keeps what drifted", DROP, "return (inputs.advantages < 0) & (drift <= delta)"),
    plant(
        "OPSM: the drift is not detached",
        DRIFT,
        "drift = inputs.row_means(inputs.rollout - inputs.new)",
        equivalent="The drift only enters a comparison, whose boolean result carries no gradient.",
    ),
)

METRICS = (
    plant(
        "importance weights are not detached",
        "gap = (old_logprobs - rollout_logprobs).detach()\n    return",
        "gap = old_logprobs - rollout_logprobs\n    return",
    ),
    plant(
        "importance weights upside down",
        "gap = (old_logprobs - rollout_logprobs).detach()\n    return",
        "gap = (rollout_logprobs - old_logprobs).detach()\n    return",
    ),
    plant(
        "importance weights are not bounded",
        "gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()",
        "gap.exp()",
    ),
    plant("mean gap with its sign", "(gap.abs().sum(), count)", "(gap.sum(), count)"),
    plant("largest gap with its sign", "(largest(gap.abs()), count)", "(largest(gap), count)"),
    plant(
        "mismatch KL the wrong way round", '"mismatch/kl": (k3(gap).sum()', '"mismatch/kl": (k3(-gap).sum()'
    ),
    plant("mismatch k1: sign", "(-gap.sum(), count)", "(gap.sum(), count)"),
    plant("chi square not centred", "(weights.square() - 1).sum()", "weights.square().sum()"),
    plant(
        "square of the mean weight",
        '"mismatch/weight_square_mean": (weights.square().sum()',
        '"mismatch/weight_square_mean": (weights.sum().square()',
    ),
    plant(
        "ESS upside down",
        'finished["mismatch/weight_mean"] ** 2 / square',
        'square / finished["mismatch/weight_mean"] ** 2',
    ),
    plant(
        "ESS of the mean, not its square",
        'finished["mismatch/weight_mean"] ** 2 / square',
        'finished["mismatch/weight_mean"] / square',
    ),
    plant(
        "denominator after rejection",
        "count = weights.weight.new_tensor(weights.weight.numel())",
        "count = (~weights.masked).sum().to(weights.weight.dtype)",
    ),
    plant(
        "masked share by both masks",
        "either = weights.masked if dropped is None else weights.masked | dropped",
        "either = weights.masked if dropped is None else weights.masked & dropped",
    ),
    plant(
        "largest of nothing raises",
        "torch.cat([values.detach(), values.new_zeros(1)]).max()",
        "values.detach().max()",
    ),
)

BUGS = (*WEIGHTS, *OPSM, *METRICS)
