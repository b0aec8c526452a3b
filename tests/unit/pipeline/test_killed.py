"""kill -9 of the pipeline's process or of its stage's, at any moment: the next run goes on and ends the same."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from rlhf.content_hashes import ContentHashes
from tests.unit.pipeline import fake_stages
from tests.unit.pipeline.fake_stages import CHUNKS, run_here, write_pipeline

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
STAGES = 6
KILLS = 6


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*fake_stages.SCRIPT, "pipeline", str(path)], cwd=ROOT)


def results(folder: Path) -> dict[str, int]:
    """Result file -> when it was written."""
    return {str(file): file.stat().st_mtime_ns for file in folder.glob("run/stages/*/result.json")}


def outputs(folder: Path) -> dict[str, str]:
    """Stage -> what it left."""
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    found = {}
    for stage, where in manifest["stages"].items():
        result = json.loads((folder / "run" / where / "result.json").read_text())
        hashes = ContentHashes(folder / "nowhere")
        found[stage] = {
            name: hashes.of(folder / "run" / where / p) for name, p in result["artefacts"].items()
        }
    return found


def victim(process: subprocess.Popen[bytes], *, kills_stage: bool) -> psutil.Process:
    """The pipeline's process, or that of the stage it runs now, if there is one."""
    whole = psutil.Process(process.pid)
    return next(iter(whole.children() if kills_stage else []), whole)


def test_no_kill_repeats_a_finished_stage_or_changes_the_end(tmp_path, monkeypatch):
    path = write_pipeline(tmp_path)
    rng = random.Random(3)
    known: dict[str, int] = {}
    for number in range(KILLS):
        process = start(path)
        begun = len(list(tmp_path.glob("run/stages/*/progress.txt")))
        deadline = time.monotonic() + 300
        # Not before its first stage works, so that every attempt gets somewhere.
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(tmp_path.glob("run/stages/*/progress.txt"))) > begun:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is None:
            victim(process, kills_stage=bool(number % 2)).send_signal(signal.SIGKILL)
        process.wait(300)
        now = results(tmp_path)
        assert {file: now.get(file) for file in known} == known
        known = now
    process = start(path)
    assert process.wait(300) == 0
    now = results(tmp_path)
    assert {file: now[file] for file in known} == known
    assert len(now) == STAGES
    for file in tmp_path.glob("run/stages/*/progress.txt"):
        assert file.read_text().split() == list(map(str, range(CHUNKS))), "a chunk was done twice or never"
    monkeypatch.setattr(fake_stages, "PAUSE_S", 0.0)
    whole = tmp_path / "whole"
    assert_same_end(tmp_path, whole)


def assert_same_end(killed: Path, whole: Path) -> None:
    """A run that nobody killed leaves the same; its paths are those of the killed one but for the run folder."""
    path = killed / "pipeline.yaml"
    run_here(path, f"run_dir={whole / 'run'}")
    assert outputs(killed) == outputs(whole)
