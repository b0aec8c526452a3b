"""Kill what plays the episodes of a run, and the run itself in the middle of them: it ends as if nothing had been."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from tests.faults.test_resume import in_background, weights
from tests.toy import ROOT, metrics, toy_recipe, train

pytestmark = pytest.mark.slow
NUM_STEPS = 4
SAME = ("rollout/reward_mean", "rollout/num_tokens", "env/log/digits", "env/turns_mean")


def recipe_of(folder: Path) -> Path:
    recipe = toy_recipe(
        folder,
        sampling={"max_prompt_tokens": 64, "max_tokens": 12},
        schedule={"num_steps": NUM_STEPS},
        engine={"kind": "hf"},
        checkpoint={"every": 2, "export": False},
        eval={"every": 0},
        placement={"num_cpus": 2},
    )
    raw = yaml.safe_load(recipe.read_text())
    raw["model"]["chat_template"] = str(ROOT / "recipes/cpu/chat.jinja")
    raw["task"] |= {"rewards": [], "template": "chat", "needs_reference": False}
    raw["task"]["environment"] = {
        "use": f"{ROOT / 'tests/toy_environment.py'}:Digits",
        "limits": {"max_tokens": 128, "max_turns": 3},
    }
    recipe.write_text(yaml.safe_dump(raw))
    return recipe


def until(found: Callable[[], object], *, limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def below(driver: int) -> list[psutil.Process]:
    """An environment's keeper, its process, and those of its episodes."""
    # The first of them is gone once it has tried the environment.
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children():
            if "rlhf.episodes.zygote" in " ".join(process.cmdline()):
                return [process, *process.children(recursive=True)]
    return []


def playing(driver: int) -> list[psutil.Process]:
    """The same, once episodes are being played."""
    until(lambda: len(below(driver)) > 3)
    return below(driver)


def test_killed_environments_and_a_killed_driver_change_nothing(tmp_path: Path) -> None:
    recipe, run_dir = recipe_of(tmp_path), tmp_path / "killed"
    curve = run_dir / "metrics.jsonl"
    code, output = train(recipe, f"run_dir={tmp_path / 'whole'}")
    assert code == 0, output

    driver = in_background(recipe, f"run_dir={run_dir}")
    try:
        until(lambda: curve.is_file() and len(metrics(run_dir)) == 2)
        # After the checkpoint: an episode's process, then the one that all come from, then the driver.
        playing(driver.pid)[-1].kill()
        keeper, environment, *_ = playing(driver.pid)
        environment.kill()
        until(lambda: len(new := below(driver.pid)) > 3 and new[1] != environment)
        found = [keeper, *playing(driver.pid)]
    finally:
        driver.kill()
        output = driver.communicate()[0]
    assert "is started anew" in output
    psutil.wait_procs(found, timeout=60)
    assert not [process for process in found if process.is_running()]
    folders = Path(tempfile.gettempdir()).glob(f"rlhf-episodes-{found[0].pid}-*")
    assert not list(folders)

    code, output = train(recipe, f"run_dir={run_dir}")
    assert code == 0, output
    assert "resuming at step" in output
    whole, killed = (weights(tmp_path / name, tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(killed[name])), name
    steps = metrics(run_dir)
    assert [line["step"] for line in steps] == list(range(1, NUM_STEPS + 1))
    for before, after in zip(metrics(tmp_path / "whole"), steps, strict=True):
        assert [before[name] for name in SAME] == [after[name] for name in SAME]
