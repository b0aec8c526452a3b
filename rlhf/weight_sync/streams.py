"""Weights over NCCL or CUDA IPC through vLLM's own trainer engines.

The driver pauses the engines, begins and finishes the update; in between every learner rank calls `send`, and
rank 0 makes the engines receive through `EngineLink`, because receiving must run while rank 0 sends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.errors import SyncError
from rlhf.interfaces import TensorSpec

Reach = Callable[[Mapping[str, Any]], None]
"""Blocks until every engine has done what the message asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLink:
    """How learner rank 0 reaches all engines from inside `send`: two blocking calls (unused elsewhere)."""

    init_transfer: Reach
    update: Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRendezvous:
    """Where learner rank 0 and all engine workers meet."""

    address: str
    port: int
    num_workers: int
    """Engines times tensor_parallel."""


class _Trainer(Protocol):
    def send_weights(self) -> None: ...

    def shutdown(self) -> None: ...


class StreamSender:
    """interfaces.WeightSender over vLLM's trainer engine. One per learner rank; the first `send` connects."""

    def __init__(
        self,
        connect: Callable[["_Client", "_Stream"], _Trainer],
        link: EngineLink,
        *,
        specs: Sequence[TensorSpec],
    ) -> None:
        self._connect = connect
        self._client = _Client(link)
        self._stream = _Stream(specs)
        self._trainer: _Trainer | None = None

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Mapping[str, Any] | None:
        """Stream every tensor into the engines. Returns None: nothing is left for the driver to pass on."""
        self._client.version = version
        self._stream.weights = weights
        if self._trainer is None:
            self._trainer = self._connect(self._client, self._stream)
        self._trainer.send_weights()
        return None

    def release(self) -> None:
        """Nothing outlives a send."""

    def close(self) -> None:
        """Leave the process group."""
        if self._trainer is not None:
            self._trainer.shutdown()
            self._trainer = None


def nccl_sender(
    *, rank: int, meet: NcclRendezvous, link: EngineLink, specs: Sequence[TensorSpec]
) -> StreamSender:
    """A sender that broadcasts packed buffers to all engine workers, which need GPUs of their own."""

    def connect(client: "_Client", stream: "_Stream") -> _Trainer:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info = NCCLTrainerInitInfo(
            rank=rank, master_address=meet.address, master_port=meet.port, world_size=1 + meet.num_workers
        )
        trainer: _Trainer = WeightTransferTrainerFactory.trainer_init(
            info, client=client, source=_source(stream)
        )
        return trainer

    return StreamSender(connect, link, specs=specs)


def ipc_sender(*, rank: int, link: EngineLink, specs: Sequence[TensorSpec]) -> StreamSender:
    """A sender for engines on the learner's own GPUs: hands over CUDA IPC handles of packed buffers."""

    def connect(client: "_Client", stream: "_Stream") -> _Trainer:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

        # One tensor never spans two buffers: the embedding of a 7B model alone exceeds vLLM's default.
        largest = max(torch.Size(s.shape).numel() * getattr(torch, s.dtype).itemsize for s in specs)
        size = max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, largest)
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=size)
        trainer: _Trainer = WeightTransferTrainerFactory.trainer_init(
            info, client=client, source=_source(stream)
        )
        return trainer

    return StreamSender(connect, link, specs=specs)


class _Client:
    """vLLM's VLLMWeightSyncClient. Start and finish are the driver's, so here they do nothing."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._link.init_transfer(init_info)

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        if isinstance(update_info, list):
            raise SyncError("vLLM asked for one update message per worker, which nccl and ipc never need")
        self._link.update({**update_info, "version": self.version})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


class _Stream:
    """One send's weights, checked against what was announced."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = specs
        self.weights: Iterable[tuple[str, Tensor]] = ()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        expected = iter(self.specs)
        for name, tensor in self.weights:
            spec = next(expected, None)
            found = TensorSpec(
                name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape)
            )
            if spec != found:
                raise SyncError(
                    f"the learner publishes {found}, but announced {spec}: the engines wait for the latter."
                )
            yield name, tensor
        left = next(expected, None)
        if left is not None:
            raise SyncError(f"tensor {left.name!r} was announced but not published by the learner.")


def _source(stream: _Stream) -> Any:
    """`stream` as vLLM's WeightSource."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(s.name, getattr(torch, s.dtype), s.shape) for s in stream.specs]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(stream)

    return Source()
