"""train, report and doctor on run folders that need no training."""

import json

import pytest

from rlhf.config.loading import load_recipe
from rlhf.run_folder import RunFolder
from rlhf.telemetry.sinks import JsonlSink
from tests.cli.command import rlhf, rlhf_from_cold, write_recipe, write_rows
from tests.unit.telemetry.synthetic import eval_metrics, write_run


def finish(recipe_path) -> RunFolder:
    """The folder of a run of one step as a real run leaves it."""
    folder = RunFolder.open(load_recipe(recipe_path), fresh=False)
    sink = JsonlSink(folder.path)
    sink.log(0, eval_metrics(128))
    sink.log(1, {"time/step_s": 3.0, "rollout/reward_mean": 0.9} | eval_metrics(224))
    sink.close()
    with folder.new_checkpoint(1) as draft:
        (draft / "state.json").write_text("{}")
    (folder.path / "model").mkdir()
    (folder.path / "model/config.json").write_text("{}")
    return folder


def test_finished_run_is_left_alone_and_summed_up(tmp_path):
    recipe = write_recipe(tmp_path)
    folder = RunFolder(finish(recipe).path)  # the one that finished is gone, and its lock with it
    done = rlhf("train", recipe)
    assert done.returncode == 0, done.stderr
    assert "is finished: nothing to do (start anew with --fresh)" in done.stderr
    assert "1 steps of RL in 3 s" in done.stdout
    assert "held-out accuracy 0.500" in done.stdout
    assert "0.875" in done.stdout
    assert (folder.path / "report.html").is_file()
    assert len(folder.checkpoints()) == 1


def test_run_folder_of_a_running_process_is_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    running = finish(recipe)
    done = rlhf("train", recipe)
    assert done.returncode == 2
    assert f"another process is running in {str(running.path)!r}" in done.stderr


def test_fresh_refuses_a_folder_that_is_no_run(tmp_path):
    recipe = write_recipe(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    done = rlhf("train", recipe, f"run_dir={precious}", "--fresh")
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: run_dir: ")
    assert "--fresh will not delete it" in done.stderr
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_fresh_empties_a_run_folder(tmp_path):
    recipe = write_recipe(tmp_path)
    folder = finish(recipe)
    done = rlhf("train", recipe, "--fresh", "model.path=./nowhere")
    assert done.returncode == 2
    assert "there is no folder './nowhere'" in done.stderr
    assert not folder.checkpoints()


@pytest.mark.parametrize(
    "recipe", ["cpu/quickstart", "gsm8k_grpo_qwen2.5_0.5b", "gsm8k_grpo_qwen2.5_7b_8gpu"]
)
def test_dry_run_prints_recipe_and_plan_and_writes_nothing(tmp_path, recipe):
    folder = tmp_path / "run"
    done = rlhf("train", f"recipes/{recipe}.yaml", f"run_dir={folder}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "max_staleness:" in done.stdout
    for line in ("sequences per step", "admission slots", "staleness bound", "memory per learner rank"):
        assert line in done.stderr
    assert not folder.exists()


def test_dry_run_output_is_a_recipe(tmp_path):
    done = rlhf("train", "recipes/cpu/quickstart.yaml", "seed=7", "--dry-run")
    copy = tmp_path / "resolved.yaml"
    copy.write_text(done.stdout)
    assert load_recipe(copy) == load_recipe("recipes/cpu/quickstart.yaml", ["seed=7"])


def test_report_is_written_for_a_run_folder(tmp_path):
    write_run(tmp_path / "run", num_steps=3)
    done = rlhf("report", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run/report.html")
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_report_refuses_another_folder(tmp_path):
    done = rlhf("report", tmp_path)
    assert done.returncode == 2
    assert "is not a run folder: it has no config.yaml" in done.stderr


@pytest.mark.slow
def test_doctor_says_that_a_recipe_can_run_here():
    done = rlhf_from_cold("doctor", "recipes/gsm8k_grpo_qwen2.5_0.5b.yaml", limit_s=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ready: a run can start here." in done.stderr
    assert "Hugging Face" in done.stderr  # the model is not a folder here
    assert "12 of 12" in done.stderr
    for subject in ("python", "cores", "memory", "GPU", "torch", "transformers", "engine", "Ray", "sandbox"):
        assert f"│ {subject} " in done.stderr, subject


@pytest.mark.slow
def test_doctor_says_that_a_sandbox_is_missing(tmp_path):
    (tmp_path / "programs.py").write_text(
        "from rlhf.sandbox.client import default_sandbox\ndef grade(completion): return 1.0\n"
    )
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "answer": "2"}])
    task = {"train": {"file": str(rows)}, "rewards": [{"use": f"{tmp_path / 'programs.py'}:grade"}]}
    recipe = write_recipe(tmp_path, task=task, sandbox={"python": "/no/such/python"})
    done = rlhf_from_cold("doctor", recipe, limit_s=250)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "A run cannot start: see sandbox." in done.stderr


def test_without_a_command_the_usage_is_shown():
    done = rlhf()
    assert done.returncode == 2
    assert "usage: rlhf" in done.stderr


def test_environment_of_a_run_is_recorded(tmp_path):
    folder = finish(write_recipe(tmp_path))
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"python", "platform", "cores", "packages", "git"} <= set(environment)
    assert environment["packages"]["torch"]
