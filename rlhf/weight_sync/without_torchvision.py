"""vLLM serves models that see images where torchvision cannot be imported.

Of such models (Qwen2-VL) transformers has image processors that need no more than PIL, and takes them by itself where
a folder is loaded. Three places ask for torchvision all the same: vLLM's imports, processors that want to load a video
processor beside the image processor, and vLLM's look at the arguments of that.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

_IMAGES = "transformers.models.qwen2_vl.image_processing_qwen2_vl"
_PIL = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
_PROCESSORS = "transformers.processing_utils"


def stand_in() -> None:
    """Make the three places do without; nothing where torchvision can be imported, or when it is done already."""
    if _is_importable() or any(isinstance(finder, _PilImages) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _PilImages())
    if _PROCESSORS in sys.modules:
        _without_video(sys.modules[_PROCESSORS])
    else:
        sys.meta_path.insert(0, _AfterProcessors())


def _is_importable() -> bool:
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):  # of another torch: its operators are not there
        return False
    return True


class _PilImages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Qwen2-VL's image processor by its usual name, from the module that needs no torchvision."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == _IMAGES else None

    def exec_module(self, module: Any) -> None:
        pil: Any = importlib.import_module(_PIL)
        module.smart_resize = pil.smart_resize
        module.Qwen2VLImageProcessor = pil.Qwen2VLImageProcessorPil


class _AfterProcessors(importlib.abc.MetaPathFinder):
    """Changes transformers' processors when they are imported, which processes of text models never do."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _PROCESSORS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _without_video(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _without_video(processing: Any) -> None:
    mixin: Any = processing.ProcessorMixin
    attributes = mixin.get_attributes.__func__
    mixin.get_attributes = classmethod(
        lambda cls: [name for name in attributes(cls) if name != "video_processor"]
    )
    mixin.video_processor = SimpleNamespace(valid_kwargs=processing.VideosKwargs)
