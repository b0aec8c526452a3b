import asyncio
import re
import sys
from pathlib import Path

import pytest

from rlhf.config.schema import Recipe
from rlhf.doctor import (
    TESTED,
    Finding,
    environment_needs,
    needs_sandbox,
    probe,
    recipe_needs,
    render,
    sandbox,
)
from rlhf.sandbox.execution import TIERS
from rlhf.sandbox.policy import UNSAFE, Policy
from tests.unit.sandbox.servers import fusion, server

ROOT = Path(__file__).parents[2]


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
    assert probe(code, limit_s=120) == cause


def test_probe_ends_what_hangs():
    assert probe("import time; time.sleep(600)", limit_s=0.5) == "no answer within 0.5 s"


def test_tested_versions_are_those_of_the_lock():
    lock = "".join((ROOT / "requirements" / name).read_text() for name in ("torch.txt", "cpu.txt"))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", lock, flags=re.MULTILINE))
    assert {name: pinned[name] for name in TESTED} == TESTED
    assert sys.version_info[:2] >= (3, 11)


def recipe(use: str = "a:b", **sections: object) -> Recipe:
    task = {"train": {"file": "a.jsonl"}, "rewards": [{"use": use}]}
    return Recipe.model_validate({"name": "a", "model": {"path": "some/hub-model"}, "task": task, **sections})


def test_sandbox_is_examined_tier_by_tier():
    findings = {finding.subject: finding for finding in sandbox(Policy(), is_needed=True)}
    taken = findings.pop("sandbox")
    assert len(findings) == len(TIERS) - 1
    if taken.status == "ok":
        assert re.fullmatch(
            r"(namespaces|landlock) \((ABI \d+, )?12 of 12 attacks stopped\); all tiers.*", taken.found
        )
    for finding in findings.values():
        assert finding.status in ("ok", "note")
        assert finding.found.startswith("not here: ") or "attacks stopped" in finding.found


@pytest.mark.parametrize(("is_needed", "status"), [(True, "missing"), (False, "note")])
def test_sandbox_that_cannot_be_had_is_missing_if_a_reward_needs_it(is_needed, status):
    first, *others = sandbox(Policy(python="/no/such/python"), is_needed=is_needed)
    assert (first.subject, first.status) == ("sandbox", status)
    assert first.found.startswith("neither namespaces nor landlock can be had here")
    assert "sandbox.unsafe: i-know" in first.advice
    assert [other.subject for other in others] == [f"sandbox: {tier}" for tier in TIERS]
    assert all("launcher cannot be started" in other.found for other in others)
    assert "user namespaces" in others[0].advice


def test_weak_tier_says_what_it_lets_through():
    policy = Policy(tier="read-only", unsafe=UNSAFE, python="/usr/bin/python3")
    first = sandbox(policy, is_needed=True)[0]
    if first.status == "missing":
        pytest.skip(first.found)
    assert first.status == "note"
    assert first.found.startswith("read-only (")
    assert "not stopped: read a host file" in first.advice


def test_sandbox_server_is_asked():
    with server(fusion(stdout="42\n")) as url:
        assert sandbox(Policy(remote=url), is_needed=True)[0].status == "ok"
    with server(lambda *_: (503, b"starting")) as url:
        found = sandbox(Policy(remote=url), is_needed=True)[0]
    assert found.status == "missing"
    assert "HTTP 503" in found.found


def test_reward_that_imports_the_sandbox_needs_one(tmp_path):
    running, plain = tmp_path / "running.py", tmp_path / "plain.py"
    running.write_text("from rlhf.sandbox.client import default_sandbox\ndef grade(completion): return 1.0\n")
    plain.write_text("def grade(completion): return 1.0\n")
    assert needs_sandbox(recipe(f"{running}:grade"))
    assert not needs_sandbox(recipe(f"{plain}:grade"))


def test_model_that_is_no_folder_is_noted():
    findings = {finding.subject: finding for finding in recipe_needs(recipe())}
    assert findings["model"].status == "note"
    assert "some/hub-model" in findings["model"].found


def episodes_in(module: Path, **kwargs: object) -> Recipe:
    task = {"train": {"file": "a.jsonl"}, "environment": {"use": f"{module}:Room", "kwargs": kwargs}}
    return Recipe.model_validate({"name": "a", "model": {"path": "some/hub-model"}, "task": task})


def test_environment_that_cannot_be_imported_is_missing_with_its_cause(tmp_path):
    module = tmp_path / "rooms.py"
    module.write_text("import no_such_package\n")
    found = asyncio.run(environment_needs(episodes_in(module, python="no-such-python")))
    assert [(f.subject, f.status) for f in found] == [("interpreter", "missing"), ("environment", "missing")]
    assert "no-such-python" in found[0].found
    assert "No module named 'no_such_package'" in found[1].found


def test_environment_that_loads_is_named_and_whether_it_needs_the_sandbox(tmp_path):
    module = tmp_path / "rooms.py"
    module.write_text("class Room:\n    uses_sandbox = False\n    def step(self, action, context): ...\n")
    (found,) = asyncio.run(environment_needs(episodes_in(module)))
    assert found.status == "ok"
    assert not needs_sandbox(episodes_in(module))
    noise = (
        "import atexit, sys, warnings\natexit.register(print, 'bye', file=sys.stderr)\nwarnings.warn('old')\n"
    )
    module.write_text(noise + module.read_text().replace("False", "True"))
    assert needs_sandbox(episodes_in(module))
