"""docs/rewards_provided.md against rewards/: every reward has its row, every snippet of a recipe loads."""

import asyncio
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.rewards import RewardConfig
from rlhf.config.task import TaskConfig
from rlhf.errors import LoadError
from rlhf.importing import load_function, load_object
from rlhf.rollout.reward_shapes import bind
from rlhf.rollout.scoring import RewardPool
from tests.unit.rewards.attempts import attempt, group_of, prompt_of

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "rewards_provided.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(rewards\.\w+:\w+)` \|", TEXT, re.MULTILINE)
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def public_rewards() -> list[str]:
    """`module:attribute` of all that is defined in rewards/, has a reward's signature and returns a number.

    Of several names of one thing, the last: the one that recipes use.
    """
    found: dict[int, str] = {}
    for path in sorted((ROOT / "rewards").glob("[!_]*.py")):
        module = importlib.import_module(f"rewards.{path.stem}")
        for name, item in vars(module).items():
            is_own = getattr(item, "__module__", None) == module.__name__ and not name.startswith("_")
            if is_own and callable(item) and returns_reward(item):
                found[id(item)] = f"{module.__name__}:{name}"
    return list(found.values())


def returns_reward(item: Any) -> bool:
    call = item.__call__ if inspect.isclass(item) and "__call__" in vars(item) else item
    if inspect.isclass(call):
        return False
    signature = inspect.signature(call)
    graded = {"completion", "completions", "trajectory", "trajectories", "group"} & set(signature.parameters)
    returned = str(signature.return_annotation)
    return bool(graded) and ("float" in returned or "RewardResult" in returned)


def test_every_reward_has_a_row() -> None:
    assert sorted(set(public_rewards()) - set(ROWS)) == []
    assert len(ROWS) == len(set(ROWS)) >= 20


@pytest.mark.parametrize("name", ROWS)
def test_every_row_names_a_reward(name: str) -> None:
    assert callable(load_object(name, key="docs"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.search(r"rewards\.\w+:\w+", snippet)[0])
def test_every_snippet_loads(snippet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "x")
    parsed = yaml.safe_load(snippet)
    assert list(parsed) == ["task"]
    task = TaskConfig.model_validate({"train": {"file": "rows.jsonl"}} | parsed["task"])
    if task.train.mapper is not None:
        load_function(task.train.mapper, key="task.train.mapper")
    for reward in task.rewards:
        shape = bind(load_function(reward.use, key="use"), reward.kwargs, key="docs").shape
        assert shape.kind in ("sample", "group")


def test_a_snippet_with_a_wrong_option_would_be_found() -> None:
    with pytest.raises((LoadError, TypeError)):
        bind(load_function("rewards.tool_calls:match", key="use"), {"orderd": False}, key="docs")


def test_links_of_the_page_lead_somewhere() -> None:
    links = set(re.findall(r"\]\((\w+\.md)\)", TEXT))
    written_elsewhere = {"rewards.md", "math.md", "code.md"}
    assert [link for link in links - written_elsewhere if not (PAGE.parent / link).is_file()] == []


def test_rewards_load_without_torch() -> None:
    names = [f"rewards.{path.stem}" for path in sorted((ROOT / "rewards").glob("[!_]*.py"))]
    code = (
        f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=True)
    assert done.stdout.strip() == "False"


def test_a_worker_grades_by_several_of_them_at_once() -> None:
    rewards = [
        RewardConfig(use="rewards.instruction_checks:follow"),
        RewardConfig(
            use="rewards.language:consistency", weight=0.5, kwargs={"language": "en", "part": "all"}
        ),
        RewardConfig(use="rewards.length:soft_overlong", kwargs={"max_length": 8, "cache": 4}),
        RewardConfig(use="rewards.response_format:think", gate=True),
    ]
    group = group_of(
        prompt_of(instruction_id_list=["punctuation:no_comma"], kwargs=[{}]),
        "<think>We need to add these.</think>It is two.",
        "<think>We need to add these.</think>It is two, no more.",
        "It is two.",
        "",
    )
    long = attempt("<think>We need to add these.</think>It is two.", tokens=range(6))
    group = replace(group, trajectories=(*group.trajectories, long))

    async def run() -> list[float | None]:
        pool = RewardPool(rewards, num_workers=1, code_dir=str(ROOT))
        try:
            return [result.value for result in await pool.score(group)]
        finally:
            await pool.close()

    assert asyncio.run(run()) == [1.5, 0.5, 0.0, 0.0, 1.0]
