"""Two scenarios, one of them played, and every schedule at once, on vLLM and FSDP2: killed, resumed bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.faults.test_resume import kill_after, weights
from tests.toy import ROOT, column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow
NUM_STEPS = 6
TIMES = ("time", "sync/", "reward/", "rollout/tokens_per_s", "buffer/in_flight", "env/answer_s")
"""Of these, what takes how long decides."""
LENGTH = "def short(completion):\n    return 1 - len(completion) / 16\n"


def mixed_recipe(folder: Path) -> Path:
    (folder / "length.py").write_text(LENGTH)
    recipe = toy_recipe(
        folder,
        schedule={"num_steps": NUM_STEPS, "samples_per_prompt": 4},
        algorithm={"kl_coef": 0.01, "reference_reset_every": 2},
        sampling={"max_prompt_tokens": 64, "max_tokens": 10, "temperature_points": [[1, 1.0], [4, 0.7]]},
    )
    raw: dict[str, Any] = yaml.safe_load(recipe.read_text())
    raw["model"]["chat_template"] = str(ROOT / "recipes/cpu/chat.jinja")
    task = raw["task"]
    play = {"use": f"{ROOT / 'tests/toy_environment.py'}:Digits", "limits": {"max_tokens": 128}}
    raw["task"] = {
        "rewards": [{"use": f"{folder / 'length.py'}:short", "weight": 0.5, "first_step": -3}],
        "scenarios": {
            "write": {
                "train": task["train"],
                "heldout": task["heldout"],
                "rewards": task["rewards"],
                "weight_points": [[0, 3], [4, 1]],
            },
            "play": {"train": task["train"], "environment": play},
        },
    }
    recipe.write_text(yaml.safe_dump(raw))
    return recipe


def learned(step: dict[str, Any]) -> dict[str, Any]:
    """What a step's metrics say of what was learned, not of how long it took."""
    return {name: value for name, value in step.items() if not name.startswith(TIMES)}


def test_scenarios_and_schedules_act_together_and_resume_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    recipe = mixed_recipe(tmp_path)
    code, output = train(recipe, f"run_dir={tmp_path / 'whole'}")
    assert code == 0, output
    steps = metrics(tmp_path / "whole")
    _assert_schedules_acted(steps)
    killed = tmp_path / "killed"
    kill_after(recipe, run_dir=killed, step=3)
    code, output = train(recipe, f"run_dir={killed}")
    assert code == 0, output
    assert "resuming at step" in output
    whole, resumed = weights(tmp_path / "whole", tmp_path / "a.pt"), weights(killed, tmp_path / "b.pt")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(resumed[name])), name
    assert [learned(step) for step in metrics(killed)] == [learned(step) for step in steps]


def _assert_schedules_acted(steps: list[dict[str, Any]]) -> None:
    expected = [1.0, 1.0, 0.9, 0.8, 0.7, 0.7]
    assert column(steps, "rollout/temperature") == pytest.approx(expected, abs=1e-6)
    # A reset makes the policy the reference: the KL before the next update is 0 there, and nowhere else.
    kl = column(steps, "update/kl")
    assert [value < 1e-7 for value in kl] == [True, False, True, False, True, False], kl
    wanted = [weight / (weight + 1) for weight in (3, 2.5, 2, 1.5, 1, 1)]
    assert column(steps, "scenario/write/share") == pytest.approx(wanted, abs=1 / 8)
    graded = ["reward/length.short/mean" in step for step in steps]
    assert graded == [False, False, False, True, True, True]
    assert min(column(steps, "scenario/play/num_tokens")) > 0
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-3
