"""Losses of retrieval alignment."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(
    Mutation, file="rlhf/algorithms/alignment.py", tests=("tests/unit/algorithms/test_alignment.py",)
)

SETTINGS = (
    plant("alignment: beta is not checked", '        check_range("beta", self.beta)\n', ""),
    plant(
        "alignment: settings without a reader are taken",
        "if value and self.loss not in readers:",
        "if value is None:",
    ),
)

LISTS = (
    plant(
        "alignment: utilities without the reference",
        "settings.beta * (lists.scores - lists.ref_scores)",
        "settings.beta * lists.scores",
    ),
    plant(
        "alignment: beta forgotten",
        "settings.beta * (lists.scores - lists.ref_scores)",
        "lists.scores - lists.ref_scores",
    ),
    plant(
        "rp_dpo: closure forgotten",
        "grid_pairs(*lists.shape, closure=settings.closure)",
        "grid_pairs(*lists.shape)",
    ),
    plant(
        "rp_dpo: grid transposed",
        "grid_pairs(*lists.shape, closure=settings.closure)",
        "grid_pairs(*lists.shape[::-1], closure=settings.closure)",
    ),
    plant(
        "rp_dpo: label smoothing forgotten",
        "ranked_partial_dpo(utilities, pairs, label_smoothing=settings.label_smoothing)",
        "ranked_partial_dpo(utilities, pairs)",
    ),
    plant("rp_pl: pairs are not checked", "            check_pairs(lists.pairs, n)\n", ""),
    plant("dpo: the second over the last", "[(0, n - 1)]", "[(1, n - 1)]"),
    plant("dpo: the last over the first", "[(0, n - 1)]", "[(n - 1, 0)]"),
    plant("sft_list: the whole ranking", "plackett_luce(lists.scores, top=1)", "plackett_luce(lists.scores)"),
    plant(
        "sft_list: utilities in place of scores",
        "plackett_luce(lists.scores, top=1)",
        "plackett_luce(utilities, top=1)",
    ),
    plant("ipo: of utilities", "1 / (2 * beta)", "1 / (2 * beta**2)"),
    plant("ipo: half the target", "1 / (2 * beta)", "1 / (4 * beta)"),
    plant("ipo: the second image in place of the last", "ratios[:, -1]", "ratios[:, 1]"),
)

POOL = (
    plant("grpo: the expectation carries a gradient", "logprobs.detach().exp()", "logprobs.exp()"),
    plant(
        "grpo: all images alike",
        "logprobs.detach().exp()",
        "torch.full_like(logprobs, 1 / logprobs.shape[1])",
    ),
    plant(
        "grpo: centred by the plain mean",
        "(policy * rewards).sum(1, keepdim=True)",
        "rewards.mean(1, keepdim=True)",
    ),
    plant("grpo: not divided by the spread", "centred / std.clamp(min=_STD_FLOOR)", "centred"),
    plant("grpo: divided by the variance", ".sum(1, keepdim=True).sqrt()", ".sum(1, keepdim=True)"),
    plant("grpo: the sign", "-(policy * advantages * logprobs)", "(policy * advantages * logprobs)"),
    plant("grpo: no KL", "kl_coef * (logprobs.exp()", "0.0 * (logprobs.exp()"),
    plant(
        "grpo: KL the other way round",
        "logprobs.exp() * (logprobs - ref_logprobs)",
        "ref_logprobs.exp() * (ref_logprobs - logprobs)",
    ),
    plant(
        "grpo: KL's weights are detached",
        "logprobs.exp() * (logprobs - ref_logprobs)",
        "policy * (logprobs - ref_logprobs)",
    ),
)

REPLAY = (
    plant(
        "nce: equal pairs are negatives",
        "other = negatives.keys[:, None] == negatives.all_keys[None, :]",
        "other = negatives.keys[:, None] < negatives.all_keys[None, :] - 10**9",
    ),
    plant("nce: places of the first rank", "+ negatives.offset", "+ 0 * negatives.offset"),
    plant("nce: scale forgotten for images", "scale * images @ negatives", "images @ negatives"),
    plant("nce: one way alone", "(forth + back) / 2", "forth"),
    plant("nce: not halved", "(forth + back) / 2", "forth + back"),
    plant(
        "nce: smoothing forgotten", "return -(1 - smoothing) * right - smoothing * spread", "return -right"
    ),
    plant(
        "nce: smoothed over what is left out, too",
        "(~left_out).sum(1)",
        "left_out.shape[1]",
    ),
)

BUGS = (*SETTINGS, *LISTS, *POOL, *REPLAY)
