"""The receiver with faults that a test plants by `init_transfer({"fault": ...})`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo

from rlhf.weight_sync.receiver import FileTransferEngine

DROPPED = "model.layers.2.self_attn.k_proj.weight"


@dataclass
class FaultInfo(WeightTransferInitInfo):
    """fault: '' (none), 'stale_head' (no mend), 'unnoticed_stale_head' (nor its check), 'dropped', 'stale_tower'."""

    fault: str = ""


class FaultyTransfer(FileTransferEngine):
    init_info_cls = FaultInfo  # type: ignore[assignment]
    _fault = ""
    _tower: ClassVar[dict[str, Tensor]] = {}
    """The vision tower as it was received last."""

    def init_transfer_engine(self, init_info: FaultInfo) -> None:  # type: ignore[override]
        self._fault = init_info.fault

    def read(self, info: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().read(info):
            if self._fault == "stale_tower" and name in self._tower:
                yield name, self._tower[name]
            elif self._fault != "dropped" or name != DROPPED:
                if name.startswith("visual."):
                    self._tower[name] = tensor.clone()
                yield name, tensor

    def mend(self) -> None:
        if "stale_head" not in self._fault:
            super().mend()

    def check(self) -> None:
        if self._fault != "unnoticed_stale_head":
            super().check()


def register() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine("cpu_faulty", FaultyTransfer)
