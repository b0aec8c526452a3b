"""Reward model, ranked lists and grids."""

from functools import partial

from tests.mutations.mutation import Mutation

plant = partial(Mutation, file="rlhf/algorithms/ranking.py", tests=("tests/unit/algorithms/test_ranking.py",))

BUGS = (
    plant(
        "Bradley-Terry: margin's sign",
        "-logsigmoid(chosen - rejected - margin)",
        "-logsigmoid(chosen - rejected + margin)",
    ),
    plant(
        "Bradley-Terry: no margin",
        "-logsigmoid(chosen - rejected - margin)",
        "-logsigmoid(chosen - rejected)",
    ),
    plant(
        "Bradley-Terry: swapped",
        "-logsigmoid(chosen - rejected - margin)",
        "-logsigmoid(rejected - chosen - margin)",
    ),
    plant(
        "Bradley-Terry: log of 1 + exp",
        "-logsigmoid(chosen - rejected - margin)",
        "torch.log(1 + torch.exp(rejected - chosen + margin))",
    ),
    plant(
        "Bradley-Terry: centres the difference",
        "centre_coef * (chosen + rejected).square()",
        "centre_coef * (chosen - rejected).square()",
    ),
    plant(
        "Bradley-Terry: centres without a square",
        "centre_coef * (chosen + rejected).square()",
        "centre_coef * (chosen + rejected)",
    ),
    plant("Bradley-Terry: no centring", "+ centre_coef * (chosen + rejected).square()", "+ 0.0"),
    plant("Bradley-Terry in bfloat16", "if chosen.dtype not in (torch.float32, torch.float64):", "if False:"),
    plant(
        "Plackett-Luce: sign", "torch.logsumexp(rest, 2) - utilities", "utilities - torch.logsumexp(rest, 2)"
    ),
    plant(
        "Plackett-Luce: rivals are all items",
        "~(later & kept[:, None, :])",
        "~kept[:, None, :].expand(-1, n, -1)",
    ),
    plant(
        "Plackett-Luce: rivals are those before", "device=kept.device).triu()", "device=kept.device).tril()"
    ),
    plant(
        "Plackett-Luce: the item is not its own rival",
        "device=kept.device).triu()",
        "device=kept.device).triu(1)",
    ),
    plant(
        "Plackett-Luce: absent items are rivals",
        "~(later & kept[:, None, :])",
        "~(later | ~kept[:, None, :])",
    ),
    plant(
        "Plackett-Luce: one place too many",
        "(num_items - 1).clamp(max=top)",
        "(num_items - 1).clamp(max=top + 1)",
    ),
    plant(
        "Plackett-Luce: top ignored",
        "places = num_items - 1 if top is None else (num_items - 1).clamp(max=top)",
        "places = num_items - 1",
    ),
    plant(
        "Plackett-Luce: top counts columns",
        "kept & (kept.cumsum(1) <= places)",
        "kept & (torch.ones_like(kept).cumsum(1) <= places)",
    ),
    plant(
        "Plackett-Luce: without the first place",
        "kept & (kept.cumsum(1) <= places)",
        "kept & (kept.cumsum(1) <= places) & (kept.cumsum(1) > 1)",
    ),
    plant(
        "Plackett-Luce: the mean counts the last place",
        'losses = terms.sum(1) if reduction == "sum" else terms.sum(1) / number.clamp(min=1)',
        'losses = terms.sum(1) if reduction == "sum" else terms.sum(1) / (number + 1)',
    ),
    plant(
        "Plackett-Luce: mean for sum",
        'losses = terms.sum(1) if reduction == "sum" else terms.sum(1) / number.clamp(min=1)',
        "losses = terms.sum(1) / number.clamp(min=1)",
    ),
    plant(
        "Plackett-Luce: accuracy counts ties",
        "utilities.detach() > rivals.amax(2)",
        "utilities.detach() >= rivals.amax(2)",
    ),
    plant(
        "Plackett-Luce: where after log-sum-exp",
        "masked_fill(~(later & kept[:, None, :]), -torch.inf)",
        "masked_fill(~later, -torch.inf) + torch.where(kept[:, None, :], 0.0, -torch.inf)",
    ),
    plant(
        "Plackett-Luce: the last place is a choice",
        "places = num_items - 1 if top is None else (num_items - 1).clamp(max=top)",
        "places = num_items if top is None else num_items.clamp(max=top)",
    ),
    plant(
        "partial DPO: swapped",
        "margin = clean[:, index[:, 0]] - clean[:, index[:, 1]]",
        "margin = clean[:, index[:, 1]] - clean[:, index[:, 0]]",
    ),
    plant(
        "partial DPO: no label smoothing",
        "terms = smoothed_preference(margin, label_smoothing)",
        "terms = smoothed_preference(margin, 0.0)",
    ),
    plant(
        "partial DPO: sum for mean",
        "torch.zeros_like(terms)).sum(1) / number,",
        "torch.zeros_like(terms)).sum(1),",
    ),
    plant(
        "partial DPO: mean over pairs with absent items",
        "number = valid.sum(1).clamp(min=1)",
        "number = valid.sum(1).clamp(min=valid.shape[1])",
    ),
    plant(
        "partial DPO: one item is enough",
        "kept[:, index[:, 0]] & kept[:, index[:, 1]]",
        "kept[:, index[:, 0]] | kept[:, index[:, 1]]",
    ),
    plant(
        "partial DPO: absent items are read",
        "clean = torch.where(kept, utilities, torch.zeros_like(utilities))",
        "clean = utilities",
    ),
    plant("partial DPO: accuracy counts ties", "(margin.detach() > 0)", "(margin.detach() >= 0)"),
    plant("partial DPO: detached losers", "- clean[:, index[:, 1]]", "- clean[:, index[:, 1]].detach()"),
    plant(
        "partial PL: sum along a chain",
        'present=kept[:, index], reduction="mean"',
        'present=kept[:, index], reduction="sum"',
    ),
    plant(
        "partial PL: mean over every chain",
        "losses=torch.stack(losses).sum(0) / number.clamp(min=1)",
        "losses=torch.stack(losses).mean(0)",
    ),
    plant(
        "partial PL: the last chain only",
        "losses=torch.stack(losses).sum(0) / number.clamp(min=1)",
        "losses=losses[-1]",
    ),
    plant(
        "partial PL: worst first",
        "along = plackett_luce(utilities[:, index], present=kept[:, index]",
        "along = plackett_luce(utilities[:, index.flip(0)], present=kept[:, index.flip(0)]",
    ),
    plant(
        "partial PL: presence of other columns",
        "present=kept[:, index], reduction",
        "present=kept[:, : len(chain)], reduction",
    ),
    plant("grid: rows only", "if (i == k or j == m if closure", "if (i == k if closure"),
    plant(
        "grid: the closure has every pair",
        'if (i == k or j == m if closure == "rows_columns" else j <= m)',
        'if (i == k or j == m if closure == "rows_columns" else True)',
    ),
    plant(
        "grid: the closure is strict",
        'closure == "rows_columns" else j <= m)',
        'closure == "rows_columns" else j < m)',
    ),
    plant(
        "grid: losers win",
        "(i * num_columns + j, k * num_columns + m)",
        "(k * num_columns + m, i * num_columns + j)",
    ),
    plant(
        "grid: columns by the number of rows",
        "(i * num_columns + j, k * num_columns + m)",
        "(i * num_rows + j, k * num_rows + m)",
    ),
    plant(
        "grid chains: rows only",
        "(*rows, *zip(*rows, strict=True)) if len(chain) > 1",
        "rows if len(chain) > 1",
    ),
    plant("grid chains: single items", "if len(chain) > 1]", "if len(chain) > 0]"),
    plant(
        "pairs: a circle is allowed", "TopologicalSorter(graph).prepare()", "TopologicalSorter({}).prepare()"
    ),
    plant("pairs: twice is allowed", "if len(set(pairs)) < len(pairs):", "if False:"),
    plant(
        "pairs: columns from the end",
        "all(0 <= item < num_items for item in pair)",
        "all(item < num_items for item in pair)",
    ),
)
