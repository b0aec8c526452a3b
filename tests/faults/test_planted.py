"""A sync that goes wrong inside a real run stops it with an error that names the cause."""

from pathlib import Path

import pytest

from tests.toy import ROOT, toy_recipe, train

pytestmark = pytest.mark.slow

PLANT = """
import os
from rlhf.engines.vllm import VllmEngine
from rlhf.weight_sync.receiver import FileTransferEngine

fault = os.environ["RLHF_TEST_FAULT"]
read, update = FileTransferEngine.read, VllmEngine.update


def read_but_one(self, info):
    return (pair for pair in read(self, info) if pair[0] != "model.layers.1.mlp.down_proj.weight")


async def update_as_another_version(self, info):
    await update(self, {**info, "version": info["version"] - 1})


def register():
    if fault == "stale lm_head":
        FileTransferEngine.mend = lambda self: None
        FileTransferEngine.check = lambda self: None
    elif fault == "skipped tensor":
        FileTransferEngine.read = read_but_one
    elif fault == "swapped version":
        VllmEngine.update = update_as_another_version
"""


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("stale lm_head", "arrived intact in engine 0, but its log-probabilities differ"),
        ("skipped tensor", "model.layers.1.mlp.down_proj"),
        ("swapped version", "version 0"),
    ],
)
def test_planted_fault_stops_the_run_and_names_the_cause(tmp_path: Path, fault: str, cause: str) -> None:
    pytest.importorskip("vllm")
    metadata = tmp_path / "planted-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nplanted = planted:register\n")
    (tmp_path / "planted.py").write_text(PLANT)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "RLHF_TEST_FAULT": fault}
    code, output = train(toy_recipe(tmp_path), environment=environment)
    assert code == 2, output
    message = output[output.rindex("SyncError") :]
    assert cause in message, output
    assert "Traceback" not in message
