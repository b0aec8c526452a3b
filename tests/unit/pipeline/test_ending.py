"""A stage that would take an hour ends with the process that started it, however that ends."""

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from rlhf.errors import StageError
from rlhf.pipeline.runner import run_in_child
from tests.unit.pipeline import fake_stages
from tests.unit.pipeline.fake_stages import write_pipeline

ROOT = Path(__file__).parents[3]


@pytest.fixture
def running(tmp_path):
    """(pipeline, stage): two processes, the second at work."""
    path = write_pipeline(tmp_path)
    process = subprocess.Popen([*fake_stages.SCRIPT, "endless", str(path)], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    try:
        while not (tmp_path / "ledger.txt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline, "no stage was started"
            time.sleep(0.02)
        (stage,) = psutil.Process(process.pid).children()
        yield process, stage
    finally:
        process.kill()
        process.communicate()


def test_stage_ends_with_its_pipeline(running):
    process, stage = running
    process.kill()
    process.wait()
    stage.wait(300)  # raises if it goes on


def test_interrupt_is_passed_on_and_waited_for(running, tmp_path):
    process, stage = running
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    assert not stage.is_running()
    # The stage was told, not killed: it says where it was.
    assert said.count(b"KeyboardInterrupt") == 2
    assert not list(tmp_path.glob("run/stages/*/result.json"))


def test_how_a_stage_failed_is_told(tmp_path):
    for command, how in (
        (["false"], "ended with code 1"),
        (["sh", "-c", "kill -9 $$"], "was killed by signal 9"),
    ):
        with pytest.raises(StageError, match=f"rl {how}; .* The same command, without --redo, goes on"):
            run_in_child("rl", tmp_path / "stage.yaml", command=command)
