"""The table and the gates, on rows made by hand."""

import random
from statistics import mean

import pytest
import torch

from rlhf.vision.bench_table import (
    COLUMNS,
    Row,
    difference,
    gates,
    lines,
    lost,
    ranked_against_pairs,
    spread_over_seeds,
    stacked,
)
from tests.unit.vision.benches import bench

ABILITIES = {"precision": 0.75, "zero_shot": 0.5, "recall_10": 0.875}
SPREAD = torch.tensor([-0.25, 0.25, -0.125, 0.125])
"""Of four queries around their mean."""


def row(name: str, taste: float, *, seeds: int = 2, kind: str = "trained", **abilities: float) -> Row:
    """Every query of every seed near the mean."""
    values = ABILITIES | abilities
    measures = {key: torch.full((seeds, 4), value) for key, value in values.items()}
    return Row(name=name, kind=kind, measures={"taste": taste + SPREAD.expand(seeds, 4)} | measures)


def test_difference_is_query_by_query_over_the_mean_of_seeds():
    draw = random.Random(0)
    values = {
        name: [[draw.gauss(centre, 1) for _ in range(50)] for _ in range(seeds)]
        for name, centre, seeds in (("a", 6.0, 3), ("b", 5.0, 1))
    }
    one, other = (Row(name=n, kind="trained", measures={"taste": torch.tensor(v)}) for n, v in values.items())
    per_query = [
        mean(of_seed[query] for of_seed in values["a"]) - mean(of_seed[query] for of_seed in values["b"])
        for query in range(50)
    ]
    drawn = sorted(mean(draw.choices(per_query, k=50)) for _ in range(4000))
    found, low, high = difference(one, other)
    assert found == pytest.approx(mean(per_query), abs=1e-5)
    assert (low, high) == pytest.approx((drawn[100], drawn[3899]), abs=0.04)
    assert difference(other, one)[0] == pytest.approx(-found)


def test_difference_of_rows_that_vary_alike_is_certain():
    found = difference(row("a", 5.5), row("b", 5.0, seeds=1))
    assert found == pytest.approx((0.5, 0.5, 0.5))
    assert difference(row("a", 1, recall_10=0.5), row("b", 1), "recall_10") == pytest.approx((-0.375,) * 3)


def test_what_fell_more_than_allowed_is_lost_and_said_with_by_how_much():
    config = bench(retention={"precision": 0.125, "zero_shot": 0.125, "recall_10": 0.125})
    base = row("pre-trained", 5.0)
    assert lost(row("a", 9.0), base, config) == []
    assert lost(row("a", 5.0, precision=0.625, zero_shot=0.9), base, config) == []
    assert lost(row("a", 5.0, precision=0.5, recall_10=0.0), base, config) == [
        "precision -0.250 (allowed 0.125)",
        "recall_10 -0.875 (allowed 0.125)",
    ]


def every_row() -> dict[str, Row]:
    """Rows with which all gates of the default configuration pass."""
    untrained = {
        "pre-trained": row("pre-trained", 5.0, seeds=1, kind="untrained"),
        "cascade 6": row("cascade 6", 9.0, seeds=1, kind="untrained"),
        "cascade 12": row("cascade 12", 6.5, seeds=1, kind="untrained"),
    }
    rows = {
        "rp_pl": row("rp_pl", 6.5),
        "sft": row("sft", 5.5),
        "no_replay": row("no_replay", 7, zero_shot=0.25),
    }
    single = {name: row(name, 5.5, kind="control") for name in ("judge_only", "rephraser_only")}
    return untrained | rows | single | {"no_teacher": row("no_teacher", 5.0, kind="control")}


NAMES = (
    "rp_pl over pre-trained",
    "rp_pl over sft",
    "rp_pl over cascade 12, in one pass",
    "retention held",
    "without replay retention is lost",
    "no teacher, no taste",
    "rp_pl over judge_only, both teachers over one",
    "rp_pl over rephraser_only, both teachers over one",
)


def test_all_gates_pass_where_all_is_well():
    found = gates(every_row(), bench())
    assert tuple(gate.name for gate in found) == NAMES
    assert all(gate.passed for gate in found)
    told = {gate.name: (gate.demand, gate.found) for gate in found}
    assert told["rp_pl over pre-trained"] == ("taste +1 or more", "+1.50 [+1.50, +1.50]")
    assert told["rp_pl over cascade 12, in one pass"] == ("taste -0.1 or more", "+0.00 [+0.00, +0.00]")
    assert told["retention held"] == ("rp_pl", "all")
    assert told["no teacher, no taste"] == ("|taste moved| < 0.3", "+0.00 [+0.00, +0.00]")


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        (row("pre-trained", 5.625, seeds=1), ["rp_pl over pre-trained", "no teacher, no taste"]),
        (row("sft", 6.25), ["rp_pl over sft"]),
        (row("cascade 12", 6.75, seeds=1), ["rp_pl over cascade 12, in one pass"]),
        (row("rp_pl", 6.5, recall_10=0.5), ["retention held"]),
        (row("no_replay", 7.0), ["without replay retention is lost"]),
        (row("no_teacher", 5.5), ["no teacher, no taste"]),
        (row("no_teacher", 4.5), ["no teacher, no taste"]),
        (row("judge_only", 6.75), ["rp_pl over judge_only, both teachers over one"]),
        (row("rephraser_only", 6.75), ["rp_pl over rephraser_only, both teachers over one"]),
    ],
)
def test_each_gate_is_missed_by_itself(changed, missed):
    found = gates(every_row() | {changed.name: changed}, bench())
    assert [gate.name for gate in found if not gate.passed] == missed


def test_gate_is_passed_at_its_margin():
    config = bench(
        gates={"over_pretrained": 1.5, "over_sft": 1.0, "under_cascade": 0.0, "over_each_teacher": 1.0}
    )
    assert all(gate.passed for gate in gates(every_row(), config))
    above = bench(
        gates={"over_pretrained": 1.625, "over_sft": 1.125, "under_cascade": -0.125, "over_each_teacher": 2}
    )
    assert [gate.passed for gate in gates(every_row(), above)] == [False] * 3 + [True] * 3 + [False] * 2


def test_gate_of_a_row_that_was_not_run_is_not_asked():
    few = {name: found for name, found in every_row().items() if name in ("pre-trained", "rp_pl")}
    found = gates(few, bench(cascade=[], controls=[]))
    assert [gate.name for gate in found] == ["rp_pl over pre-trained", "retention held"]


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [
        ([0.25, 0.5, 0.25, 0.5], "ahead of"),
        ([-0.25, -0.5, -0.25, -0.5], "behind"),
        ([1.0, -1.0, 1.0, -0.75], "not told apart from"),
        ([0.0, 0.0, 0.0, 0.0], "not told apart from"),
    ],
)
def test_ranked_lists_are_ahead_of_pairs_exactly_where_the_interval_says_so(ahead, verdict):
    pair = row("dpo", 5.0)
    ranked = Row(
        name="rp_pl", kind="trained", measures={"taste": pair.measures["taste"] + torch.tensor(ahead)}
    )
    (said,) = ranked_against_pairs({"rp_pl": ranked, "dpo": pair, "sft": row("sft", 9.0)})
    low, high = difference(ranked, pair)[1:]
    assert said.startswith(f"rp_pl is {verdict} dpo: taste ")
    assert f"[{low:+.2f}, {high:+.2f}]" in said
    assert (verdict == "ahead of") == (low > 0)
    assert (verdict == "behind") == (high < 0)


def test_every_ranked_loss_is_compared_with_every_pair_loss():
    rows = {name: row(name, 5.0) for name in ("dpo", "ipo", "rp_dpo", "rp_pl", "sft_list", "grpo")}
    said = [line.split(":")[0] for line in ranked_against_pairs(rows)]
    assert said == [
        f"{ranked} is not told apart from {pair}" for ranked in ("rp_dpo", "rp_pl") for pair in ("dpo", "ipo")
    ]


def test_lines_have_every_column_and_an_equals_sign_for_what_was_not_measured():
    trained = Row(
        name="rp_pl",
        kind="trained",
        measures={name: torch.full((2, 4), 0.5) for name in COLUMNS},
        query_ms="1.25",
        cpu_s=61.4,
        verdicts=(0.5, 0.25, 0.25),
        settings="lr 0.001",
    )
    cascade = Row(
        name="cascade 6",
        kind="untrained",
        measures={"taste": torch.tensor([[1.0, 3.0]]), "precision": torch.tensor([[0.0, 1.0]])},
        query_ms="1.30 (9.00 live)",
        calls="6 scores",
    )
    first, second = lines([trained, cascade])
    columns = ["row", *COLUMNS, "w/s/l", "query ms", "calls", "CPU s", "settings"]
    assert list(first) == list(second) == columns
    assert first == {
        **dict.fromkeys(COLUMNS, "0.500"), "row": "rp_pl", "taste": "0.50 [0.50, 0.50]", "w/s/l": "0.50/0.25/0.25",
        "query ms": "1.25", "calls": "0", "CPU s": "61", "settings": "lr 0.001",
    }  # fmt: skip
    assert second == {
        **dict.fromkeys(COLUMNS, "="), "row": "cascade 6", "taste": "2.00 [1.00, 3.00]", "precision": "0.500",
        "w/s/l": "-", "query ms": "1.30 (9.00 live)", "calls": "6 scores", "CPU s": "-", "settings": "",
    }  # fmt: skip


def test_measures_of_seeds_are_stacked_and_their_spread_is_over_the_means():
    found = stacked([{"taste": [1.0, 3.0]}, {"taste": [4.0, 4.0]}])
    assert found["taste"].tolist() == [[1, 3], [4, 4]]
    two = Row(name="a", kind="trained", measures=found)
    assert (two.mean("taste"), two.interval("taste")) == (3.0, (2.5, 3.5))
    assert spread_over_seeds(two, "taste") == pytest.approx(2**0.5)
    assert (
        spread_over_seeds(Row(name="a", kind="trained", measures=stacked([{"taste": [1.0]}])), "taste") == 0
    )
