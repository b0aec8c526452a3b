"""From trajectories to log-probabilities: packing, the shift of targets, the output head; and the bundles."""

from functools import partial

from tests.mutations.mutation import Mutation

packing = partial(Mutation, file="rlhf/data/packing.py", tests=("tests/unit/data/test_packing.py",))
forward = partial(Mutation, file="rlhf/learner/forward.py", tests=("tests/unit/learner/test_forward.py",))
batch = partial(Mutation, file="rlhf/batch.py", tests=("tests/unit/test_batch.py",))

BUGS = (
    packing(
        "pack: the mask is one token late",
        "per_token(_masks(trajectories, fates), np.bool_)",
        "per_token(_masks(trajectories, fates), np.bool_).roll(1)",
    ),
    packing(
        "pack: log-probabilities are one token early",
        "per_token((s.rollout_logprobs for s in segments), np.float32)",
        "per_token((s.rollout_logprobs for s in segments), np.float32).roll(-1)",
    ),
    packing(
        "pack: an unscorable reward is 0",
        "return math.nan if value is None else value",
        "return 0.0 if value is None else value",
    ),
    packing(
        "pack: every stop is a truncation", 't.status == "truncated" for t', "t.status is not None for t"
    ),
    packing(
        "pack: every row is a trajectory",
        "trajectory_ids=per_row(range(len(trajectories)), np.int64)",
        "trajectory_ids=torch.arange(len(segments))",
    ),
    packing(
        "minibatches: by position",
        "minibatch_of_row = (place // (num_groups // num_minibatches))[group]",
        "minibatch_of_row = np.arange(len(group)) * num_minibatches // len(group)",
    ),
    packing(
        "microbatches: a row is lost",
        "for unit in members for row in units[unit]]",
        "for unit in members for row in units[unit][:2]]",
    ),
    packing(
        "microbatches: over the budget",
        "if tokens[chosen] > budget_tokens:",
        "if tokens[chosen] > 2 * budget_tokens:",
    ),
    batch(
        "a row's tokens start one early",
        "starts = torch.cumsum(lengths, 0) - lengths\n        picked",
        "starts = (torch.cumsum(lengths, 0) - lengths - 1).clamp(min=0)\n        picked",
    ),
    batch(
        "selected rows keep their old numbers",
        'changed["segment_ids"] = torch.repeat_interleave(order, self.row_lengths()[rows])',
        'changed["segment_ids"] = self.segment_ids[index]',
    ),
    batch(
        "prompt tokens count as sampled",
        "torch.bincount(self.segment_ids[self.loss_mask]",
        "torch.bincount(self.segment_ids",
    ),
    batch(
        "per-row fields of the wrong rows", "t[rows] if n in _PER_ROW", "t[: rows.numel()] if n in _PER_ROW"
    ),
    forward("log-probability of a token from itself", "packing.place[trained - 1]", "packing.place[trained]"),
    forward(
        "log-probability of the next token",
        "before, targets = packing.place[trained - 1], batch.tokens[trained]",
        "before, targets = packing.place[trained - 1], batch.tokens.roll(-1)[trained]",
    ),
    forward(
        "the first token of a row from the row before",
        "batch.loss_mask & (batch.positions > 0)",
        "batch.loss_mask & (torch.arange(batch.num_tokens) > 0)",
    ),
    forward(
        "scores by the trained token's number",
        "values.new_zeros(size).index_copy(0, index, values)",
        "torch.cat([values, values.new_zeros(size - values.numel())])",
    ),
    forward(
        "temperature forgotten", "logits if temperatures is None else logits.div_(temperatures)", "logits"
    ),
    forward(
        "temperature times",
        "logits if temperatures is None else logits.div_(temperatures)",
        "logits if temperatures is None else logits.mul_(temperatures)",
    ),
    forward(
        "temperature forgotten in the gradient",
        "(d_logits if temperatures is None else d_logits.div_(temperatures)).to(weight.dtype)",
        "d_logits.to(weight.dtype)",
    ),
    forward(
        "temperature of the wrong row",
        "batch.temperatures[batch.segment_ids[trained]]",
        "batch.temperatures[batch.segment_ids[trained - 1]].roll(1)",
    ),
    forward(
        "head: entropy of the wrong sign",
        "entropy[part] = -(log_p.exp() * log_p).sum(1)",
        "entropy[part] = (log_p.exp() * log_p).sum(1)",
    ),
    forward(
        "entropy: gradient without H",
        "gradient -= d_entropy * p * (log_p + entropy)",
        "gradient -= d_entropy * p * log_p",
    ),
    forward("entropy: gradient's sign", "gradient -= d_entropy * p", "gradient += d_entropy * p"),
    forward(
        "head: gradient without the softmax",
        "torch.zeros_like(p) if d_logprobs is None else p * -d_logprobs",
        "torch.zeros_like(p)",
    ),
    forward(
        "head: weight gradient of the last chunk only",
        "d_weight += d_logits.T @ hidden[part]",
        "d_weight = (d_logits.T @ hidden[part]).float()",
    ),
)
