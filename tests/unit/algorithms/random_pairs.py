"""Random pairs in float64, some rows empty."""

from dataclasses import replace

import torch

from rlhf.algorithms.pairs import Pairs, Rows
from tests.unit.algorithms.ragged import garbage


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make(chosen, rejected, *, counts=None, refs=None, z=0.4) -> Pairs:
    """Pairs of leaf sums."""
    p = len(chosen)
    counts = ([3] * p, [5] * p) if counts is None else counts
    refs = ([0.0] * p, [0.0] * p) if refs is None else refs
    sides = [
        Rows(sums=f64(*s).requires_grad_(), counts=torch.tensor(c, dtype=torch.int64), ref_sums=f64(*r))
        for s, c, r in zip((chosen, rejected), counts, refs, strict=True)
    ]
    return Pairs(chosen=sides[0], rejected=sides[1], baseline=torch.tensor(z, dtype=torch.float64))


def random_pairs(seed: int, *, num_pairs: int = 7, scale: float = 1.0) -> Pairs:
    """Ragged; some rows are empty."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (2, num_pairs), generator=g)
    means = -4 * torch.rand(2, num_pairs, generator=g, dtype=torch.float64)
    sums = means * counts
    moved = sums + scale * torch.randn(2, num_pairs, generator=g, dtype=torch.float64)
    refs = torch.where(counts > 0, moved, 0)
    return make(
        *sums.tolist(), counts=counts.tolist(), refs=refs.tolist(), z=float(torch.rand((), generator=g))
    )


def leaves(pairs: Pairs) -> Pairs:
    sides = [
        replace(rows, sums=rows.sums.detach().clone().requires_grad_())
        for rows in (pairs.chosen, pairs.rejected)
    ]
    return replace(pairs, chosen=sides[0], rejected=sides[1])


def soiled(rows: Rows) -> Rows:
    full, bad = rows.counts > 0, garbage(rows.sums)
    return replace(
        rows, sums=torch.where(full, rows.sums, bad), ref_sums=torch.where(full, rows.ref_sums, bad)
    )
