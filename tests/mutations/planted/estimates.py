"""KL estimators and the value loss."""

from functools import partial

from tests.mutations.mutation import Mutation

kl = partial(Mutation, file="rlhf/algorithms/kl.py", tests=("tests/unit/algorithms/test_kl.py",))
value = partial(
    Mutation, file="rlhf/algorithms/value_loss.py", tests=("tests/unit/algorithms/test_value_loss.py",)
)

KL = (
    kl("k1: sign", "            return x\n", "            return -x\n"),
    kl("k1: absolute value", "            return x\n", "            return x.abs()\n"),
    kl("k2: without the half", "return x.square() / 2", "return x.square()"),
    kl("k3: argument's sign", 'return k3(-x)\n        case "k3_st"', 'return k3(x)\n        case "k3_st"'),
    kl(
        "k3: output clamped at 10",
        'return k3(-x)\n        case "k3_st"',
        'return k3(-x).clamp(max=10)\n        case "k3_st"',
    ),
    kl("k3: input clamped at 1", "x = logprobs - ref_logprobs", "x = (logprobs - ref_logprobs).clamp(-1, 1)"),
    kl(
        "KL to the reference the wrong way round",
        "x = logprobs - ref_logprobs",
        "x = ref_logprobs - logprobs",
    ),
    kl("KL detached", "x = logprobs - ref_logprobs", "x = logprobs.detach() - ref_logprobs + 0 * logprobs"),
    kl(
        "k3_st: gradient of k3",
        "return half_square - half_square.detach() + k3(-x).detach()",
        "return half_square.detach() - half_square.detach() + k3(-x)",
    ),
    kl(
        "k3_st: value of k2",
        "return half_square - half_square.detach() + k3(-x).detach()",
        "return half_square",
    ),
    kl(
        "k3_st: both gradients",
        "return half_square - half_square.detach() + k3(-x).detach()",
        "return half_square - half_square.detach() + k3(-x)",
    ),
    kl("k3_unbiased: no ratio", "return log_ratio.exp() * k3(-x)", "return k3(-x)"),
    kl(
        "k3_unbiased: ratio detached",
        "return log_ratio.exp() * k3(-x)",
        "return log_ratio.detach().exp() * k3(-x)",
    ),
    kl(
        "k3_unbiased: k3 detached",
        "return log_ratio.exp() * k3(-x)",
        "return log_ratio.exp() * k3(-x).detach()",
    ),
    kl(
        "k3_unbiased: ratio upside down",
        "return log_ratio.exp() * k3(-x)",
        "return (-log_ratio).exp() * k3(-x)",
    ),
    kl(
        "k3: cancellation near 0",
        "torch.expm1(log_ratio) - log_ratio",
        "torch.exp(log_ratio) - 1 - log_ratio",
    ),
    kl("k3: plus the log-ratio", "torch.expm1(log_ratio) - log_ratio", "torch.expm1(log_ratio) + log_ratio"),
    kl("KL controller: sign", "max(kl / target - 1, -0.2)", "max(1 - kl / target, -0.2)"),
    kl("KL controller: no upper bound", "min(max(kl / target - 1, -0.2), 0.2)", "max(kl / target - 1, -0.2)"),
    kl("KL controller: no lower bound", "min(max(kl / target - 1, -0.2), 0.2)", "min(kl / target - 1, 0.2)"),
    kl("KL controller: absolute error", "max(kl / target - 1, -0.2)", "max(kl - target, -0.2)"),
    kl(
        "KL controller: horizon upside down",
        "error * num_samples / horizon",
        "error * horizon / num_samples / 1e3",
    ),
)

VALUE = (
    value("value: min for max", "caught = clipped > error", "caught = clipped < error"),
    value("value: only the clipped branch", "error = torch.where(caught, clipped, error)", "error = clipped"),
    value(
        "value: no clip",
        "error = torch.where(caught, clipped, error)",
        "error = torch.where(caught, error, error)",
    ),
    value("value: without the half", "loss = (weights * error / 2).sum()", "loss = (weights * error).sum()"),
    value(
        "value: mean over the micro-batch",
        "loss = (weights * error / 2).sum()",
        "loss = (error / 2).sum() / max(error.numel(), 1)",
    ),
    value(
        "value: local denominator",
        "loss = (weights * error / 2).sum()",
        "loss = (weights * error / 2).sum() / weights.sum().clamp(min=1e-9)",
    ),
    value(
        "value: clip around the return",
        "new.clamp(old - self.clip, old + self.clip)",
        "new.clamp(returns - self.clip, returns + self.clip)",
    ),
    value(
        "value: a relative clip",
        "new.clamp(old - self.clip, old + self.clip)",
        "new.clamp(old * (1 - self.clip), old * (1 + self.clip))",
    ),
    value(
        "value: one-sided clip",
        "new.clamp(old - self.clip, old + self.clip)",
        "new.clamp(max=old + self.clip)",
    ),
    value(
        "value: old values clipped to new",
        "new.clamp(old - self.clip, old + self.clip)",
        "old.clamp(new - self.clip, new + self.clip)",
    ),
    value("value: absolute error", "error = (new - returns).square()", "error = (new - returns).abs()"),
    value(
        "value: prediction detached",
        "new = values[trained]",
        "new = values[trained].detach() + 0 * values[trained]",
    ),
    value("value: of the token before", "new = values[trained]", "new = values.roll(1)[trained]"),
    value(
        "value: multiplied by the mask",
        "loss = (weights * error / 2).sum()",
        "loss = (weights * error / 2).sum() + (batch.loss_mask * values * 0).sum()",
    ),
    value(
        "value: error metric's sign", "missed = (returns - new).detach()", "missed = (new - returns).detach()"
    ),
    value(
        "explained variance: second moment of the error",
        "(error_square - error**2) / variance",
        "error_square / variance",
    ),
    value(
        "explained variance: second moment of the returns",
        'square - finished["critic/return_mean"] ** 2',
        "square",
    ),
    value("explained variance: what is not explained", "= 1 - (error_square", "= (error_square"),
    value("value: a default clip of 0.2", "clip: float | None = 0.5", "clip: float | None = 0.2"),
    value(
        "value: share of clipped tokens where a bound was crossed",
        '"critic/clip_share": caught.sum()',
        '"critic/clip_share": (clipped != error).sum() if self.clip is not None else caught.sum()',
    ),
    value("value: weights are forgotten", "loss = (weights * error / 2).sum()", "loss = (error / 2).sum()"),
    value(
        "value: the clipped branch is the nearer",
        "caught = clipped > error",
        "caught = (new - old).abs() > self.clip",
    ),
    value(
        "explained variance: not the second moment of the error",
        "missed.square().sum()",
        "missed.abs().sum()",
    ),
    value(
        "explained variance of equal returns",
        "if variance > 1e-12 * square:",
        "variance = max(variance, 1e-12)\n        if variance:",
    ),
)

BUGS = (*KL, *VALUE)
