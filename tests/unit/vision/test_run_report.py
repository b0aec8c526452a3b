"""The report of an alignment run, from a run folder that was made by hand."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf.telemetry.live import clock
from rlhf.vision.orders import ordered_places, read_orders, write_orders
from rlhf.vision.pictures import Pictures
from rlhf.vision.run_report import write_alignment_report
from tests.retrievers import Squares
from tests.unit.vision.made_runs import (
    IDS,
    evaluated,
    evaluation,
    metrics_of_a_run,
    write_alignment_run,
    write_evaluation,
    write_metrics,
)
from tests.unit.vision.recipes import orders

FIGURE = re.compile(r"<figure title='([^']*)'>(<img|<code>).*?<figcaption>(.*?)</figcaption></figure>")
ATTACK = "</script><script>alert(1)</script><img src=x onerror='alert(\"1\")'> &amp;"


class Balance(HTMLParser):
    """Every element that is opened is closed, and which there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole(page: str) -> str:
    """The page, whose elements must fit."""
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "script" not in balance.seen
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg"}
    return page


def between(page: str, start: str, stop: str) -> str:
    return page.partition(start)[2].partition(stop)[0]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_alignment_run(tmp_path / "run")


def test_report_shows_first_images_before_and_after_with_what_judges_say(run_dir):
    page = whole(write_alignment_report(run_dir).read_text())
    grids = between(page, "<h2>Held-out queries, before and after</h2>", "<h2>")
    assert re.findall(r"<h3>(.*?)</h3>", grids) == ["a red square", "a blue square"]
    strips = re.findall(r"<div class=label>(\w+)</div><div class=row>(.*?)</div>", grids)
    assert [name for name, _ in strips] == ["before", "after"] * 2
    for place, (name, strip) in enumerate(strips):
        row = evaluated(0 if name == "before" else 4)["rows"][place // 2]
        assert FIGURE.findall(strip) == [
            (image, "<img", f"brightness {score:.2f}<br>taste {taste:.2f}")
            for image, score, taste in zip(
                row["items"][:5], row["judges"]["brightness"], row["taste"], strict=False
            )
        ]


def test_report_has_charts_and_numbers_of_taste_and_retention(run_dir):
    page = write_alignment_report(run_dir).read_text()
    measured = between(page, "<h2>Taste and retention</h2>", "<h2>")
    assert measured.count("<svg") == 2
    assert measured.count("<polygon") == 1
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", measured)]
    assert re.findall(r"<th>(.*?)</th>", measured) == ["", "step 0", "step 4", "change"]
    assert ["taste", "0.250", "0.500", "+0.250"] in cells
    assert ["precision", "0.750", "0.625", "-0.125"] in cells
    assert ["judge/brightness", "100.000", "104.000", "+4.000"] in cells
    assert between(page, "<h2>Training</h2>", "<details>").count("<svg") == 4
    assert f"<p>Step 4; steps took {clock(120)}.</p>" in page


@pytest.mark.parametrize("tied", [(), (0,)])
def test_report_shows_the_newest_list_with_pictures_and_its_pairs_the_better_first(run_dir, tied):
    lists = orders(1, seed=3, tied=tied)
    write_orders(run_dir / "orders" / "step-000003.jsonl", lists)
    page = write_alignment_report(run_dir).read_text()
    assert "<h2>What was preferred, step 3</h2>" in page
    shown = between(page, "<h2>What was preferred, step 3</h2>", "<h2>")
    grid, _, pairs = shown.partition("pairs, the better one first</h3>")
    (order,) = lists
    assert [name for name, _, _ in FIGURE.findall(grid)] == list(order.items)
    first = f"semantic {order.teacher['semantic'][0]:.2f}<br>taste {order.teacher['taste'][0]:.2f}"
    assert FIGURE.findall(grid)[0] == (order.items[0], "<img", first)
    found = [
        tuple(order.items.index(name) for name, _, _ in FIGURE.findall(pair))
        for pair in pairs.split("<div class='row versus'>")[1:]
    ]
    known = order.pairs or tuple(ordered_places(2, 3))
    assert set(found) <= set(known)
    assert len(set(found)) == len(found) == min(6, len(known))
    assert f"{len(found)} of its {len(known)} pairs" in shown


def test_report_leaves_out_lists_whose_pictures_were_not_kept(run_dir):
    for step in (1, 3):
        (run_dir / "orders" / f"step-{step:06d}.jsonl").unlink()
    order = read_orders(run_dir / "orders" / "step-000004.jsonl")[0]
    assert not all(Pictures(run_dir / "pictures").uri(name) for name in order.items)
    assert "What was preferred" not in write_alignment_report(run_dir).read_text()


def test_report_does_not_take_lists_of_another_name_for_those_of_a_step(run_dir):
    write_orders(run_dir / "orders" / "whole.jsonl", orders(1))
    assert "What was preferred, step 3" in write_alignment_report(run_dir).read_text()


def test_report_shows_the_alarm(run_dir):
    assert "class=bad" not in write_alignment_report(run_dir).read_text()
    lines = metrics_of_a_run()
    lines[2][1]["eval/hacking_alarm"] = lines[4][1]["eval/hacking_alarm"] = 1.0
    write_metrics(run_dir, lines)
    warned = between(write_alignment_report(run_dir).read_text(), "<p class=bad>", "</p>")
    assert warned.startswith("Step 2, 4: the judges' score has risen")


def test_report_escapes_text_that_looks_like_html(run_dir):
    spoiled = evaluated(4, queries=(ATTACK,))
    spoiled["rows"][0]["items"][0] = ATTACK
    spoiled["rows"][0]["judges"] = {ATTACK: [1.0] * 6}
    for step in (0, 2, 4):
        write_evaluation(run_dir, step, spoiled)
    raw = json.loads((run_dir / "orders" / "step-000003.jsonl").read_text().splitlines()[0])
    raw |= {"query": ATTACK, "items": [ATTACK, *raw["items"][1:]], "teacher": {ATTACK: [0.0] * 6}}
    (run_dir / "orders" / "step-000003.jsonl").write_text(json.dumps(raw) + "\n")
    (run_dir / "config.yaml").write_text(f"name: {ATTACK}\n")
    Pictures(run_dir / "pictures").keep(Renamed(), [ATTACK])
    page = whole(write_alignment_report(run_dir).read_text())
    assert "onerror=&#x27;" in page
    assert page.count("&lt;/script&gt;") >= 8


class Renamed(Squares):
    """A square by any name."""

    def load(self, ids):
        return super().load([IDS[0] for _ in ids])


def test_report_names_images_that_were_not_kept(run_dir):
    kept = Pictures(run_dir / "pictures")
    write_evaluation(run_dir, 4, evaluated(30))
    figures = FIGURE.findall(write_alignment_report(run_dir).read_text())
    assert {drawn for _, drawn, _ in figures} == {"<img", "<code>"}
    assert all((drawn == "<img") == (kept.uri(name) is not None) for name, drawn, _ in figures)


def test_report_of_an_empty_run_folder_says_so(tmp_path):
    page = whole(write_alignment_report(tmp_path).read_text())
    assert "Nothing was logged yet." in page
    assert "<h2>" not in page


def test_report_of_a_run_without_truth_shows_the_judges(tmp_path):
    unseen = ("eval/taste", "eval/taste_low", "eval/taste_high", "eval/ndcg")
    lines = [(s, {n: v for n, v in m.items() if n not in unseen}) for s, m in metrics_of_a_run()]
    write_metrics(tmp_path, lines)
    page = whole(write_alignment_report(tmp_path).read_text())
    assert "<td>judge_score</td>" in page
    assert "<td>taste</td>" not in page
    assert "<polygon" not in page


def test_report_of_a_run_whose_evaluation_changed_shows_what_both_have(run_dir):
    lines = metrics_of_a_run()
    for name in ("eval/zero_shot", "eval/taste_low", "eval/taste_high", "eval/ndcg"):
        del lines[4][1][name]
    lines[2][1]["eval/precision"] = float("nan")
    write_metrics(run_dir, lines)
    write_evaluation(run_dir, 4, evaluated(4, queries=("green", "blue", "yellow")))
    page = whole(write_alignment_report(run_dir).read_text())
    assert re.findall(r"<h3>(a .*?)</h3>", page) == ["a blue square"]
    assert "<td>zero_shot</td>" not in page
    assert "<td>precision</td><td>0.750</td><td>0.625</td>" in page
    assert "<polygon" not in page


def test_report_of_a_run_that_stopped_after_its_first_evaluation(tmp_path):
    write_metrics(tmp_path, [(0, evaluation(0))])
    write_evaluation(tmp_path, 0, evaluated(0))
    page = whole(write_alignment_report(tmp_path).read_text())
    assert "<h2>Training</h2>" not in page
    assert page.count("<div class=label>before</div>") == page.count("<div class=label>after</div>") == 2
