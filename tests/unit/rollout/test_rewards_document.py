"""The examples of docs/rewards.md are what they say: functions that load and grade."""

import re
from pathlib import Path

import pytest
import yaml

from rlhf.config.rewards import RewardConfig
from tests.unit.rollout.pools import score, values

DOCUMENT = (Path(__file__).parents[3] / "docs/rewards.md").read_text(encoding="utf-8")
PYTHON = "\n\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
COLUMNS = {"ground_truth": "7", "data_source": "sums"}


@pytest.mark.parametrize(
    ("name", "completions", "expected"),
    [
        ("exact", (" 7 ", "8"), [1.0, 0.0]),
        ("shorter", ("", "a"), [1.0, 0.5]),
        ("rare", ("a", "a", "b", "c"), [0.5, 0.5, 0.75, 0.75]),
        ("boxed", (r"so \boxed{7}", "7"), [1.0, 0.0]),
        ("compute_score", ("7 ", "8"), [1.0, 0.0]),
        ("reward_func", ("= 7", "= 8"), [1.0, 0.0]),
        ("judged", ("7", ""), [1.0, 0.0]),
    ],
)
def test_example_of_the_document_grades(
    tmp_path: Path, name: str, completions: tuple[str, ...], expected: list[float]
) -> None:
    (tmp_path / "my_rewards.py").write_text(PYTHON)
    reward = RewardConfig(use=f"{tmp_path / 'my_rewards.py'}:{name}")
    results = score(*completions, rewards=(reward,), columns=COLUMNS, reference="7")
    assert values(results) == expected


def test_every_function_of_the_document_is_tried_and_its_recipe_is_valid() -> None:
    assert len(re.findall(r"^(?:async )?def ", PYTHON, re.MULTILINE)) == 7
    (recipe,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    for reward in yaml.safe_load(recipe)["task"]["rewards"]:
        RewardConfig(**reward)


def test_document_names_every_key_of_a_reward() -> None:
    assert [key for key in RewardConfig.model_fields if f"`{key}`" not in DOCUMENT] == []
