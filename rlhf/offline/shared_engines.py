"""Ray and engines that the models of an evaluation take in turn: starting them costs more than most measurements."""

import json
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf.cluster.engines import EngineClient
from rlhf.cluster.launch import ray_session
from rlhf.config.schema import PlacementConfig, Recipe
from rlhf.errors import SyncError
from rlhf.materials import Materials
from rlhf.processes import open_engines

logger = logging.getLogger(__name__)
_SHAPE_FILES = ("config.json", "generation_config.json")
_SAYS_NOTHING = ("_name_or_path", "transformers_version")


class SharedEngines:
    """Engines for one model after the other, inside one Ray.

    A model of the shape of the one before (config, dtype, engine settings) gets its engines: they load its checkpoint
    as an update that is complete or fails, and forget what they computed before. Any other gets engines of its own.
    """

    def __init__(self, code_dir: Path) -> None:
        self._code_dir = code_dir
        self._ray = AsyncExitStack()
        self._placement: PlacementConfig | None = None
        self._engines = AsyncExitStack()
        self._engine: EngineClient | None = None
        self._shape: tuple[Any, ...] = ()
        self._version = 0

    async def __aenter__(self) -> "SharedEngines":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._close_engines()
        finally:
            await self._ray.aclose()

    async def open_ray(self, placement: PlacementConfig) -> None:
        """Be inside Ray, the one that is open if it is placed so."""
        if self._placement == placement:
            return
        await self._close_engines()
        await self._ray.aclose()
        self._placement = None
        self._ray.enter_context(ray_session(placement, code_dir=self._code_dir))
        self._placement = placement

    async def of(self, materials: Materials) -> EngineClient:
        """Engines that hold the weights of `materials.model_folder`."""
        await self.open_ray(materials.recipe.placement)
        shape = _shape(materials)
        if self._engine is not None and shape == self._shape and await self._load(materials.model_folder):
            return self._engine
        await self._close_engines()
        # Checkpoints reach running engines as files do; the other kinds of transfer need a learner.
        sync = materials.recipe.sync.model_copy(update={"kind": "disk"})
        materials = replace(materials, recipe=materials.recipe.model_copy(update={"sync": sync}))
        self._engine = await self._engines.enter_async_context(open_engines(materials))
        self._shape = shape
        return self._engine

    async def _load(self, folder: str) -> bool:
        """Whether the running engines took the checkpoint; where not, they are of no more use."""
        assert self._engine is not None
        self._version += 1
        try:
            await self._engine.pause()
            await self._engine.begin_update()
            await self._engine.update({"path": folder, "version": self._version, "tensors": []})
            await self._engine.finish_update(self._version)
            await self._engine.resume()
        except SyncError as error:
            logger.info("engines of its own for %s, which those running cannot load: %s", folder, error)
            return False
        return True

    async def _close_engines(self) -> None:
        self._engine, self._version = None, 0
        await self._engines.aclose()


def _shape(materials: Materials) -> tuple[Any, ...]:
    """What two models must have in common to take turns in the same engines."""
    recipe: Recipe = materials.recipe
    model = (recipe.model.dtype, recipe.model.trust_remote_code, recipe.longest_context, recipe.seed)
    return (materials.device, recipe.engine, *model, *(_read(materials, name) for name in _SHAPE_FILES))


def _read(materials: Materials, name: str) -> dict[str, Any]:
    path = Path(materials.model_folder) / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: value for key, value in found.items() if key not in _SAYS_NOTHING}
