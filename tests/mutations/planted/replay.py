"""What a trajectory carries: rewards of steps and parts, kept sets, experts; the critic and the steering."""

from functools import partial

from tests.mutations.mutation import Mutation

steps = partial(Mutation, file="rlhf/data/steps.py", tests=("tests/unit/data/test_steps.py",))
packing = partial(Mutation, file="rlhf/data/packing.py", tests=("tests/unit/data/test_packing.py",))
kept = partial(Mutation, file="rlhf/learner/forward.py", tests=("tests/unit/learner/test_sampling_mask.py",))
shared = partial(Mutation, file="rlhf/learner/forward.py", tests=("tests/unit/learner/test_routing.py",))
routing = partial(Mutation, file="rlhf/learner/routing.py", tests=("tests/unit/learner/test_routing.py",))
run = partial(Mutation, file="rlhf/run.py", tests=("tests/unit/test_train.py",))
critic = partial(Mutation, file="rlhf/learner/critic.py", tests=("tests/unit/learner/test_critic.py",))

CARRIED = (
    steps(
        "steps: the token that begins after the end",
        "bisect_left(range(1, len(ids)), end, key=lambda count: len(decode(ids[:count])))",
        "bisect_left(range(1, len(ids)), end + 1, key=lambda count: len(decode(ids[:count])))",
    ),
    steps(
        "steps: the token after",
        "return turn.segment, turn.start + place",
        "return turn.segment, turn.start + place + 1",
    ),
    steps("steps: counted from the row's start", "turn.start + place", "place"),
    steps(
        "steps: characters for tokens",
        "key=lambda count: len(decode(ids[:count]))",
        "key=lambda count: count",
    ),
    steps("steps: the last of those on a token", "value if math.isnan(before) else before + value", "value"),
    steps(
        "steps: the first of those on a token",
        "value if math.isnan(before) else before + value",
        "value if math.isnan(before) else before",
    ),
    steps(
        "steps: no step is a step of 0",
        "return [[math.nan] * len(segment.token_ids)",
        "return [[0.0] * len(segment.token_ids)",
    ),
    packing("pack: a missing part is 0", "of_one.get(name, math.nan)", "of_one.get(name, 0.0)"),
    packing(
        "pack: parts in the order of the reward",
        "[of_one.get(name, math.nan) for name in names]",
        "[*of_one.values(), *[math.nan] * len(names)][: len(names)]",
    ),
    packing(
        "pack: temperatures of the neighbour",
        "else per_row(temperatures, np.float32)",
        "else per_row(temperatures, np.float32).roll(1)",
    ),
    packing(
        "pack: kept sets a token late", "torch.from_numpy(kept_ids)", "torch.from_numpy(kept_ids).roll(1, 0)"
    ),
    packing(
        "pack: kept sets padded with token 0",
        "max(sizes.max(initial=0), 1)), -1, np.int32)",
        "max(sizes.max(initial=0), 1)), 0, np.int32)",
    ),
    packing(
        "pack: experts a token late",
        "torch.from_numpy(np.concatenate(rows, dtype=np.int16))",
        "torch.from_numpy(np.concatenate(rows, dtype=np.int16)).roll(1, 0)",
    ),
    packing(
        "pack: rows without records use expert 0",
        "np.full((len(s.token_ids), *shape), -1)",
        "np.full((len(s.token_ids), *shape), 0)",
    ),
    packing(
        "pack: tokens whose set overflowed are trained",
        "if is_left_out else segment.trained_mask",
        "if is_left_out else segment.loss_mask",
    ),
)

KEPT = (
    kept("kept: the target is not of the set", "        inside.scatter_(1, targets[:, None], True)\n", ""),
    kept(
        "kept: padding keeps token 0", "torch.where(kept >= 0, kept, size).long()", "kept.clamp(min=0).long()"
    ),
    kept(
        "kept: padding keeps the last token",
        "torch.where(kept >= 0, kept, size).long()",
        "torch.where(kept >= 0, kept, size - 1).long()",
    ),
    kept("kept: no set is the target alone", "        inside |= (kept < 0).all(1, keepdim=True)\n", ""),
    kept(
        "kept: any padding is the whole vocabulary",
        "(kept < 0).all(1, keepdim=True)",
        "(kept < 0).any(1, keepdim=True)",
    ),
    kept(
        "kept: forgotten",
        "return None if self.kept is None else (self.kept[part], self.targets[part])",
        "return None",
    ),
    kept(
        "kept: sets of the chunk before",
        "(self.kept[part], self.targets[part])",
        "(self.kept.roll(1, 0)[part], self.targets[part])",
    ),
    kept("kept: sets of the token before", "batch.kept_ids[trained]", "batch.kept_ids[trained - 1]"),
    kept(
        "kept: forgotten in the gradient",
        "log_softmax(settings.logits(hidden[part], weight, bias, part), settings.support(part))",
        "log_softmax(settings.logits(hidden[part], weight, bias, part))",
    ),
    kept(
        "kept: outside is damped, not left out",
        "masked_fill_(~inside[:, :size], torch.finfo(logits.dtype).min / 2)",
        "masked_fill_(~inside[:, :size], -5.0)",
    ),
    kept(
        "kept: inside and outside exchanged",
        "masked_fill_(~inside[:, :size]",
        "masked_fill_(inside[:, :size]",
    ),
    routing(
        "routing: the router's weights with the recorded experts",
        "(args[0].gather(1, chosen), chosen)",
        "(result.values, chosen)",
    ),
    routing(
        "routing: weights are detached", "args[0].gather(1, chosen)", "args[0].detach().gather(1, chosen)"
    ),
    routing(
        "routing: every layer has the first one's experts", "routing[:, index].long()", "routing[:, 0].long()"
    ),
    routing(
        "routing: experts of the token before",
        "routing[:, index].long()",
        "routing[:, index].roll(1, 0).long()",
    ),
    routing(
        "routing: what is missing goes to expert 0",
        "is_recorded = (self._recorded >= 0).all(-1, keepdim=True)\n"
        "        chosen = torch.where(is_recorded, self._recorded, result.indices)",
        "chosen = self._recorded.clamp(min=0)",
    ),
    shared(
        "routing: experts of the row, not of what is shared",
        "batch.routing[own]",
        "batch.routing[: own.numel()]",
    ),
    critic(
        "critic: the value of the token itself",
        "(inputs.before, inputs.last)",
        "(inputs.before + 1, inputs.last)",
    ),
    critic(
        "critic: the last value before the last token",
        "(inputs.before, inputs.last)",
        "(inputs.before, (inputs.last - 1).clamp(min=0))",
    ),
    critic(
        "critic: values in the order of their numbers",
        "spread(values, inputs.trained, batch.num_tokens)",
        "values.new_zeros(batch.num_tokens).index_copy(0, inputs.trained.flip(0), values)",
    ),
    critic(
        "critic: bfloat16 values", "self.head.weight[0].float()", "self.head.weight[0].bfloat16().float()"
    ),
)

STEERED = (
    run(
        "steering: prompts for samples",
        "* self.recipe.schedule.samples_per_prompt,\n            )\n        masked",
        "* 1,\n            )\n        masked",
    ),
    run(
        "steering: always from the first coefficient",
        "algorithm.kl_coef,\n                measured",
        "self.algorithm.kl_coef,\n                measured",
    ),
    run(
        "steering: without effect",
        "return self.algorithm.with_kl_coef(self.state.kl_coef)",
        "return self.algorithm",
    ),
    run(
        "steering: forgotten by a resumed run",
        "if self.state.kl_coef is None:",
        "if self.state.kl_coef is None or self.state.step % 3 == 0:",
    ),
    run(
        "steering: the coefficient of the next step is reported",
        'measured["update/kl_coef"] = algorithm.kl_coef',
        'measured["update/kl_coef"] = algorithm.kl_coef * 1.02',
    ),
    run(
        "reference: reset a step early",
        "number % config.reference_reset_every == 0",
        "(number + 1) % config.reference_reset_every == 0",
    ),
    run("reference: reset at every step", "number % config.reference_reset_every == 0", "number"),
    run(
        "critic: warm-up a step short",
        "number > self.recipe.critic.pretrain_steps",
        "number >= self.recipe.critic.pretrain_steps",
    ),
    run("critic: no warm-up", "number > self.recipe.critic.pretrain_steps", "number"),
    run(
        "passes: all in the same order",
        '"minibatches", epoch, self.state.step',
        '"minibatches", 0 * epoch, self.state.step',
    ),
)

BUGS = (*CARRIED, *KEPT, *STEERED)
