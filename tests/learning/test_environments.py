"""Episodes of several turns are learned, synchronously and asynchronously; from scores by chance nothing is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toy import ROOT, column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow


def played(folder: Path, *, shuffled: bool = False, **sections: Any) -> list[dict[str, Any]]:
    recipe = toy_recipe(folder, sampling={"max_prompt_tokens": 64, "max_tokens": 12}, **sections)
    raw = yaml.safe_load(recipe.read_text())
    raw["model"]["chat_template"] = str(ROOT / "recipes/cpu/chat.jinja")
    raw["task"] |= {"rewards": [], "template": "chat", "needs_reference": False}
    raw["task"]["environment"] = {
        "use": f"{ROOT / 'tests/toy_environment.py'}:Digits",
        "kwargs": {"shuffled": shuffled},
        "limits": {"max_tokens": 128, "max_turns": 3},
    }
    raw["eval"] = {"every": 0}
    recipe.write_text(yaml.safe_dump(raw))
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    return metrics(folder / "run")


def rise(steps: list[dict[str, Any]]) -> float:
    shares = column(steps, "env/log/digits")
    return sum(shares[-3:]) / 3 - sum(shares[:3]) / 3


def test_episodes_are_learned_synchronously_and_their_tokens_agree_with_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    steps = played(tmp_path, schedule={"num_steps": 30})
    assert rise(steps) > 0.2
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "env/turns_max")) == 2
    assert max(column(steps, "env/dropped_tokens")) == 0


def test_episodes_are_learned_asynchronously(tmp_path: Path) -> None:
    steps = played(tmp_path, schedule={"num_steps": 24, "max_staleness": 3}, engine={"kind": "hf"})
    assert rise(steps) > 0.2
    assert 0 < max(column(steps, "buffer/staleness_max")) <= 3


def test_scores_by_chance_teach_nothing(tmp_path: Path) -> None:
    steps = played(tmp_path, shuffled=True, schedule={"num_steps": 16}, engine={"kind": "hf"})
    assert rise(steps) < 0.1
