"""What is run again after a change: what depends on it, and nothing else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rlhf.config.pipeline import load_pipeline
from rlhf.config.references import Reference
from rlhf.errors import ConfigError
from rlhf.pipeline.child import run_stage
from rlhf.pipeline.job import read_job
from rlhf.pipeline.opened import Pipeline
from tests.unit.pipeline import fake_stages
from tests.unit.pipeline.fake_stages import begun, run_here, write_pipeline

ORDER = ["cold_start", "rl", "reject", "final", "scores", "student"]
AFTER = {
    "cold_start": ORDER,
    "rl": ["rl", "reject", "final", "scores", "student"],
    "reject": ["reject", "final", "scores", "student"],
    "final": ["final", "scores"],
    "student": ["student"],
    "scores": ["scores"],
}
CHANGES = {
    "cold_start": "stages.cold_start.sft.lr=0.5",
    "rl": "stages.rl.schedule.num_steps=7",
    "reject": "stages.reject.select.require_correct=false",
    "final": "stages.final.sft.num_steps=7",
    "student": "stages.student.sft.lr=0.7",
    "scores": "stages.scores.eval.prompts_per_chunk=3",
}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(fake_stages, "PAUSE_S", 0.0)


@pytest.fixture
def finished(tmp_path):
    """A pipeline that has run to its end."""
    path = write_pipeline(tmp_path)
    run_here(path)
    assert begun(tmp_path) == ORDER
    return path


def states(path, *overrides):
    pipeline = Pipeline.of(load_pipeline(path, overrides), code_dir=path.parent)
    return {s.stage.name: (s.verdict.state, s.verdict.why) for s in pipeline.survey()}


def test_finished_pipeline_runs_nothing(finished):
    run_here(finished)
    assert begun(finished.parent) == []


@pytest.mark.parametrize("stage", ORDER)
def test_changed_setting_redoes_its_stage_and_dependents_and_changing_back_nothing(finished, stage):
    run_here(finished, CHANGES[stage])
    assert begun(finished.parent) == [name for name in ORDER if name in AFTER[stage]]
    run_here(finished)
    assert begun(finished.parent) == []
    run_here(finished, CHANGES[stage])
    assert begun(finished.parent) == []


def test_redone_stage_knows_the_folder_of_its_result_before_unless_samples_could_differ(finished):
    def before(*overrides, **choice):
        pipeline = run_here(finished, *overrides, **choice)
        return read_job(finished.parent / "run" / pipeline.manifest.present["reject"] / "stage.yaml").before

    assert before() is None
    present = Pipeline.of(load_pipeline(finished, ()), code_dir=finished.parent).manifest.present["reject"]
    assert before("stages.reject.select.per_prompt=3") == finished.parent / "run" / present
    assert before("stages.reject.select.per_prompt=3", redo=["reject"]) is None
    code = finished.parent / "grading.py"
    code.write_text(code.read_text().replace("1.0", "0.0"))
    assert before("stages.reject.select.per_prompt=4") is None


def test_reason_names_the_key_with_both_values(finished):
    found = states(finished, "stages.rl.schedule.num_steps=7")
    assert found["cold_start"] == ("done", "")
    assert found["rl"] == ("to do", "schedule.num_steps 100 -> 7")
    assert found["reject"] == ("waits", "after rl")


def test_equal_output_stops_the_redoing(finished):
    run_here(finished, "stages.reject.seed=5")
    assert begun(finished.parent) == ["reject"]


def test_changed_data_redoes_what_reads_it_and_touching_it_nothing(finished):
    data = finished.parent / "demonstrations.jsonl"
    os.utime(data, ns=(1, 1))
    run_here(finished)
    assert begun(finished.parent) == []
    data.write_text(data.read_text() * 2)
    assert states(finished)["cold_start"] == ("to do", f"{data} has changed")
    run_here(finished)
    # The rows that `reject` leaves are the same ones: what learns from them stays.
    assert begun(finished.parent) == ["cold_start", "rl", "reject", "scores"]


def test_changed_code_keeps_the_stage_and_says_so_until_it_is_redone(finished):
    code = finished.parent / "grading.py"
    code.write_text(code.read_text().replace("1.0", "0.0"))
    state, why = states(finished)["rl"]
    assert state == "done"
    assert "kept, although the code of" in why
    assert "grading.py:grade has changed" in why
    run_here(finished, redo=["rl"])
    assert begun(finished.parent) == ["rl"]
    assert states(finished)["rl"] == ("done", "")


@pytest.mark.parametrize(
    "override",
    ["stages.rl.learner.threads=2", "stages.rl.checkpoint.every=5", "shared.placement.kind=colocated",
     "shared.timeouts.start_s=5", "stages.final.sft.threads=3", "shared.telemetry.live=false"],
)  # fmt: skip
def test_where_and_how_fast_a_stage_runs_is_no_change(finished, override):
    run_here(finished, override)
    assert begun(finished.parent) == []


def test_redo_keeps_the_old_result_beside_the_new_one(finished):
    pipeline = run_here(finished, redo=["rl"])
    folder = finished.parent / "run" / pipeline.manifest.present["rl"]
    assert (folder / "result.json").exists()
    assert (folder.with_name(f"{folder.name}.old-1") / "result.json").exists()


def test_until_runs_only_what_is_needed(tmp_path):
    path = write_pipeline(tmp_path)
    run_here(path, until="reject")
    assert begun(tmp_path) == ["cold_start", "rl", "reject"]
    assert {name for name, (state, _) in states(path).items() if state == "done"} == {
        "cold_start",
        "rl",
        "reject",
    }


def test_altered_artefact_is_put_aside_and_made_again(finished):
    pipeline = run_here(finished)
    rows = pipeline.manifest.artefact("reject", "rows")
    whole = rows.read_text()
    rows.write_text(whole[:-3])
    assert states(finished)["reject"][1].endswith("rows.jsonl was altered")
    begun(finished.parent)
    run_here(finished)
    assert begun(finished.parent) == ["reject"]
    assert rows.read_text() == whole


def test_lost_artefact_is_made_again(finished):
    pipeline = run_here(finished)
    pipeline.manifest.artefact("reject", "rows").unlink()
    begun(finished.parent)
    run_here(finished)
    assert begun(finished.parent) == ["reject"]


def test_lost_artefact_may_come_back_otherwise(finished, monkeypatch):
    pipeline = run_here(finished)
    pipeline.manifest.artefact("reject", "rows").unlink()
    begun(finished.parent)
    monkeypatch.setattr(fake_stages, "CHUNKS", fake_stages.CHUNKS + 1)
    run_here(finished)
    assert begun(finished.parent) == ["reject", "final", "scores", "student"]
    assert {state for state, _ in states(finished).values()} == {"done"}


def test_stage_that_is_made_again_is_not_whole_before_its_end(finished):
    pipeline = run_here(finished)
    model = pipeline.manifest.artefact("rl", "model")
    shutil.rmtree(model)

    def killed(job, code_dir):
        (job.folder / "model").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(model.parent / "stage.yaml", code_dir=finished.parent, execute=killed)
    assert states(finished)["rl"][0] == "resumes"


def test_every_artefact_that_a_stage_names_enters_its_key(finished):
    both = "stages.final.sft.source=[{file: '${reject}'}, {file: '${reject.prompts}'}]"
    run_here(finished, both)
    begun(finished.parent)
    pipeline = run_here(finished, both)
    hashes = {
        Reference(stage, name): digest
        for stage in pipeline.manifest.present
        for name, digest in pipeline.manifest.records[pipeline.manifest.present[stage]].artefacts.items()
    }
    stage = pipeline.stage("final", option="")
    keys = {pipeline.judge(stage, hashes).identity.key}
    for need in stage.needs:
        keys.add(pipeline.judge(stage, hashes | {need: "other"}).identity.key)
    assert len(keys) == 3


def test_named_folders_enter_the_key_by_what_they_hold(tmp_path, monkeypatch):
    path = write_pipeline(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("start", "lora"):
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
    merge = "stages.student={kind: merge, merge: {method: adapter, base: start, adapter: lora}}"
    pipeline = Pipeline.of(load_pipeline(path, [merge]), code_dir=tmp_path)
    stage = pipeline.stage("student", option="")
    before = pipeline.judge(stage, {}).identity
    assert set(before.files) == {"start", "lora"}
    Path("start", "config.json").write_text('{"changed": 1}')
    assert pipeline.judge(stage, {}).identity.key != before.key


def test_seed_of_random_models_enters_the_key_of_a_stage_with_a_seed_of_its_own(finished):
    own = "stages.cold_start.seed=5"
    run_here(finished, own)
    begun(finished.parent)
    run_here(finished, own, "seed=1")
    assert "cold_start" in begun(finished.parent)


def test_result_that_was_not_written_down_is_adopted(finished):
    (finished.parent / "run" / "manifest.json").unlink()
    run_here(finished)
    assert begun(finished.parent) == []
    manifest = json.loads((finished.parent / "run" / "manifest.json").read_text())
    assert list(manifest["stages"]) == ORDER


def test_resolved_pipeline_loads_back_to_the_same_stages(finished):
    resolved = finished.parent / "run" / "pipeline.yaml"
    run_here(finished)
    pipeline = Pipeline.of(load_pipeline(resolved), code_dir=finished.parent)
    assert {s.verdict.state for s in pipeline.survey()} == {"done"}


@pytest.mark.parametrize("choice", [{"until": "rejct"}, {"redo": ["rejct"]}])
def test_unknown_stage_on_the_command_line_is_named(finished, choice):
    with pytest.raises(ConfigError, match=r"no stage 'rejct'\. Did you mean 'reject'"):
        run_here(finished, **choice)


def test_stage_to_redo_that_until_leaves_out_is_named(finished):
    with pytest.raises(ConfigError, match="--redo final: --until reject leaves that stage out"):
        run_here(finished, until="reject", redo=["final"])
