"""What a finished pipeline shows: one table of scores, curves, times."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rlhf.pipeline.report import write_pipeline_report
from rlhf.pipeline.summary import (
    closing_tables,
    curves_of,
    finished_stages,
    preferences_of,
    scores_of,
    times_line,
)
from tests.unit.pipeline import fake_stages
from tests.unit.pipeline.fake_stages import run_here, write_pipeline


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished pipeline whose stages left what real ones leave."""
    monkeypatch.setattr(fake_stages, "PAUSE_S", 0.0)
    pipeline = run_here(write_pipeline(tmp_path))
    run = tmp_path / "run"
    where = {stage: run / place for stage, place in pipeline.manifest.present.items()}
    figures = {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "problems": 8}}
    figures["pass@4"] = {"value": 0.75, "low": 0.5, "high": 0.9, "problems": 8}
    sets = {"sums": {"figures": figures}}
    models = {"Dev1": {"sets": sets}, "Dev<2>": {"sets": sets}}
    (where["scores"] / "eval.json").write_text(json.dumps({"name": "x", "models": models}))
    lines = [{"step": step, "rollout/reward_mean": step / 4, "eval/accuracy": None} for step in range(4)]
    (where["rl"] / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    curve = [{"step": step, "num_steps": 2, "loss": 2.0 / step} for step in (1, 2)]
    (where["final"] / "model" / "sft_metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in curve)
    )
    return run


def test_scores_stand_in_one_table_by_model_with_their_intervals(folder):
    scores = scores_of(finished_stages(folder))
    assert list(scores) == ["Dev1", "Dev<2>"]
    assert str(scores["Dev1"]["sums accuracy"]) == "0.500 [0.250, 0.750]"
    (table,) = closing_tables(finished_stages(folder))
    assert [column.header for column in table.columns] == ["model", "sums accuracy"]


def test_two_evaluations_of_one_model_on_one_set_both_stand_in_the_table(folder):
    stages = finished_stages(folder)
    again = next(replace(stage, name="greedy") for stage in stages if stage.name == "scores")
    row = scores_of([*stages, again])["Dev1"]
    assert list(row) == ["sums accuracy", "sums pass@4", "greedy: sums accuracy", "greedy: sums pass@4"]


def test_stages_that_learned_from_pairs_tell_accuracy_and_lengths(folder):
    def with_result(is_biased):
        found = {"length/longer_wins": 0.75, "length/is_biased": is_biased}
        for when, value in (("before", 0.5), ("after", 0.875)):
            name = f"preference/accuracy_{when}"
            found |= {name: value, f"{name}_low": value - 0.125, f"{name}_high": value + 0.125}
        return found

    stages = finished_stages(folder)
    for name, is_biased in (("final", 1.0), ("student", 0.0)):
        index = next(i for i, stage in enumerate(stages) if stage.name == name)
        result = replace(stages[index].result, metrics=with_result(is_biased))
        stages[index] = replace(stages[index], result=result)
    rows = preferences_of(stages)
    assert list(rows) == ["final", "student"]
    assert rows["final"]["accuracy before"] == "0.500 [0.375, 0.625]"
    assert rows["final"]["accuracy after"] == "0.875 [0.750, 1.000]"
    assert [row["lengths"] for row in rows.values()] == ["biased", "not biased"]
    assert [len(table.columns) for table in closing_tables(stages)] == [2, 5]


def test_curves_are_those_of_the_kind(folder):
    found = {
        stage.name: {curve.title: curve.points for curve in curves_of(stage)}
        for stage in finished_stages(folder)
    }
    assert found["rl"] == {"reward": ((0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75))}
    assert found["final"] == {"loss": ((1, 2.0), (2, 1.0))}
    assert found["reject"] == {}


def test_page_is_whole_and_escapes_names(folder):
    page = write_pipeline_report(folder).read_text()
    open_elements: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "polyline"):
                open_elements.append(tag)

        def handle_endtag(self, tag):
            if tag != "polyline":
                assert open_elements.pop() == tag

    Balance().feed(page)
    assert not open_elements
    assert "Dev&lt;2&gt;" in page
    assert "Dev<2>" not in page
    assert page.count("<polyline") == 2
    assert "6 of 6 stages done" in page
    assert "http" not in page.replace("http-equiv", "")


def test_times_are_told_of_every_finished_stage(folder):
    assert times_line(finished_stages(folder)).count(" 0 s") == 6
