"""How the policy loss is put together."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation,
    file="rlhf/algorithms/losses.py",
    tests=("tests/unit/algorithms/test_losses.py", "tests/unit/algorithms/test_nll_weights.py"),
)

BUGS = (
    plant(
        "old = current is not detached",
        "old = new.detach() if batch.old_logprobs is None else",
        "old = new if batch.old_logprobs is None else",
    ),
    plant(
        "the engine's as old where the learner's is missing",
        "old = new.detach() if batch.old_logprobs is None",
        "old = rollout if batch.old_logprobs is None",
    ),
    plant(
        "old policy always the learner's",
        'if self.old_from == "rollout":\n            old',
        "if False:\n            old",
    ),
    plant("log-ratio the wrong way round", "log_ratio=new - old", "log_ratio=old - new"),
    plant("log-ratio not bounded", "log_ratio=made.bounded(made.log_ratio)", "log_ratio=made.log_ratio"),
    plant(
        "log-ratio detached",
        "log_ratio=made.bounded(made.log_ratio)",
        "log_ratio=made.bounded(made.log_ratio).detach() + 0 * new",
    ),
    plant(
        "advantages of the next token",
        "advantages=batch.advantages[trained]",
        "advantages=batch.advantages.roll(-1)[trained]",
    ),
    plant(
        "log-probabilities of the token before",
        "new, rollout = logprobs[trained]",
        "new, rollout = logprobs.roll(1)[trained]",
    ),
    plant(
        "multiplied by the mask instead of selected",
        "loss = (weights * token_loss).sum()",
        "loss = (weights * token_loss).sum() + 0 * logprobs.sum()",
    ),
    plant(
        "local denominator",
        "loss = (weights * token_loss).sum()",
        "loss = (weights * token_loss).sum() / weights.sum().clamp(min=1e-9)",
    ),
    plant(
        "mean over the micro-batch",
        "loss = (weights * token_loss).sum()",
        "loss = (weights * token_loss).sum() / max(token_loss.numel(), 1)",
    ),
    plant("weights are forgotten", "loss = (weights * token_loss).sum()", "loss = token_loss.sum()"),
    plant(
        "KL: sign",
        "token_loss = token_loss + self.kl_coef * kl if",
        "token_loss = token_loss - self.kl_coef * kl if",
    ),
    plant("KL: detached", "token_loss + self.kl_coef * kl if", "token_loss + self.kl_coef * kl.detach() if"),
    plant("KL: coefficient forgotten", "token_loss + self.kl_coef * kl if", "token_loss + kl if"),
    plant(
        "KL: a reference of infinity is read at coefficient 0",
        "token_loss = token_loss + self.kl_coef * kl if self.kl_coef else token_loss",
        "token_loss = token_loss + self.kl_coef * kl",
    ),
    plant(
        "KL: ratio of the other policy",
        'old = inputs.rollout if self.kl_ratio_from == "rollout" else learner',
        'old = learner if self.kl_ratio_from == "rollout" else inputs.rollout',
    ),
    plant(
        "KL: ratio detached",
        "log_ratio = inputs.bounded(inputs.new - old)",
        "log_ratio = inputs.bounded(inputs.new - old).detach()",
    ),
    plant(
        "KL: ratio not bounded",
        "log_ratio = inputs.bounded(inputs.new - old)",
        "log_ratio = inputs.new - old",
    ),
    plant(
        "KL: under the masks of the policy term",
        "kl = self._kl(inputs, batch.ref_logprobs[trained], learner)",
        "kl = self._kl(inputs, batch.ref_logprobs[trained], learner) * (token_loss != 0)",
    ),
    plant(
        "KL: weighted by the correction",
        "kl = self._kl(inputs, batch.ref_logprobs[trained], learner)",
        "kl = self._kl(inputs, batch.ref_logprobs[trained], learner)\n"
        "            kl = kl * correction_weights(inputs, self.correction, bounds=self.bounds).weight",
    ),
    plant(
        "entropy: sign",
        "token_loss - self.entropy_coef * chosen if",
        "token_loss + self.entropy_coef * chosen if",
    ),
    plant(
        "entropy: detached",
        "token_loss - self.entropy_coef * chosen if",
        "token_loss - self.entropy_coef * chosen.detach() if",
    ),
    plant(
        "entropy: read at coefficient 0",
        "token_loss = token_loss - self.entropy_coef * chosen if self.entropy_coef else token_loss",
        "token_loss = token_loss - self.entropy_coef * chosen",
    ),
    plant(
        "positive NLL: sign",
        "return -(weights * new).sum(), weights.sum()",
        "return (weights * new).sum(), weights.sum()",
    ),
    plant(
        "positive NLL: local denominator",
        "return -(weights * new).sum(), weights.sum()",
        "return -(weights * new).sum() / weights.sum().clamp(min=1e-9), weights.sum()",
    ),
    plant("positive NLL: rewards of 0, too", "(graded > 0)[", "(graded >= 0)["),
    plant("positive NLL: every row", "(graded > 0)[", "(graded == graded)["),
    plant(
        "positive NLL: by the shaped reward",
        "graded = minibatch.rewards if minibatch.task_rewards is None else minibatch.task_rewards",
        "graded = minibatch.rewards",
    ),
    plant(
        "positive NLL: mean over rows",
        "weights[positive] = 1 / max(positive.numel(), 1)",
        "rows = minibatch.segment_ids[positive]\n"
        "    sizes = torch.bincount(rows, minlength=minibatch.num_rows).clamp(min=1)\n"
        "    weights[positive] = (1 / sizes[rows] / max(rows.unique().numel(), 1)).to(weights.dtype)",
    ),
    plant(
        "positive NLL: over all trained tokens", "1 / max(positive.numel(), 1)", "1 / max(trained.numel(), 1)"
    ),
    plant(
        "positive NLL: coefficient forgotten",
        "loss = loss + self.positive_nll_coef * nll",
        "loss = loss + nll",
    ),
    plant("correction forgotten", 'loss if self.correction == "none" else weights.weight * loss', "loss"),
    plant("correction of the next token", "weights.weight * loss", "weights.weight.roll(-1) * loss"),
    plant(
        "OPSM forgotten",
        "out = weights.masked if dropped is None else weights.masked | dropped\n        loss",
        "out = weights.masked\n        loss",
    ),
    plant(
        "OPSM keeps what it should drop",
        "out = weights.masked if dropped is None else weights.masked | dropped\n        loss",
        "out = weights.masked if dropped is None else weights.masked | ~dropped\n        loss",
    ),
    plant(
        "a mask keeps the value of the loss",
        "torch.where(out, torch.zeros_like(loss), loss)",
        "torch.where(out, loss.detach(), loss)",
    ),
    plant(
        "a mask keeps the gradient",
        "torch.where(out, torch.zeros_like(loss), loss)",
        "torch.where(out, loss - loss.detach(), loss)",
    ),
    plant(
        "the floor of the correction is forgotten",
        "low if self.correction_floor is None else self.correction_floor",
        "low",
    ),
    plant(
        "the cap of the correction is forgotten",
        "high if self.correction_cap is None else self.correction_cap",
        "high",
    ),
    plant(
        "old policy of the metrics is the engine's",
        "learner = inputs.new.detach() if batch.old_logprobs is None else batch.old_logprobs[trained]",
        "learner = inputs.rollout",
    ),
    plant(
        "loss metric by rows",
        "(loss.detach(), weights.sum())",
        "(loss.detach(), weights.new_tensor(batch.num_rows))",
    ),
    plant(
        "masked share of all tokens",
        "(batch.loss_mask.sum() - count, batch.loss_mask.sum())",
        "(batch.loss_mask.sum() - count, weights.new_tensor(batch.num_tokens))",
    ),
    plant("KL metric weighted", "(kl.detach().sum(), count)", "((weights * kl.detach()).sum(), count)"),
    plant(
        "entropy metric weighted",
        "(chosen.detach().sum(), count)",
        "((weights * chosen.detach()).sum(), count)",
    ),
    plant(
        "ratio metric of the log-ratio",
        '"update/ratio_mean": (ratio.sum(), count)',
        '"update/ratio_mean": (log_ratio.sum(), count)',
    ),
    plant(
        "KL to the old policy the wrong way round",
        '"update/kl_old": (k3(log_ratio).sum(), count)',
        '"update/kl_old": (k3(-log_ratio).sum(), count)',
    ),
    plant("selection without its seed", "self.policy, seed=seed, **chosen", "self.policy, **chosen"),
    plant("selection without its settings", "self.policy, seed=seed, **chosen", "self.policy, seed=seed"),
    plant(
        "rollout with a correction is allowed",
        'if self.old_from == "rollout" and self.correction != "none":',
        "if False:",
    ),
)
