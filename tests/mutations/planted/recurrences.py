"""Reward-to-go, GAE and the critic's returns."""

from functools import partial

from tests.mutations.mutation import Mutation

gae = partial(
    Mutation,
    file="rlhf/algorithms/gae.py",
    tests=("tests/unit/algorithms/test_gae.py", "tests/unit/algorithms/test_estimators.py"),
)

BUGS = (
    gae("reinforce: gamma forgotten", "torch.full_like(rewards, gamma)", "torch.full_like(rewards, 1.0)"),
    gae("reinforce: gamma squared", "torch.full_like(rewards, gamma)", "torch.full_like(rewards, gamma**2)"),
    gae(
        "reinforce: the sum on every token",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory)[\n"
        "            torch.searchsorted(sequence.trajectory, sequence.trajectory)\n"
        "        ], batch",
    ),
    gae(
        "reinforce: what was rewarded before",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch",
        "discounted_sums(\n"
        "            rewards.flip(0), decay=decay, trajectory=sequence.trajectory.max().clone() - "
        "sequence.trajectory.flip(0)\n"
        "        ).flip(0) if rewards.numel() else rewards, batch",
    ),
    gae(
        "reinforce: only what comes after",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory), batch",
        "discounted_sums(rewards, decay=decay, trajectory=sequence.trajectory) - rewards, batch",
    ),
    gae("gae: lambda without gamma", "decay=gamma * factor", "decay=factor"),
    gae("gae: gamma without lambda", "decay=gamma * factor", "decay=gamma + 0 * factor"),
    gae("gae: gamma for lambda", "torch.full_like(errors, lam)", "torch.full_like(errors, gamma)"),
    gae("gae: lambda of 1", "torch.full_like(errors, lam)", "torch.full_like(errors, 1.0)"),
    gae(
        "gae: errors for sums",
        "sums = discounted_sums(errors,",
        "sums = 1 * errors if lam < 1 else discounted_sums(errors,",
    ),
    gae("gae: no length-adaptive lambda", "if length_alpha is not None:", "if False:"),
    gae(
        "gae: length-adaptive lambda by tokens of the row",
        "torch.bincount(sequence.trajectory)[sequence.trajectory]",
        "batch.row_sampled()[batch.segment_ids[sequence.places]]",
    ),
    gae(
        "gae: length-adaptive lambda by the longest",
        "torch.bincount(sequence.trajectory)[sequence.trajectory]",
        "torch.bincount(sequence.trajectory).amax(0, keepdim=True).expand_as(errors) if errors.numel() else errors",
    ),
    gae(
        "gae: length-adaptive lambda by the tokens ahead",
        "torch.bincount(sequence.trajectory)[sequence.trajectory]",
        "discounted_sums(torch.ones_like(errors), decay=torch.ones_like(errors), trajectory=sequence.trajectory)",
    ),
    gae(
        "gae: length-adaptive lambda upside down",
        "1 / (length_alpha * lengths.double())",
        "length_alpha / lengths.double()",
    ),
    gae(
        "gae: length-adaptive lambda without the 1",
        "(1 - 1 / (length_alpha * lengths.double()))",
        "(1 / (length_alpha * lengths.double()))",
    ),
    gae(
        "gae: length-adaptive lambda below 0",
        "(1 - 1 / (length_alpha * lengths.double())).clamp(min=0)",
        "(1 - 1 / (length_alpha * lengths.double()))",
    ),
    gae(
        "gae: bootstrapped although it ended",
        "torch.where(batch.truncated[rows], batch.last_values.detach()[rows].double(), 0)",
        "batch.last_values.detach()[rows].double().nan_to_num()",
    ),
    gae(
        "gae: bootstrapped where it ended only",
        "torch.where(batch.truncated[rows],",
        "torch.where(~batch.truncated[rows],",
    ),
    gae(
        "gae: truncated rows are not bootstrapped",
        "if bootstrap_truncated:\n        if",
        "if False:\n        if",
    ),
    gae(
        "gae: bootstrapped from the value of the last token",
        "torch.where(batch.truncated[rows], batch.last_values.detach()[rows].double(), 0)",
        "torch.where(batch.truncated[rows], values, 0)",
    ),
    gae(
        "gae: bootstrapped from the trajectory's first row",
        "after = torch.where(batch.truncated[rows], batch.last_values.detach()[rows].double(), 0)",
        "first = rows[torch.searchsorted(sequence.trajectory, sequence.trajectory)]\n"
        "        after = torch.where(batch.truncated[rows], batch.last_values.detach()[first].double(), 0)",
    ),
    gae(
        "gae: bootstrapped on every token",
        "ahead = torch.where(sequence.is_last, after, values.roll(-1))",
        "ahead = torch.where(sequence.is_last, 0, values.roll(-1)) + after",
    ),
    gae(
        "gae: the bootstrap is not discounted",
        "gamma * ahead - values",
        "torch.where(sequence.is_last, 1, gamma) * ahead - values",
    ),
    gae(
        "gae: bootstrap on without being asked",
        "bootstrap_truncated: bool = False,\n) -> Float",
        "bootstrap_truncated: bool = True,\n) -> Float",
    ),
    gae(
        "gae: the next trajectory's value after the last token",
        "torch.where(sequence.is_last, after, values.roll(-1))",
        "torch.where(sequence.is_last & (after != 0), after, values.roll(-1))",
    ),
    gae("gae: the value before for the value after", "values.roll(-1))", "values.roll(1))"),
    gae(
        "gae: its own value for the next",
        "torch.where(sequence.is_last, after, values.roll(-1))",
        "torch.where(sequence.is_last, after, values)",
    ),
    gae("gae: the value ahead is not discounted", "+ gamma * ahead - values", "+ ahead - values"),
    gae("gae: no value ahead", "+ gamma * ahead - values", "- values"),
    gae("gae: no baseline", "+ gamma * ahead - values", "+ gamma * ahead"),
    gae("gae: the value's sign", "+ gamma * ahead - values", "+ gamma * ahead + values"),
    gae("gae: values have a gradient", "return batch.values.detach()", "return batch.values"),
    gae("gae: last values have a gradient", "batch.last_values.detach()[rows]", "batch.last_values[rows]"),
    gae(
        "gae: default lambda of 0.95",
        "gamma: float = 1.0,\n    lam: float = 1.0,\n    length",
        "gamma: float = 1.0,\n    lam: float = 0.95,\n    length",
    ),
    gae(
        "gae: default gamma of 0.99",
        "gamma: float = 1.0,\n    lam: float = 1.0,\n    length",
        "gamma: float = 0.99,\n    lam: float = 1.0,\n    length",
    ),
    gae(
        "returns: default lambda of 0.95",
        "gamma: float = 1.0, lam: float = 1.0, bootstrap",
        "gamma: float = 1.0, lam: float = 0.95, bootstrap",
    ),
    gae(
        "returns: the critic's lambda is coupled to 1",
        "gae(batch, gamma=gamma, lam=lam, bootstrap",
        "gae(batch, gamma=gamma, bootstrap",
    ),
    gae(
        "returns: gamma forgotten",
        "gae(batch, gamma=gamma, lam=lam, bootstrap",
        "gae(batch, lam=lam, bootstrap",
    ),
    gae(
        "returns: truncated rows are not bootstrapped",
        "lam=lam, bootstrap_truncated=bootstrap_truncated)\n    values",
        "lam=lam)\n    values",
    ),
    gae(
        "returns: without the values",
        "advantages.to(values.dtype) + values, 0)",
        "advantages.to(values.dtype), 0)",
    ),
    gae(
        "returns: minus the values",
        "advantages.to(values.dtype) + values, 0)",
        "advantages.to(values.dtype) - values, 0)",
    ),
    gae(
        "returns: on prompt tokens",
        "torch.where(batch.loss_mask, advantages.to(values.dtype) + values, 0)",
        "advantages.to(values.dtype) + values",
    ),
    gae(
        "returns: ungradable trajectories teach 0",
        "torch.where(batch.loss_mask, advantages.to(values.dtype) + values, 0)",
        "torch.where(batch.loss_mask & ~torch.isnan(batch.rewards)[batch.segment_ids], advantages + values, 0)",
    ),
    gae(
        "returns: value of the token after",
        "advantages.to(values.dtype) + values, 0)",
        "advantages.to(values.dtype) + values.roll(-1), 0)",
    ),
)
