"""Sequences, pairs and the preference losses."""

from functools import partial

from tests.mutations.mutation import Mutation

pairs = partial(
    Mutation,
    file="rlhf/algorithms/pairs.py",
    tests=("tests/unit/algorithms/test_pairs.py", "tests/unit/algorithms/test_preference.py"),
)
plant = partial(
    Mutation, file="rlhf/algorithms/preference.py", tests=("tests/unit/algorithms/test_preference.py",)
)

SEQUENCES = (
    pairs(
        "sequence log-probabilities multiplied by the mask",
        "picked.new_zeros(batch.num_rows).index_add(0, batch.segment_ids[places], picked)",
        "picked.new_zeros(batch.num_rows).index_add("
        "0, batch.segment_ids, (logprobs * batch.loss_mask).to(picked.dtype))",
    ),
    pairs(
        "sequence log-probabilities summed in bfloat16",
        "logprobs[places].to(torch.promote_types(logprobs.dtype, torch.float32))",
        "logprobs[places]",
    ),
    pairs(
        "sequence log-probabilities of the next token",
        "picked = logprobs[places]",
        "picked = logprobs.roll(-1)[places]",
    ),
    pairs(
        "sequence log-probabilities of the prompt, too",
        "places = torch.nonzero(batch.loss_mask).squeeze(1)",
        "places = torch.arange(batch.num_tokens)",
    ),
    pairs("counts of all tokens", "return sums, batch.row_sampled()", "return sums, batch.row_lengths()"),
    pairs(
        "log-ratio upside down",
        "return self.sums - self.ref_sums.detach()",
        "return self.ref_sums.detach() - self.sums",
    ),
    pairs(
        "reference not detached",
        "return self.sums - self.ref_sums.detach()",
        "return self.sums - self.ref_sums",
    ),
    pairs(
        "mean log-ratio is the sum",
        "return self.log_ratios / self.counts.clamp(min=1)",
        "return self.log_ratios",
    ),
    pairs("means are sums", "return self.sums / self.counts.clamp(min=1)", "return self.sums"),
    pairs(
        "means of empty rows divide by 0",
        "return self.sums / self.counts.clamp(min=1)",
        "return self.sums / self.counts",
    ),
    pairs(
        "chosen and rejected swapped",
        "Pairs(chosen=rows.select(slice(0, None, 2)), rejected=rows.select(slice(1, None, 2)))",
        "Pairs(chosen=rows.select(slice(1, None, 2)), rejected=rows.select(slice(0, None, 2)))",
    ),
    pairs(
        "labels swapped",
        "Pairs(chosen=rows.only(desirable), rejected=rows.only(~desirable)",
        "Pairs(chosen=rows.only(~desirable), rejected=rows.only(desirable)",
    ),
    pairs(
        "rows left out keep their counts",
        "counts=torch.where(kept, self.counts, torch.zeros_like(self.counts))",
        "counts=self.counts",
    ),
    pairs(
        "rows left out keep their sums",
        "            sums=torch.where(kept, self.sums, zeros),\n",
        "            sums=self.sums,\n",
    ),
    pairs(
        "rows left out are multiplied by 0",
        "            sums=torch.where(kept, self.sums, zeros),\n",
        "            sums=self.sums * kept,\n",
    ),
    pairs(
        "KTO's z is not detached",
        "mismatched.only(counted).log_ratios.detach()",
        "mismatched.only(counted).log_ratios",
    ),
    pairs(
        "KTO's z may be negative",
        "(log_ratios.sum() / counted.sum().clamp(min=1)).clamp(min=0)",
        "log_ratios.sum() / counted.sum().clamp(min=1)",
    ),
    pairs(
        "KTO's z bounds each row",
        "(log_ratios.sum() / counted.sum().clamp(min=1)).clamp(min=0)",
        "log_ratios.clamp(min=0).sum() / counted.sum().clamp(min=1)",
    ),
    pairs(
        "KTO's z counts empty rows",
        "log_ratios.sum() / counted.sum().clamp(min=1)",
        "log_ratios.sum() / max(counted.numel(), 1)",
    ),
    pairs("KTO's z is a sum", "(log_ratios.sum() / counted.sum().clamp(min=1))", "log_ratios.sum()"),
    pairs(
        "half a pair counts",
        "counted = sides.any(0) if one_sided else sides.all(0)",
        "counted = sides.any(0)",
    ),
    pairs(
        "KTO counts whole pairs only",
        "counted = sides.any(0) if one_sided else sides.all(0)",
        "counted = sides.all(0)",
    ),
    pairs(
        "KTO by examples, not sides",
        "total = sides.sum() if one_sided else counted.sum()",
        "total = counted.sum()",
    ),
    pairs(
        "empty pairs are in the mean",
        "total = sides.sum() if one_sided else counted.sum()",
        "total = sides.sum() if one_sided else counted.numel() + 0 * counted.sum()",
    ),
)

REFUSALS = (
    pairs(
        "an odd number of rows becomes pairs",
        "if rows.counts.numel() % 2:",
        "if False:",
    ),
    pairs(
        "sides of different lengths become pairs",
        "if self.chosen.counts.shape != self.rejected.counts.shape:",
        "if False:",
    ),
    pairs(
        "sums in bfloat16 are taken",
        "value.dtype not in (torch.float32, torch.float64)",
        "value.dtype not in (torch.float32, torch.float64, torch.bfloat16)",
    ),
    plant("a setting that the loss does not read is taken", "if name not in takes:", "if False:"),
    plant("a setting out of range is taken", "if not allowed(value):", "if False:"),
    plant(
        "label smoothing of a half is taken",
        "lambda x: 0 <= x < 0.5",
        "lambda x: 0 <= x <= 0.5",
    ),
    plant("settings of a loss are forgotten", '"beta": self.beta,', '"beta": None,'),
    plant("kto needs whole pairs", "return self.term is kto", "return False"),
)

MARGINS = (
    plant(
        "dpo: sign",
        "return -logsigmoid(chosen - rejected), chosen, rejected",
        "return -logsigmoid(rejected - chosen), chosen, rejected",
    ),
    plant(
        "dpo: squared beta",
        "return -logsigmoid(chosen - rejected), chosen, rejected",
        "return -logsigmoid(beta * (chosen - rejected)), chosen, rejected",
    ),
    plant(
        "dpo: log of a sigmoid that underflows",
        "return -logsigmoid(chosen - rejected), chosen, rejected",
        "return -torch.log(torch.sigmoid(chosen - rejected)), chosen, rejected",
    ),
    plant(
        "dpo: no beta",
        "beta * pairs.rejected.log_ratios\n    return -logsigmoid(chosen - rejected)",
        "beta * pairs.rejected.log_ratios\n    return -logsigmoid((chosen - rejected) / beta)",
    ),
    plant(
        "cdpo: label smoothing ignored",
        "return smoothed_preference(chosen - rejected, label_smoothing), chosen, rejected",
        "return smoothed_preference(chosen - rejected, 0.0), chosen, rejected",
    ),
    plant(
        "smoothing: shares swapped",
        "return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)",
        "return -label_smoothing * logsigmoid(margin) - (1 - label_smoothing) * logsigmoid(-margin)",
    ),
    plant(
        "smoothing: the flipped share is rewarded",
        "logsigmoid(margin) - label_smoothing * logsigmoid(-margin)",
        "logsigmoid(margin) + label_smoothing * logsigmoid(-margin)",
    ),
    plant(
        "robust: sign of the flipped share",
        "logsigmoid(margin) + label_smoothing * logsigmoid(-margin)",
        "logsigmoid(margin) - label_smoothing * logsigmoid(-margin)",
    ),
    plant("robust: not divided by 1 - 2e", "return top / (1 - 2 * label_smoothing)", "return top"),
    plant(
        "robust: divided by 1 - e",
        "return top / (1 - 2 * label_smoothing)",
        "return top / (1 - label_smoothing)",
    ),
    plant("hinge: no corner", "(1 - (chosen - rejected)).clamp(min=0)", "(1 - (chosen - rejected))"),
    plant(
        "hinge: margin of 0", "(1 - (chosen - rejected)).clamp(min=0)", "(-(chosen - rejected)).clamp(min=0)"
    ),
    plant(
        "hinge: no gradient on the corner",
        "(1 - (chosen - rejected)).clamp(min=0)",
        "torch.relu(1 - (chosen - rejected))",
    ),
    plant(
        "ipo: on means",
        "chosen, rejected = pairs.chosen.log_ratios, pairs.rejected.log_ratios\n    return (",
        "chosen, rejected = pairs.chosen.mean_log_ratios, pairs.rejected.mean_log_ratios\n    return (",
    ),
    plant(
        "ipo_avg: on sums",
        "chosen, rejected = pairs.chosen.mean_log_ratios, pairs.rejected.mean_log_ratios",
        "chosen, rejected = pairs.chosen.log_ratios, pairs.rejected.log_ratios",
    ),
    plant(
        "ipo: beta for 1 / (2 beta)",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - 1 / (2 * beta))",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - beta)",
    ),
    plant(
        "ipo: 1 / beta",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - 1 / (2 * beta))",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - 1 / beta)",
    ),
    plant(
        "ipo_avg: 1 / beta",
        "mean_log_ratios\n    return (chosen - rejected - 1 / (2 * beta))",
        "mean_log_ratios\n    return (chosen - rejected - 1 / beta)",
    ),
)

OTHERS = (
    plant(
        "simpo: gamma times beta",
        "-logsigmoid(chosen - rejected - gamma)",
        "-logsigmoid(chosen - rejected - beta * gamma)",
    ),
    plant(
        "simpo: gamma's sign",
        "-logsigmoid(chosen - rejected - gamma)",
        "-logsigmoid(chosen - rejected + gamma)",
    ),
    plant("simpo: no gamma", "-logsigmoid(chosen - rejected - gamma)", "-logsigmoid(chosen - rejected)"),
    plant(
        "simpo: sums",
        "beta * pairs.chosen.means, beta * pairs.rejected.means",
        "beta * pairs.chosen.sums, beta * pairs.rejected.sums",
    ),
    plant("orpo: no likelihood", "loss = -pairs.chosen.means - odds_weight", "loss = -odds_weight"),
    plant(
        "orpo: likelihood as a sum",
        "loss = -pairs.chosen.means - odds_weight",
        "loss = -pairs.chosen.sums - odds_weight",
    ),
    plant(
        "orpo: the odds swapped",
        "odds_weight * logsigmoid(chosen - rejected)",
        "odds_weight * logsigmoid(rejected - chosen)",
    ),
    plant("orpo: the odds' sign", "- odds_weight * logsigmoid(chosen", "+ odds_weight * logsigmoid(chosen"),
    plant("orpo: probability for odds", "return bounded - log1mexp(bounded)", "return bounded"),
    plant(
        "orpo: log(1 - e^p) added", "return bounded - log1mexp(bounded)", "return bounded + log1mexp(bounded)"
    ),
    plant(
        "orpo: certain answers are not bounded",
        "means.clamp(max=-torch.finfo(means.dtype).eps)",
        "means.clone()",
    ),
    plant("log1mexp: one branch", "near = x > -math.log(2)", "near = x > -math.inf"),
    plant("log1mexp: the other branch", "near = x > -math.log(2)", "near = x > 0"),
    plant(
        "log1mexp: where after exp",
        "torch.expm1(torch.where(near, x, middle))",
        "torch.expm1(x)",
        equivalent="Where the branch is not taken x <= -log 2, so -expm1(x) lies in [1/2, 1]: its logarithm and "
        "its gradient are finite, and where drops both.",
    ),
    plant(
        "log1mexp: where after exp, the far branch", "torch.exp(torch.where(near, middle, x))", "torch.exp(x)"
    ),
    plant("kto: z not detached", "z = pairs.baseline.detach()", "z = pairs.baseline"),
    plant("kto: no z", "z = pairs.baseline.detach()", "z = 0 * pairs.baseline.detach()"),
    plant(
        "kto: z of the micro-batch",
        "z = pairs.baseline.detach()",
        "z = (pairs.rejected.log_ratios.sum() / max(len(pairs.rejected.counts), 1)).clamp(min=0).detach()",
    ),
    plant("kto: z added", "torch.sigmoid(-beta * (chosen - z))", "torch.sigmoid(-beta * (chosen + z))"),
    plant("kto: desirable sign", "torch.sigmoid(-beta * (chosen - z))", "torch.sigmoid(beta * (chosen - z))"),
    plant(
        "kto: undesirable sign",
        "torch.sigmoid(beta * (rejected - z))",
        "torch.sigmoid(-beta * (rejected - z))",
    ),
    plant(
        "kto: weights swapped",
        "desirable = desirable_weight * torch",
        "desirable = undesirable_weight * torch",
    ),
    plant(
        "kto: an empty undesirable side counts",
        "torch.where(pairs.rejected.counts > 0, undesirable, zeros)",
        "undesirable",
    ),
    plant(
        "kto: an empty desirable side counts",
        "torch.where(pairs.chosen.counts > 0, desirable, zeros)",
        "desirable",
    ),
    plant(
        "kto balance upside down",
        "return desirable * num_desirable / (undesirable * num_undesirable)",
        "return undesirable * num_undesirable / (desirable * num_desirable)",
    ),
    plant(
        "kto balance without weights",
        "return desirable * num_desirable / (undesirable * num_undesirable)",
        "return num_desirable / num_undesirable",
    ),
    plant(
        "SFT term: sign",
        "losses - settings.nll_coef * clean.chosen.means",
        "losses + settings.nll_coef * clean.chosen.means",
    ),
    plant(
        "SFT term: sum for mean",
        "losses - settings.nll_coef * clean.chosen.means",
        "losses - settings.nll_coef * clean.chosen.sums",
    ),
    plant(
        "SFT term: of the rejected",
        "losses - settings.nll_coef * clean.chosen.means",
        "losses - settings.nll_coef * clean.rejected.means",
    ),
    plant(
        "half a pair is compared",
        "has_chosen = has_rejected = has_chosen & has_rejected",
        "has_chosen = has_rejected = has_chosen | has_rejected",
    ),
    plant(
        "empty examples keep a loss",
        "losses=torch.where(has_chosen | has_rejected, losses, torch.zeros_like(losses))",
        "losses=losses",
    ),
    plant("accuracy counts ties", "(margin > 0).to(margin.dtype)", "(margin >= 0).to(margin.dtype)"),
    plant(
        "accuracy over every example",
        "_selected_sum((margin > 0).to(margin.dtype), both)",
        "_selected_sum((margin > 0).to(margin.dtype), both | True)",
    ),
    plant(
        "margin: sign",
        "margin = self.chosen_rewards - self.rejected_rewards",
        "margin = self.rejected_rewards - self.chosen_rewards",
    ),
    plant(
        "implicit reward without beta",
        "-logsigmoid(chosen - rejected), chosen, rejected",
        "-logsigmoid(chosen - rejected), chosen / beta, rejected / beta",
    ),
    plant(
        "kto reward without beta",
        "return loss, beta * chosen, beta * rejected",
        "return loss, chosen, rejected",
    ),
    plant(
        "ipo reward without beta",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - 1 / (2 * beta)).square(), beta * chosen",
        "pairs.rejected.log_ratios\n    return (chosen - rejected - 1 / (2 * beta)).square(), chosen",
    ),
    plant(
        "orpo reward without its weight",
        "return loss, odds_weight * chosen, odds_weight * rejected",
        "return loss, chosen, rejected",
    ),
)

BUGS = (*SEQUENCES, *REFUSALS, *MARGINS, *OTHERS)
