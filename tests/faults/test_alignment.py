"""Retrieval alignment in the real loop: it resumes bit for bit, stays within its bound, refuses what is broken."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rlhf.vision.orders import read_orders, write_orders
from tests.retrievers import alignment_recipe

pytestmark = pytest.mark.slow


def vision(kind: str, arguments: list[str]) -> tuple[int, str]:
    """(exit code, everything printed) of `rlhf vision KIND`."""
    command = [sys.executable, "-m", "rlhf.cli", "vision", kind, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False
    )
    return done.returncode, done.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    scratch = folder / f"whole-{step}"
    dcp_to_torch_save(str(folder / "run" / "checkpoints" / f"step-{step:06d}" / "learner"), str(scratch))
    found: dict[str, torch.Tensor] = torch.load(scratch, weights_only=False)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, embedded anew after every second one."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = vision("train", alignment_recipe(folder, "orders.refresh_every=2"))
    assert code == 0, said
    return folder


def test_a_run_learns_its_lists_and_says_taste_and_retention(whole: Path) -> None:
    lines = metrics(whole)
    steps = [line for line in lines if line["step"] > 0]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["sync/probe_gap"] < 1e-4 for line in steps)
    assert max(line["order/index_age"] for line in steps) <= 2
    evaluated = [line for line in lines if line.get("eval/taste") is not None]
    assert [line["step"] for line in evaluated] == [0, 2, 4]
    assert {"eval/precision", "eval/recall_10", "eval/judge/brightness", "eval/hacking_alarm"} <= evaluated[
        0
    ].keys()
    assert (whole / "run" / "model" / "preprocessor_config.json").is_file()


def test_a_resumed_run_is_bit_for_bit_the_whole_one(whole: Path, tmp_path: Path) -> None:
    half = alignment_recipe(tmp_path, "orders.refresh_every=2", "schedule.num_steps=2")
    assert vision("train", half)[0] == 0
    code, said = vision("train", alignment_recipe(tmp_path, "orders.refresh_every=2"))
    assert code == 0, said
    once, twice = weights(whole, 4), weights(tmp_path, 4)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_running_ahead_stays_within_the_bound(tmp_path: Path) -> None:
    code, said = vision("train", alignment_recipe(tmp_path, "schedule.max_staleness=1", "eval.every=0"))
    assert code == 0, said
    assert max(line["buffer/staleness_max"] for line in metrics(tmp_path) if line["step"] > 0) <= 1


def test_a_judge_that_says_nan_ends_the_run_before_anything_is_trained(tmp_path: Path) -> None:
    broken = alignment_recipe(tmp_path, "judges.brightness.kwargs={is_broken: true}", "eval.every=0")
    code, said = vision("train", broken)
    assert code == 2
    assert "JudgeError" in said
    assert "'brightness' scored image" in said
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_judge_that_hangs_is_named_with_what_it_was_asked(tmp_path: Path) -> None:
    late = alignment_recipe(
        tmp_path, "judges.brightness.kwargs={nap_s: 60}", "timeouts.generate_s=5", "eval.every=0"
    )
    code, said = vision("train", late)
    assert code == 2
    assert "judges did not answer scores within 5 s" in said


def test_lists_from_a_file_are_trained_and_those_of_others_refused(tmp_path: Path) -> None:
    out = tmp_path / "orders.jsonl"
    made = vision("build-orders", [*alignment_recipe(tmp_path), "--out", str(out)])
    assert made[0] == 0, made[1]
    orders = read_orders(out)
    assert len(orders) == 16
    assert all(order.version == 0 for order in orders)
    code, said = vision("train", alignment_recipe(tmp_path, f"orders.path={out}", "eval.every=0", "--fresh"))
    assert code == 0, said
    folder = tmp_path / "other"
    folder.mkdir()
    other = alignment_recipe(folder, f"orders.path={out}", "judges.brightness.weight=2", "eval.every=0")
    code, said = vision("train", other)
    assert code == 2
    assert "StaleError" in said
    assert "Nothing was trained" in said
    write_orders(out, orders[:1])
