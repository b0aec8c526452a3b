"""`rlhf check` of a pipeline: every stage with what it has, rows of what has not run named, one report."""

import asyncio
import json

import pytest
import yaml

from rlhf.config.pipeline import load_pipeline
from rlhf.pipeline.checking import check_file
from rlhf.pipeline.opened import Pipeline
from rlhf.pipeline.result import Result, write_result
from tests.cli.command import ROOT
from tests.unit.check.checking import SUMS, use

PAIR = {"prompt": "What follows 20 - 20?", "chosen": "1", "rejected": "7"}


@pytest.fixture
def checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(**stages):
        for name, rows in (("sums", SUMS), ("taught", [{**row, "completion": "1"} for row in SUMS])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"name": "p", "models": {"base": {"path": "some/name"}}, "stages": stages}
        values["shared"] = {"task": {"template": "{prompt}", "reward_workers": 1}}
        if not any(stage["kind"] in ("reject", "rl") for stage in stages.values()):
            values["shared"] = {"task": {"template": "{prompt}"}}
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        found = tmp_path / "found.json"
        code = asyncio.run(check_file(file, [], code_dir=ROOT, json_file=found))
        return code, json.loads(found.read_text())

    return run


def sft(file, model="base", **keys):
    return {"kind": "sft", "model": model, "sft": {"source": {"file": file, **keys}}}


def reject(*rewards, model="base", **keys):
    return {
        "kind": "reject",
        "model": model,
        "task": {"train": {"file": "sums.jsonl"}, "rewards": list(rewards)},
        **keys,
    }


def lines(found, what):
    return " | ".join(found["facts"][what]["lines"])


def test_rows_of_a_stage_that_has_not_run_are_named_and_passed_over(checked):
    code, found = checked(
        rows=reject(use("right")), learn=sft("${rows.rows}"), again=reject(use("right"), model="${learn}")
    )
    assert (code, found["recipe"]) == (0, "p")
    assert lines(found, "stages.rows: golds") == "10 of 10 graded right"
    assert "${rows.rows} is not there yet" in lines(found, "stages.learn: sft.source")
    assert "as in stages.rows, task: not checked again" in lines(found, "stages.again: task")


def test_rows_without_an_answer_and_equal_pairs_are_errors_of_their_stages(checked, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(PAIR)}\n{json.dumps({**PAIR, 'chosen': '7'})}\n")
    dpo = {"kind": "dpo", "model": "${good}", "dpo": {"source": {"file": "pairs.jsonl"}}}
    code, found = checked(good=sft("taught.jsonl"), bad=sft("sums.jsonl", limit=2), dpo=dpo)
    assert code == 1
    assert lines(found, "stages.good: sft.source") == "10 demonstrations"
    assert lines(found, "stages.dpo: dpo.source") == "1 pair"
    kinds = [(finding["where"], finding["kind"]) for finding in found["findings"]]
    assert kinds == [("stages.bad", "row is no demonstration")] * 2 + [("stages.dpo", "row is no pair")]


def test_selection_is_checked_against_the_samples_where_they_are(checked, tmp_path):
    filters = [{"use": "m:f", "at_least": 1}]
    empty = {"kind": "select", "samples": str(tmp_path), "select": {"filters": filters}}
    later = {"kind": "select", "samples": "${rows.samples}", "select": {"filters": filters}}
    code, found = checked(rows=reject(use("right")), later=later, empty=empty)
    assert code == 1
    assert lines(found, "stages.later: samples") == "${rows.samples} is not there yet"
    (finding,) = found["findings"]
    assert finding["where"] == "stages.empty"
    assert "is no complete collection" in finding["reason"]


def test_stage_that_cannot_be_checked_does_not_hide_the_others(checked):
    code, found = checked(bad=sft("taught.jsonl", mapper="no.such:mapper"), good=sft("taught.jsonl"))
    assert code == 1
    assert [f["where"] for f in found["findings"]] == ["stages.bad"]
    assert lines(found, "stages.good: sft.source") == "10 demonstrations"


def test_reward_whose_service_has_no_model_yet_is_loaded_and_not_asked(checked, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    judge = {"kind": "reward_model", "model": "base", "reward_model": {"source": {"file": "pairs.jsonl"}}}
    scorer = {"use": "rewards.reward_model:ServedScorer", "kwargs": {}}
    scorer["kwargs"] = {"endpoint": {"url": "service://judge", "model": "judge"}}
    services = {"judge": {"model": "${judge}"}}
    code, found = checked(judge=judge, rows=reject(use("right"), scorer, services=services))
    assert code == 0
    assert "loaded, not asked" in lines(found, "stages.rows: reward rewards.reward_model:ServedScorer")
    assert lines(found, "stages.rows: golds") == "10 of 10 graded right"


def test_rows_of_a_stage_that_is_done_are_read(checked, tmp_path):
    stages = {"rows": reject(use("right")), "learn": sft("${rows.rows}")}
    checked(**stages)
    opened = Pipeline.of(load_pipeline(tmp_path / "pipeline.yaml"), code_dir=ROOT)
    standing = opened.survey()[0]
    folder = opened.write_stage(standing).parent
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "1 + 1", "completion": "2"}) + "\n")
    made = {"rows": "rows.jsonl"}
    write_result(
        folder, Result(kind="reject", key=standing.identity.key, metrics={}, artefacts=made, seconds=0)
    )
    code, found = checked(**stages)
    assert code == 0
    assert lines(found, "stages.learn: sft.source") == "1 demonstration"
