"""Environments with planted faults, and our own, in real episodes of scripted policies."""

import asyncio
import json
from pathlib import Path

import pytest

from rlhf.check.command import check
from rlhf.config.loading import load_recipe
from tests.cli.command import ROOT
from tests.unit.check.checking import Checked, checked

ENVIRONMENTS = Path(__file__).with_name("environments.py")
ROWS = tuple({"prompt": f"task {i}", "answer": str(i)} for i in range(4))


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Check a recipe whose environment is one of `environments`."""
    monkeypatch.chdir(tmp_path)

    def run(name, rows=ROWS, **limits):
        environment = {"use": f"{ENVIRONMENTS}:{name}", "limits": {"max_tokens": 256, **limits}}
        return checked(tmp_path, rows=rows, environment=environment, template="chat")

    return run


def test_sound_environment_passes_and_its_score_tells_the_reference(played):
    found = played("Sound")
    assert (found.code, found.fatal, found.warned) == (0, {}, {})
    facts = found.found["facts"]
    assert facts["score"]["means"]["reference"] == 1
    assert facts["score"]["means"]["empty answer"] == 0
    assert facts["episodes"]["stops"] == {"env_done": 16, "max_tokens": 4}
    assert "reset" in found.says("time")


def test_reference_is_not_written_in_a_way_that_cannot_be_graded(played):
    found = played("Boxed", rows=ROWS[:1])
    assert found.found["facts"]["reference"]["template"] == "\\boxed{{reference}}"


def test_tokenizer_that_is_not_here_is_not_said_to_be_played_with(tmp_path):
    changes = ["model.tokenizer=some/hub", "task.train.kwargs.size=40", "task.heldout.kwargs.size=40"]
    recipe = load_recipe(str(ROOT / "recipes/cpu/guess_number.yaml"), changes)
    report = tmp_path / "report.json"
    asyncio.run(check(recipe, code_dir=ROOT, num_rows=1, json_file=report))
    assert json.loads(report.read_text())["facts"]["chat template"]["is_own"] is False


def test_randomness_without_the_seed_is_named(played):
    found = played("Dice")
    assert found.code == 0
    assert list(found.warned) == ["not deterministic"]
    assert sorted(found.warned["not deterministic"]) == [f"rows.jsonl:{i}" for i in range(4)]
    assert "message 0 from the environment is 'you threw" in found.reasons("not deterministic")[0]


def test_state_that_outlives_an_episode_is_an_error(played):
    found = played("Leaks")
    assert list(found.fatal) == ["state leaks between episodes"]
    assert "this is episode" in found.reasons("state leaks between episodes")[0]


@pytest.mark.parametrize(
    ("name", "kind", "says", "is_fatal"),
    [
        ("Constant", "score is constant", "it is 0.5 in all", False),
        ("NotGradable", "no episode is gradable", "always None", True),
    ],
)
def test_score_that_says_nothing_is_named(name, kind, says, is_fatal, played):
    found = played(name, rows=ROWS[:2])
    assert list(found.fatal if is_fatal else found.warned) == [kind]
    assert says in found.reasons(kind)[0]


def test_faults_of_rows_and_tools_are_named_where_they_are(played):
    found = played("Faulty")
    assert found.code == 1
    assert found.fatal == {
        "environment fails in reset": ["rows.jsonl:1"],
        "environment fails in score": ["rows.jsonl:2"],
    }
    assert found.reasons("environment fails in reset") == ["KeyError: 'no such task'"]
    assert "a reward is nan" in found.reasons("environment fails in score")[0]
    broken = "tool raises on arguments that its schema allows"
    assert set(found.reasons(broken)) == {"share: ZeroDivisionError: division by zero"}
    assert "temporary files or folders are left" in found.reasons("left behind")[0]
    assert set(found.warned) == {broken, "left behind"}
    assert "raised 3 times; such as 'ValueError: no task'" in found.says("tool find")
    names = [schema["function"]["name"] for schema in found.found["facts"]["tools"]["schemas"]]
    assert names == ["share", "find"]


def test_environment_that_hangs_is_not_waited_for_again_and_again(played):
    found = played("Hangs", step_s=0.3)
    assert set(found.fatal) == {"environment hangs", "playing stopped, not every row was played"}
    assert "tool_timeout, in step" in found.reasons("environment hangs")[0]


def test_environment_that_does_not_load_says_why(played):
    found = played("Gone")
    assert list(found.fatal) == ["environment does not load"]
    assert "Gone" in found.reasons("environment does not load")[0]


@pytest.mark.parametrize("name", ["two_tools", "reasoning_gym"])
def test_own_environments_pass_without_findings(name, tmp_path):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    sizes = [f"{key}.kwargs.size=40" for key in ("task.train", "task.heldout", "sft.source")]
    recipe = load_recipe(str(ROOT / f"recipes/cpu/{name}.yaml"), sizes)
    report = tmp_path / "report.json"
    code = asyncio.run(check(recipe, code_dir=ROOT, num_rows=2, json_file=report))
    found = Checked(code=code, found=json.loads(report.read_text()))
    assert (code, found.fatal) == (0, {})
    # Others may write to this folder meanwhile.
    assert set(found.warned) <= {"left behind"}
    assert found.found["facts"]["score"]["means"]["reference"] == 1
