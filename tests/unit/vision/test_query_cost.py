"""What a query costs: real clocks, so only what must hold of them; what is asked is counted."""

import math
from pathlib import Path

import pytest
import torch

from rlhf.vision.query_cost import QueryCost, query_cost
from tests.retrievers import tiny_dual_encoder
from tests.unit.vision.facts import asked, facts, panel

DEPTHS = (4, 9)
QUERIES = 4
ROUNDS = 2
"""One to warm up, one that is measured."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_dual_encoder(tmp_path_factory.mktemp("model"))


def test_cost_is_positive_and_live_judges_are_asked_every_time(model: str):
    of = facts(width=64)
    judges = panel(of)
    threads = torch.get_num_threads()
    cost = query_cost(model, of, judges, DEPTHS, top_k=3)
    assert torch.get_num_threads() == threads
    assert cost.kept.keys() == cost.live.keys() == set(DEPTHS)
    figures = [cost.one_pass, *cost.kept.values(), *cost.live.values()]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    live = 2 * ROUNDS * QUERIES * sum(DEPTHS)
    # Kept: every image once, however often it is among the first.
    assert live < asked(judges) <= live + 2 * len(of.heldout.gallery.ids())


def test_kept_scores_are_not_asked_for_again(model: str):
    of = facts(width=64)
    judges = panel(of)
    judges.scores("", of.heldout.gallery.ids())
    before = asked(judges)
    query_cost(model, of, judges, DEPTHS, top_k=3)
    assert asked(judges) - before == 2 * ROUNDS * QUERIES * sum(DEPTHS)


def test_judge_that_reads_the_query_is_asked_in_both(model: str):
    of = facts(width=64)
    judges = panel(of, reads_query=True)
    query_cost(model, of, judges, DEPTHS, top_k=3)
    assert asked(judges) == 2 * 2 * ROUNDS * QUERIES * sum(DEPTHS)


def test_a_cascade_deeper_than_the_gallery_scores_all_of_it(model: str):
    of = facts(number=1, width=64)
    judges = panel(of)
    cost = query_cost(str(Path(model)), of, judges, (500,), top_k=3)
    assert asked(judges) == 2 * (ROUNDS * QUERIES + 1) * len(of.heldout.gallery.ids())
    assert cost.kept.keys() == {500}


def test_table_says_one_pass_or_kept_beside_live_scores():
    cost = QueryCost(one_pass=1.25, kept={4: 0.5}, live={4: 10.25})
    assert cost.told() == "1.25"
    assert cost.told(4) == "1.75 (11.50 live)"
