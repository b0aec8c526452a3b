"""A sync that goes wrong inside a real run stops it with an error that names the cause.

The other ways in which one goes wrong are tested on a live engine in tests/unit/weight_sync/test_receiver.py.
"""

from pathlib import Path

import pytest

from tests.toy import ROOT, toy_recipe, train

pytestmark = pytest.mark.slow

PLANT = """
from rlhf.weight_sync.receiver import FileTransferEngine

def register():
    FileTransferEngine.mend = lambda self: None
    FileTransferEngine.check = lambda self: None
"""


def test_stale_head_stops_the_run_and_is_named(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    metadata = tmp_path / "planted-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nplanted = planted:register\n")
    (tmp_path / "planted.py").write_text(PLANT)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, output = train(toy_recipe(tmp_path), environment=environment)
    assert code == 2, output
    message = output[output.rindex("SyncError") :]
    assert "arrived intact in engine 0, but its log-probabilities differ" in message, output
    assert "Traceback" not in message
