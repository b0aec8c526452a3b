"""Every file for GPUs passes `rlhf check` on rows of the documented columns, in place of its public sets."""

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml

from rlhf.check.report import Checking, Report
from rlhf.config.loading import read_with_overrides
from rlhf.pipeline.checking import look_into
from tests.recipes.documented_rows import ROWS
from tests.recipes.pictures import played, write_data
from tests.unit.rewards.served_models import served

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared/data/gsm8k"
ON_GPUS = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name != "cpu"]
NUM_ROWS = 6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A copy of recipes/ that reads files, `extends:` laid under; and what was checked of it before.

    Recipes of alignment read pictures of ours, and ask a server of ours.
    """
    folder = tmp_path_factory.mktemp("recipes")
    write_data(folder / "data")
    with served(played) as server:
        for path in ON_GPUS:
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            values = with_files(read_with_overrides(path), folder)
            values = values if aligns(values) else one_worker(values)
            text = re.sub(r"http://127\.0\.0\.1:\d+", server.address, yaml.safe_dump(values, sort_keys=False))
            copy.write_text(text)
        yield folder, {}


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_for_gpus_passes_check(path, local, monkeypatch):
    folder, seen = local
    monkeypatch.chdir(folder)
    checking = Checking(report=Report(), code_dir=ROOT, num_rows=NUM_ROWS, seen=seen)
    asyncio.run(look_into(folder / path.relative_to(ROOT), [], checking))
    assert [finding for finding in checking.report.findings if finding.is_fatal] == []
    if aligns(read_with_overrides(path)):
        shown = checking.report.facts
        assert {"list", "rephraser", "eval.captions"} <= shown.keys()
        assert "5 rows" in shown["list"]["lines"][0]


def aligns(values):
    """Whether a file is a recipe of retrieval alignment."""
    return {"model", "data"} <= values.keys()


def with_files(value, folder):
    """A copy in which every hub set is a file: GSM8K's own, where it is on this machine, else one documented row."""
    if isinstance(value, dict) and isinstance(value.get("dataset"), str):
        file = GSM8K / f"{value.get('split', 'train')}.jsonl"
        if "gsm8k" not in value["dataset"] or not file.is_file():
            file = folder / f"{re.sub('[^a-z0-9]+', '-', value['dataset'].lower())}.jsonl"
            file.write_text(json.dumps(ROWS[value["dataset"], value.get("mapper")]) + "\n")
        kept = {key: inner for key, inner in value.items() if key not in ("dataset", "split")}
        return kept | {"file": str(file), "limit": NUM_ROWS}
    if isinstance(value, dict):
        return {key: with_files(inner, folder) for key, inner in value.items()}
    return [with_files(inner, folder) for inner in value] if isinstance(value, list) else value


def one_worker(values):
    """A copy with one reward worker, whatever it says: a few rows need no more. Stages that only train have none."""
    copy = yaml.safe_load(re.sub(r"reward_workers: \d+", "reward_workers: 1", yaml.safe_dump(values)))
    kinds = {stage["kind"] for stage in copy.get("stages", {}).values()}
    if kinds and kinds <= {"sft", "distill", "dpo", "reward_model", "merge"}:
        return copy
    above = copy.setdefault("shared", {}) if "stages" in copy else copy
    above.setdefault("task", {})["reward_workers"] = 1
    return copy
