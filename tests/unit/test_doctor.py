import re
import sys
from pathlib import Path

import pytest

from rlhf.config.schema import Recipe
from rlhf.doctor import TESTED, Finding, examine, probe, recipe_needs, render

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_doctor_finds_that_the_test_environment_can_run():
    findings = examine(None)
    blocking = [finding for finding in findings if finding.status == "missing"]
    assert not blocking
    subjects = {finding.subject for finding in findings}
    assert {"python", "cores", "memory", "torch", "transformers", "engine", "Ray", "GPU"} <= subjects
    assert render(findings) == 0


def test_whatever_is_not_ok_comes_with_advice():
    findings = [Finding(subject="x", status="missing", found="nothing", advice="do this")]
    assert render(findings) == 1


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("pass", None),
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "killed by SIGILL (an instruction this processor lacks)",
        ),
        ("import sys; sys.exit(3)", "exit code 3"),
    ],
)
def test_probe_gives_the_cause_in_one_line(code, cause):
    assert probe(code, limit_s=30) == cause


def test_probe_ends_what_hangs():
    assert probe("import time; time.sleep(60)", limit_s=0.5) == "no answer within 0.5 s"


def test_tested_versions_are_those_of_the_lock():
    lock = "".join((ROOT / "requirements" / name).read_text() for name in ("torch.txt", "cpu.txt"))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", lock, flags=re.MULTILINE))
    assert {name: pinned[name] for name in TESTED} == TESTED
    assert sys.version_info[:2] >= (3, 11)


def test_model_that_is_no_folder_is_noted():
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "model": {"path": "some/hub-model"},
            "task": {"train": {"file": "a.jsonl"}, "rewards": [{"use": "a:b"}]},
        }
    )
    findings = {finding.subject: finding for finding in recipe_needs(recipe)}
    assert findings["model"].status == "note"
    assert "some/hub-model" in findings["model"].found
