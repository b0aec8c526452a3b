"""What a rank of any learner does beside training: hand over its weights, leave the device and the group."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.interfaces import SenderFactory, TensorSpec, WeightSender
from rlhf.learner.model import full_weights, weight_specs
from rlhf.learner.plan import RankPlace
from rlhf.learner.trained import TrainedModule


class LearnerRank(ABC):
    """The base of a rank. Every public method is a collective: all ranks call it together, in one order."""

    not_sent: ClassVar[Collection[str]] = ()
    """Weights that engines have from their model folder and that never change."""
    place: RankPlace
    dtype: torch.dtype
    policy: TrainedModule[Any, Any]
    sender: WeightSender | None = None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors in the compute dtype under Hugging Face names, one at a time, LoRA merged.

        They may share memory with the learner: copy them before the next update.
        """
        return ((n, t) for n, t in full_weights(self.policy.module, self.dtype) if n not in self.not_sent)

    def open_sender(self, make: SenderFactory) -> None:
        """Make this rank's half of the weight transfer; it is kept for the run."""
        specs = [
            TensorSpec(name=name, dtype=str(t.dtype).removeprefix("torch."), shape=tuple(t.shape))
            for name, t in weight_specs(self.policy.module, self.dtype)
            if name not in self.not_sent
        ]
        self.sender = make(self.place.rank, specs)

    def send(self, version: int) -> Mapping[str, Any] | None:
        """Hand the weights to the sender; rank 0 returns what the engines need to receive them."""
        assert self.sender is not None, "open_sender comes first"
        with torch.no_grad():
            return self.sender.send(self.weights(), version)

    def release_weights(self) -> None:
        """Free what `send` made."""
        if self.sender is not None:
            self.sender.release()

    def offload(self) -> None:
        """Move weights and optimizer state to host memory, so that an engine can have the GPU."""
        self._move("cpu")

    def reload(self) -> None:
        """Take the GPU back."""
        self._move(self.place.device)

    def close(self) -> None:
        """Leave the process group."""
        self.release_weights()
        dist.destroy_process_group()

    @abstractmethod
    def _move(self, device: str) -> None: ...
