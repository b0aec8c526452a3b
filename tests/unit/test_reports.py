"""`rlhf report`: each folder gets the page that fits what it holds."""

import json

import pytest

from rlhf.errors import ConfigError
from rlhf.reports import write_any_report
from tests.unit.pipeline import fake_stages
from tests.unit.pipeline.fake_stages import run_here, write_pipeline
from tests.unit.telemetry.synthetic import write_run
from tests.unit.vision.made_runs import write_alignment_run


def page_of(folder) -> str:
    path = write_any_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


def test_run_of_a_language_model_gets_its_page(tmp_path):
    page = page_of(write_run(tmp_path / "run", num_steps=3, samples_per_step=2))
    assert '"title":"quickstart"' in page


def test_run_of_alignment_gets_its_page(tmp_path):
    assert "<h2>Held-out queries, before and after</h2>" in page_of(write_alignment_run(tmp_path / "run"))


def test_bench_gets_its_page(tmp_path):
    point = {"row": "pre-trained", "taste": 1.0, "zero_shot": 0.5}
    gate = {"name": "dpo over <sft>", "demand": "taste +1 or more", "found": "+2", "passed": False}
    found = {
        "name": "trial", "table": [{"row": "dpo", "taste": "1.00"}], "gates": [gate], "frontier": [point],
        "ranked_against_pairs": ["rp_pl is ahead of dpo"],
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(found))
    page = page_of(tmp_path)
    assert "<h1>trial</h1>" in page
    assert "<td>MISSED</td><td>dpo over &lt;sft&gt;</td>" in page
    assert "<p>rp_pl is ahead of dpo</p>" in page


def test_evaluation_gets_its_page(tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps({"name": "trial", "models": {}}))
    assert '"title":"trial"' in page_of(tmp_path)


def test_pipeline_gets_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_stages, "PAUSE_S", 0.0)
    pipeline = run_here(write_pipeline(tmp_path))
    scores = tmp_path / "run" / pipeline.manifest.present["scores"]
    (scores / "eval.json").write_text(json.dumps({"name": "trial", "models": {}}))
    assert "stages done" in page_of(tmp_path / "run")


@pytest.mark.parametrize("files", [[], ["metrics.jsonl"], ["recipe.yaml"]])
def test_another_folder_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigError, match=r"is not a run folder: it has no config\.yaml, no eval\.json, no bench"
    ):
        write_any_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
