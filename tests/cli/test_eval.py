"""`rlhf eval` as a user runs it: mistakes, one real evaluation, a kill and what follows it."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations

import pytest
import yaml

from rlhf.offline.collect import read_collected
from tests.cli.command import ROOT, rlhf, write_recipe, write_rows
from tests.tiny import save_tiny

REWARDS = """
from rlhf.types import RewardResult

def letter(completion):
    letters = [c for c in completion if c.isalpha()]
    if not letters:
        return RewardResult(value=0.0, outcome="unparsable")
    right = letters[0].lower() < "h"
    return RewardResult(value=float(right), outcome="ok" if right else "wrong", detail={"answer": letters[0]})

def length(completion):
    return float(len(completion))
"""


def write_evaluation(folder, **sections):
    """A file that has a tiny random model say letters: right is one before h."""
    if not (folder / "model").is_dir():
        save_tiny(folder / "model")
    (folder / "letters.py").write_text(REWARDS)
    rows = write_rows(folder / "rows.jsonl", [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(16)])
    use = f"{folder / 'letters.py'}:"
    rewards = [{"use": f"{use}letter"}, {"use": f"{use}length", "weight": 0}]
    evaluation = {
        "name": "letters",
        "run_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "sets": {"letters": {"source": {"file": str(rows)}, "rewards": rewards}},
        "eval": {"num_samples": 4, "max_tokens": 8, "prompts_per_chunk": 4, "best_of": "letters.length"},
        "task": {"template": "{prompt}"},
        "sampling": {"max_prompt_tokens": 16},
        "engine": {"max_sequences": 16, "kv_cache_mb": 64},
    }
    path = folder / "letters.yaml"
    path.write_text(yaml.safe_dump(evaluation | sections))
    return path


def start(path, *overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "eval", str(path), *overrides],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def evaluate(path, *overrides):
    """What was printed."""
    process = start(path, *overrides)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("eval.num_sample=3",), "did you mean 'eval.num_samples'?"),
        (("eval.ks=[1,8]",), "eval.ks is [1, 8] and eval.num_samples is 4"),
        (("eval.best_of=judge.grade",), "the rewards of sets.letters are letters.letter, letters.length"),
        (("sets.letters.source.file=nowhere.jsonl",), "sets.letters.source.file: there is no file or folder"),
        (("sets.letters.source.columns.prompt=q",), "sets.letters.source.columns.prompt"),
        (("model.path=./nowhere",), "no folder './nowhere'"),
        (("run_dir=/proc/letters",), "run_dir: cannot write to '/proc/letters'"),
    ],
)
def test_eval_refuses_in_one_message(tmp_path, overrides, says):
    done = rlhf("eval", write_evaluation(tmp_path), *overrides)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert says in done.stderr


def test_eval_of_a_recipe_without_heldout_prompts_is_refused(tmp_path):
    done = rlhf("eval", write_recipe(tmp_path))
    assert done.returncode == 2
    assert "has no sets and no task.heldout" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eval_measures_a_model_with_vllm(tmp_path):
    pytest.importorskip("vllm")
    path, run = write_evaluation(tmp_path), tmp_path / "run"
    output = evaluate(path)
    assert f"report: {run / 'report.html'}" in output
    assert "16 prompts x 4, T=1 top_p=1" in output

    scores = json.loads((run / "eval.json").read_text())["models"]["model"]["sets"]["letters"]
    problems = [one.samples for one in read_collected(run / "collected/model/letters")]
    assert [len(samples) for samples in problems] == [4] * 16
    for k in (1, 2, 4):
        draws = [list(combinations(samples, k)) for samples in problems]
        solved = [sum(any(s.is_correct for s in draw) for draw in own) / len(own) for own in draws]
        assert scores["figures"][f"pass@{k}"]["value"] == pytest.approx(sum(solved) / 16)
    assert 0 < scores["figures"]["accuracy"]["value"] < 1
    assert scores["sampling"]["temperature"] == 1.0
    assert {"maj@4", "best@4"} <= scores["figures"].keys()
    assert len((run / "samples.jsonl").read_text().splitlines()) == 64

    done = rlhf("report", run)
    assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html"))
    done = rlhf("eval", path, "eval.num_samples=2")
    assert done.returncode == 2
    assert "collected with other settings: collect.samples_per_prompt is 4 there" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_eval_goes_on_to_the_same_figures(tmp_path):
    path = write_evaluation(tmp_path, engine={"kind": "hf"})
    evaluate(path, f"run_dir={tmp_path / 'whole'}")
    chunks = tmp_path / "run/collected/model/letters"
    process = start(path)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not any(chunks.glob("chunk-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "run/eval.json").exists()
    evaluate(path)
    for name in ("eval.json", "samples.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["vllm", pytest.param("hf", marks=pytest.mark.long)])
def test_models_of_one_shape_take_turns_in_the_same_engines(tmp_path, kind):
    """What the second says is what it says in engines of its own; another shape gets its own."""
    pytest.importorskip("vllm")
    for name, changed in {"one": {}, "other": {"seed": 1}, "wide": {"intermediate_size": 96}}.items():
        save_tiny(tmp_path / name, **changed)
    models = {name: {"path": str(tmp_path / name), "dtype": "float32"} for name in ("one", "other", "wide")}
    path = write_evaluation(tmp_path, model=None, models=models)
    fast = ("eval.num_samples=2", f"engine.kind={kind}")
    together = evaluate(path, *fast, f"run_dir={tmp_path / 'together'}")
    assert together.count(f"engine: {kind}") == 2
    evaluate(path, *fast, f"run_dir={tmp_path / 'alone'}", f"models.one.path={tmp_path / 'wide'}")

    def said(run, name):
        folder = tmp_path / run / "collected" / name / "letters"
        return [[sample.completion for sample in one.samples] for one in read_collected(folder)]

    assert said("together", "other") == said("alone", "other")
    assert said("together", "wide") == said("alone", "wide") == said("alone", "one")
    assert said("together", "one") != said("together", "other")
