"""The engine side of weights in a file: a vLLM weight-transfer engine, loaded only in vLLM's processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers, get_tensor_load_numel

from rlhf.errors import SyncError
from rlhf.weight_sync.files import read_weights

_HEAD_TOLERANCE = {torch.float32: 1e-4}
"""Relative; a packed bfloat16 head rounds differently: 1e-2."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What `FileSender.send` returns."""

    path: str
    version: int
    tensors: list[dict[str, Any]]


class FileTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Backends `cpu` and `disk`: loads a weight file; SyncError unless all of it landed everywhere."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Take the layers apart, so that they can be loaded and repacked."""
        # Found now: apart, a tied head and its owner no longer share one parameter.
        self._heads = tied_heads(self.model)
        initialize_layerwise_reload(self.model)
        self._sizes = parameter_sizes(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the parent's, without its accelerator synchronisation where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load every tensor, put the layers together again, refresh and check what vLLM derived from them.

        All in this step: vLLM's worker forgets a failed update, but not a failed finish.
        """
        try:
            self._load(list(self.read(asdict(update_info))))
            missing = incomplete_layers(self.model, self._sizes, except_for=[head for _, head in self._heads])
            if missing:
                raise SyncError(
                    f"version {update_info.version} left parameters without new weights: "
                    f"{', '.join(missing[:5])} ({len(missing)} layers). "
                    "The learner did not publish them, or the transfer lost them."
                )
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
        self.mend()
        self.check()

    def _load(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        try:
            loaded = set(self.model.load_weights(tensors))
        except ValueError as error:
            raise SyncError(
                f"the engine's {type(self.model).__name__} cannot load what was sent: {error}"
            ) from error
        # A selection bias is loaded in place, past the reload and its count.
        counted = [tensor for name, tensor in tensors if name.rpartition(".")[2] not in SKIP_LOAD_TENSORS]
        received = sum(tensor.numel() for tensor in counted)
        # Under tensor parallelism every worker loads only its share of each tensor.
        if self.parallel_config.world_size == 1 and loaded_elements(self._sizes) < received:
            passed_over = [name for name, _ in tensors if engine_name(self.model, name) not in loaded]
            raise SyncError(
                f"received but not loaded: {', '.join(passed_over[:5])} ({len(passed_over)} tensors). "
                f"{type(self.model).__name__} passed over them; are their names those of its checkpoint?"
            )

    def read(self, info: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of the file that `info` describes."""
        return read_weights(info)

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def mend(self) -> None:
        """Repack what the reload leaves unpacked: tied heads, which are never loaded, and experts on a CPU.

        Those vLLM packs when it makes their kernel, which it does once (vLLM 0.32).
        """
        for _, head in self._heads:
            head.quant_method.process_weights_after_loading(head)  # type: ignore[operator,union-attr]
        if self.device.type == "cpu":
            for layer in self.model.modules():
                kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
                if kernel is not None:
                    kernel.fused_experts.process_weights_after_loading(layer)

    def check(self) -> None:
        """Raise SyncError when a tied head still computes with older weights."""
        check_heads(self._heads)

    def shutdown(self) -> None:
        """Nothing to close."""


def engine_name(model: nn.Module, name: str) -> str:
    """The parameter that the checkpoint tensor `name` goes into (q, k and v share one)."""
    fused: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    for whole, parts in fused.items():
        for part in parts:
            name = name.replace(f".{part}.", f".{whole}.")
    return name


def parameter_sizes(model: nn.Module) -> dict[nn.Module, int]:
    """Elements that each layer expects since the reload began: of its parameters, biases included, not its buffers."""
    return {
        layer: sum(
            get_tensor_load_numel(tensor)
            for name, tensor in get_layer_params_buffers(layer)[0].items()
            if name not in SKIP_LOAD_TENSORS
        )
        for layer in model.modules()
    }


def loaded_elements(sizes: Mapping[nn.Module, int]) -> int:
    """Elements that went into any layer since the reload began (a layer that is complete counts in full)."""
    total = 0
    for layer, size in sizes.items():
        info = get_layerwise_info(layer)
        total += int(info.load_numel) if info.can_load() else size
    return total


def incomplete_layers(
    model: nn.Module, sizes: Mapping[nn.Module, int], *, except_for: Sequence[nn.Module]
) -> list[str]:
    """Layers that have not got all their weights since the reload began, as 'name (loaded of total)'."""
    tied = {id(layer) for layer in except_for}
    missing = []
    for name, layer in model.named_modules():
        info, total = get_layerwise_info(layer), sizes.get(layer, 0)
        if id(layer) in tied or not info.can_load():
            continue
        # A vocabulary is padded to the kernel's block: its last rows are never loaded.
        padded = isinstance(layer, VocabParallelEmbedding)
        loaded = int(info.load_numel)
        if total > 0 and (loaded == 0 or (loaded < total and not padded)):
            missing.append(f"{name} ({loaded} of {total})")
    return missing


def tied_heads(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Output heads with a packed copy (`cpu_linear`) of a weight that another layer owns."""
    owners: dict[int, nn.Module] = {}
    heads = []
    for name, layer in model.named_modules():
        weight = layer._parameters.get("weight")
        if weight is None:
            continue
        owner = owners.setdefault(id(weight), layer)
        if owner is not layer and "cpu_linear" in vars(layer):
            heads.append((name, layer))
    return heads


def check_heads(heads: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise SyncError when a tied head's packed copy computes something else than its weight."""
    for name, head in heads:
        weight: Tensor = head.weight  # type: ignore[assignment]
        ones = torch.ones(1, weight.shape[1], dtype=weight.dtype)
        expected = nn.functional.linear(ones, weight)
        gap = float((head.cpu_linear(ones, weight, None) - expected).abs().max())  # type: ignore[operator]
        scale = float(expected.abs().max()) + 1.0
        if not gap <= _HEAD_TOLERANCE.get(weight.dtype, 1e-2) * scale:
            raise SyncError(
                f"{name} is stale: all weights arrived, but the packed copy of the tied embeddings still "
                f"computes with older ones (off by {gap:.3g}). vLLM's reload does not repack a tied head: "
                "the receiver must."
            )
