"""What the bench says: one table as a frontier of taste and retention, its gates, its picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.config.alignment_bench import BenchRecipe
from rlhf.vision.measures import RETENTION, bootstrap

COLUMNS = (
    "taste",
    "precision",
    "zero_shot",
    "recall_1",
    "recall_10",
    "image_recall_1",
    "image_recall_10",
    "ndcg",
    "diversity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table."""

    name: str
    kind: str
    """`untrained`, `trained` or `control`."""
    measures: Mapping[str, Tensor]
    """[seeds, n] of each measure."""
    query_ms: str = "-"
    """What a query takes, LLM calls not counted."""
    calls: str = "0"
    """Model calls for a query beside its own embedding."""
    cpu_s: float = 0.0
    verdicts: tuple[float, float, float] | None = None
    """Shares of queries whose first images beat, equal or lose to the pre-trained model's, by the pair judge."""
    settings: str = ""
    keeps: bool = True
    """Whether the setting held retention on validation; False where none of the row's did."""

    def mean(self, name: str) -> float:
        """Over seeds and queries; NaN where it was not measured."""
        return float(self.measures[name].mean()) if name in self.measures else float("nan")

    def interval(self, name: str) -> tuple[float, float]:
        """95 %, by bootstrap over queries."""
        return bootstrap(self.measures[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One demand and what was found."""

    name: str
    demand: str
    found: str
    passed: bool


def difference(one: Row, other: Row, name: str = "taste") -> tuple[float, float, float]:
    """(mean, low, high) of one minus the other, query by query."""
    per_query = one.measures[name].mean(0) - other.measures[name].mean(0)
    low, high = bootstrap(per_query[None])
    return float(per_query.mean()), low, high


def lost(row: Row, base: Row, config: BenchRecipe) -> list[str]:
    """The abilities that fell by more than `retention` allows, with by how much."""
    allowed = config.retention.model_dump()
    found = {name: base.mean(name) - row.mean(name) for name in RETENTION}
    return [
        f"{name} -{fall:.3f} (allowed {allowed[name]:g})"
        for name, fall in found.items()
        if fall > allowed[name]
    ]


def gates(rows: Mapping[str, Row], config: BenchRecipe) -> list[Gate]:
    """What the bench demands of the recipe's own loss."""
    own, base, limits = rows[config.alignment.loss.name], rows["pre-trained"], config.gates
    found = [_over(own, base, limits.over_pretrained)]
    if "sft" in rows:
        found.append(_over(own, rows["sft"], limits.over_sft))
    deepest = f"cascade {max(config.cascade)}" if config.cascade else ""
    if deepest in rows:
        found.append(_over(own, rows[deepest], -limits.under_cascade, note=", in one pass"))
    fell = lost(own, base, config)
    found.append(
        Gate(name="retention held", demand=f"{own.name}", found="; ".join(fell) or "all", passed=not fell)
    )
    if "no_replay" in rows:
        fell = lost(rows["no_replay"], base, config)
        found.append(
            Gate(
                name="without replay retention is lost",
                demand="some ability falls",
                found="; ".join(fell) or "none fell",
                passed=bool(fell),
            )
        )
    if "no_teacher" in rows:
        moved = difference(rows["no_teacher"], base)
        found.append(
            Gate(
                name="no teacher, no taste",
                demand=f"|taste moved| < {limits.no_teacher:g}",
                found=_interval(moved),
                passed=abs(moved[0]) < limits.no_teacher,
            )
        )
    found += [
        _over(own, rows[alone], limits.over_each_teacher, note=", both teachers over one")
        for alone in ("judge_only", "rephraser_only")
        if alone in rows
    ]
    return found


def _over(one: Row, other: Row, margin: float, *, note: str = "") -> Gate:
    found = difference(one, other)
    return Gate(
        name=f"{one.name} over {other.name}{note}",
        demand=f"taste {margin:+g} or more",
        found=_interval(found),
        passed=found[0] >= margin,
    )


def _interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def ranked_against_pairs(rows: Mapping[str, Row]) -> list[str]:
    """How losses of ranked lists do against those of one pair, chosen under the same line of retention."""
    said = []
    for ranked in ("rp_dpo", "rp_pl"):
        for pair in ("dpo", "ipo"):
            if ranked not in rows or pair not in rows:
                continue
            mean, low, high = difference(rows[ranked], rows[pair])
            verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
            fell = [name for name in (ranked, pair) if not rows[name].keeps]
            where = "both at settings that held retention on validation"
            if fell:
                where = (
                    f"no setting of {' or '.join(fell)} held retention on validation: the one that lost least"
                )
            said.append(f"{ranked} is {verdict} {pair}: taste {_interval((mean, low, high))}, {where}")
    return said


def lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table, ready to be printed: a column name -> text."""
    found = []
    for row in rows:
        low, high = row.interval("taste")
        line = {"row": row.name, "taste": f"{row.mean('taste'):.2f} [{low:.2f}, {high:.2f}]"}
        line |= {name: f"{row.mean(name):.3f}" if name in row.measures else "=" for name in COLUMNS[1:]}
        verdicts = row.verdicts
        line["w/s/l"] = "-" if verdicts is None else "/".join(f"{share:.2f}" for share in verdicts)
        line |= {
            "query ms": row.query_ms,
            "calls": row.calls,
            "CPU s": f"{row.cpu_s:.0f}" if row.cpu_s else "-",
            "settings": row.settings,
        }
        found.append(line)
    return found


def spread_over_seeds(row: Row, name: str) -> float:
    """Standard deviation of the seeds' means; 0 for one seed."""
    means = row.measures[name].mean(1)
    return float(means.std()) if len(means) > 1 else 0.0


def stacked(found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Tensor]:
    """[seeds, n] of each measure."""
    return {name: torch.tensor([one[name] for one in found]) for name in found[0]}
