"""From `sync.kind` to both ends of a weight transfer, wired through Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray

from rlhf.cluster.engines import EngineClient
from rlhf.cluster.learners import LearnerClient
from rlhf.config.alignment import AnyRecipe
from rlhf.engines.choice import choose_engine
from rlhf.errors import ConfigError
from rlhf.interfaces import SenderFactory, TensorSpec, WeightSender
from rlhf.weight_sync.files import FileSender
from rlhf.weight_sync.probe import Probe
from rlhf.weight_sync.streams import EngineLink, NcclRendezvous, ipc_sender, nccl_sender
from rlhf.weight_sync.verified import VerifiedSync

SyncKind = Literal["cpu", "nccl", "ipc", "disk"]


def choose_sync(recipe: AnyRecipe, device: str) -> SyncKind:
    """What `sync.kind: auto` means here. Raises ConfigError for a kind that device or engine cannot do."""
    kind = recipe.sync.kind
    if choose_engine(recipe.engine.kind)[0] == "hf":
        if kind in ("nccl", "ipc"):
            raise ConfigError(
                f"sync.kind is {kind}, which only vLLM speaks, but the engine is hf. Use sync.kind: auto."
            )
        return "cpu" if kind == "auto" else kind
    if kind == "auto":
        if device == "cpu":
            return "cpu"
        return "ipc" if recipe.placement.kind == "colocated" else "nccl"
    if device == "cpu" and kind in ("nccl", "ipc"):
        raise ConfigError(
            f"sync.kind is {kind}, which needs GPUs, but the device is cpu. Use sync.kind: auto."
        )
    if kind == "ipc" and recipe.placement.kind == "split":
        raise ConfigError(
            "sync.kind is ipc but placement.kind is split: CUDA IPC reaches engines on the learner's own GPUs only. "
            "Use sync.kind: nccl, or placement.kind: colocated."
        )
    return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What a sync runs between."""

    learner: LearnerClient
    engine: EngineClient
    scratch: Path
    """Folder that every machine of the run sees (`disk`)."""


async def open_sync(kind: SyncKind, recipe: AnyRecipe, ends: Ends, probe: Probe) -> VerifiedSync:
    """Make a sender in every learner rank and return the sync that drives it."""
    factory = await _factory(kind, recipe, ends)
    await ends.learner.open_sender(factory)
    return VerifiedSync(
        ends.learner,
        ends.engine,
        probe=probe,
        streamed=kind in ("nccl", "ipc"),
        colocated=recipe.placement.kind == "colocated",
    )


async def _factory(kind: SyncKind, recipe: AnyRecipe, ends: Ends) -> SenderFactory:
    match kind:
        case "cpu":
            return partial(_file_sender, run=recipe.name, folder=None)
        case "disk":
            return partial(_file_sender, run=recipe.name, folder=str(ends.scratch.resolve()))
        case "ipc":
            return partial(_ipc_sender, link=_link(ends.engine))
        case "nccl":
            address, port = await ends.learner.rendezvous()
            workers = recipe.engine.num_engines * recipe.engine.tensor_parallel
            meet = NcclRendezvous(address=address, port=port, num_workers=workers)
            return partial(_nccl_sender, link=_link(ends.engine), meet=meet)


def _link(engines: EngineClient) -> EngineLink:
    handles = [engine.handle for engine in engines.engines]
    return EngineLink(
        init_transfer=partial(_on_every, handles, "init_transfer"),
        update=partial(_on_every, handles, "update"),
    )


def _on_every(handles: Sequence[Any], method: str, message: Mapping[str, Any]) -> None:
    """Called inside learner rank 0, which sends while the engines receive."""
    ray.get([handle.call.remote(method, message) for handle in handles])


def _file_sender(rank: int, specs: Sequence[TensorSpec], *, run: str, folder: str | None) -> WeightSender:
    del specs
    return FileSender(run=run, rank=rank, folder=None if folder is None else Path(folder))


def _ipc_sender(rank: int, specs: Sequence[TensorSpec], *, link: EngineLink) -> WeightSender:
    return ipc_sender(rank=rank, link=link, specs=specs)


def _nccl_sender(
    rank: int, specs: Sequence[TensorSpec], *, link: EngineLink, meet: NcclRendezvous
) -> WeightSender:
    return nccl_sender(rank=rank, meet=meet, link=link, specs=specs)
