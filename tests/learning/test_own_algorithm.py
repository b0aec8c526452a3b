"""The example of docs/algorithms.md, word for word: an algorithm from a user's own file learns the toy task."""

import re
from pathlib import Path

import pytest
import yaml

from tests.toy import ROOT, column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


def example() -> tuple[str, dict]:
    """(the file, the recipe's section) of the page's section "Your own algorithm"."""
    page = (ROOT / "docs" / "algorithms.md").read_text()
    section = page.split("## Your own algorithm")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    return code, yaml.safe_load(recipe)


def test_an_algorithm_from_a_users_file_learns_without_touching_the_package(tmp_path: Path) -> None:
    code, sections = example()
    (tmp_path / "my_algos.py").write_text(code)
    schedule = {"num_steps": 24, "minibatches": 2}
    recipe = toy_recipe(tmp_path, schedule=schedule, engine={"kind": "hf"}, **sections)
    code, output = train(recipe, "checkpoint.every=0", "--code-dir", str(tmp_path))
    assert code == 0, output
    rewards = column(metrics(tmp_path / "run"), "rollout/reward_mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.25, rewards
    shown, plan = train(recipe, "--dry-run", "--code-dir", str(tmp_path))
    assert shown == 0, plan
    assert "my_loss (power 0.5" in plan
    assert "my_advantages (lowest -0.3" in plan
    wrong = "algorithm.policy_kwargs={powr: 1}"
    refused, message = train(recipe, wrong, "--dry-run", "--code-dir", str(tmp_path))
    assert refused == 2
    assert "has no powr; it takes power" in message
