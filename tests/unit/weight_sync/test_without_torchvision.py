"""vLLM's plugin makes models that see images importable where torchvision is not, and only there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_vision

ROOT = Path(__file__).resolve().parents[3]
absent = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@absent
@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import transformers.processing_utils"])
def test_processor_loads_without_torchvision(tmp_path: Path, first: str) -> None:
    folder = save_tiny_vision(tmp_path)
    code = f"""
{first}
from rlhf.weight_sync.without_torchvision import stand_in
stand_in(); stand_in()
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize
from transformers import AutoProcessor, Qwen2VLProcessor
found = AutoProcessor.from_pretrained({str(folder)!r})
print(type(found).__name__, Qwen2VLImageProcessor.__name__, Qwen2VLProcessor.video_processor.valid_kwargs.__name__)
"""
    assert run(code).split() == ["Qwen2VLProcessor", "Qwen2VLImageProcessorPil", "VideosKwargs"]


def test_nothing_is_changed_where_torchvision_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
before = list(sys.meta_path)
from rlhf.weight_sync.without_torchvision import stand_in
stand_in()
assert sys.meta_path == before
print("same")
"""
    assert run(code).strip() == "same"


def test_a_broken_torchvision_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from rlhf.weight_sync.without_torchvision import stand_in
num = len(sys.meta_path)
stand_in()
print(len(sys.meta_path) - num)
"""
    assert run(code).strip() == "2"
