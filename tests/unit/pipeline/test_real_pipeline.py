"""One small pipeline with real stages: TRL, Ray, FSDP, reward workers, each stage in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.toy import MODEL, ROOT

TOY = ROOT / "tests" / "toy.py"
FINE_TUNING = {"num_steps": 2, "batch_size": 4, "max_length": 96}


def write_file(folder: Path) -> Path:
    """sft -> rl -> reject -> sft -> eval with a served reward model, a few seconds of work in each stage."""
    rows = [
        {"prompt": f"say {i}:", "completion": str(i) * 3, "chosen": str(i) * 3, "rejected": str(i)}
        for i in range(12)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train = {"generator": f"{TOY}:rows", "kwargs": {"size": 8}}
    scored = {
        "use": "rewards.reward_model:ServedScorer", "limit_s": 60, "weight": 0,
        "kwargs": {"endpoint": {"url": "service://rm", "model": "rm"}},
    }  # fmt: skip
    values = {
        "name": "small",
        "run_dir": str(folder / "run"),
        "models": {"base": {"config": MODEL, "tokenizer": "characters", "dtype": "float32"}},
        "shared": {
            "task": {"template": "{prompt}", "rewards": [{"use": f"{TOY}:digits"}]},
            "sampling": {"max_prompt_tokens": 64, "max_tokens": 6},
            "engine": {"kind": "hf"},
            "placement": {"kind": "colocated", "num_cpus": 2},
        },
        "stages": {
            "cold_start": {"kind": "sft", "model": "base", "sft": {"source": {"file": str(data)}, **FINE_TUNING}},
            "rl": {
                "kind": "rl", "model": "${cold_start}", "task": {"train": train}, "eval": {"every": 0},
                "schedule": {"num_steps": 1, "prompts_per_step": 2, "samples_per_prompt": 4},
                "learner": {"microbatch_tokens": 512, "lr": 1e-3},
            },
            "reject": {
                "kind": "reject", "model": "${rl}", "task": {"train": train},
                "collect": {"samples_per_prompt": 2, "prompts_per_chunk": 4},
                "select": {"require_correct": False, "allow_truncated": True},
            },
            "again": {
                "kind": "select", "samples": "${reject.samples}",
                "select": {"require_correct": False, "allow_truncated": True},
            },
            "final": {"kind": "sft", "model": "base", "sft": {"source": {"file": "${reject.rows}"}, **FINE_TUNING}},
            "rm": {
                "kind": "reward_model", "model": "${cold_start}",
                "reward_model": {"source": {"file": str(data)}, "heldout": {"file": str(data)}, **FINE_TUNING},
            },
            "scores": {
                "kind": "eval", "services": {"rm": {"model": "${rm}", "engine": "hf"}},
                "models": {"Dev1": "${cold_start}", "Dev2": "${rl}", "Dev3": "${final}"},
                "sets": {"digits": {"source": train}},
                "task": {"rewards": [{"use": f"{TOY}:digits"}, scored]},
            },
        },
    }  # fmt: skip
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def rlhf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pipeline_runs_to_its_table_and_report_and_does_nothing_the_second_time(tmp_path):
    path = write_file(tmp_path)
    done = rlhf("pipeline", path)
    assert done.returncode == 0, done.stdout + done.stderr
    for number, stage in enumerate(("cold_start", "rl", "reject", "again", "final", "rm", "scores"), 1):
        assert f"[{number}/7] {stage}: done in" in done.stderr
    for model in ("Dev1", "Dev2", "Dev3"):
        assert model in done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (
        "7 of 7 stages done",
        "digits accuracy",
        "reward_model.ServedScorer",
        "biased",
        "<polyline",
        "reject/",
    ):
        assert text in page
    drawn, selected = ((tmp_path / "run").glob(f"stages/{name}-*") for name in ("reject", "again"))
    (drawn,), (selected,) = drawn, selected
    for name in ("rows.jsonl", "prompts.jsonl", "summary.json"):
        assert (selected / name).read_bytes() == (drawn / name).read_bytes()
    assert not (selected / "collected").exists()
    (evaluated,) = (tmp_path / "run").glob("stages/scores-*/eval.json")
    # Nothing of where the run lies: the same pipeline elsewhere writes the same bytes.
    assert str(tmp_path) not in evaluated.read_text().replace(str(TOY), "")
    assert json.loads(evaluated.read_text())["models"]["Dev1"]["model"] == "inputs/cold_start.model"
    again = rlhf("pipeline", path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": done\n") == 7
