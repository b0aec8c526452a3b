"""A sharded module that is trained: micro-batches in, optimizer steps and reduced metrics out."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rlhf.config.schema import LearnerConfig
from rlhf.errors import LearnerError
from rlhf.interfaces import LossOutput, UpdateMetrics
from rlhf.learner.optimizer import build_optimizer, clip_gradients, learning_rate


class MicroBatch(Protocol):
    """What one forward and backward pass is of."""

    @property
    def is_empty(self) -> bool:
        """It has nothing to learn from, and is there for the other ranks' sake."""

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""


M = TypeVar("M", bound=nn.Module)
B = TypeVar("B", bound=MicroBatch)
Loss = Callable[[Tensor, Tensor | None, B], LossOutput]
_METRICS = {"learner": "update", "critic": "critic"}


class TrainedModule(Generic[M, B]):
    """Policy or critic, with an AdamW and a schedule of its own. Updates are collectives."""

    def __init__(
        self,
        module: M,
        score: Callable[[M, B], tuple[Tensor, Tensor | None]],
        *,
        section: Literal["learner", "critic"],
        config: LearnerConfig,
        total_steps: int,
    ) -> None:
        """`score` gives the loss its first two arguments; `section` is the recipe's, named in errors."""
        self.module, self.section, self.config = module, section, config
        self.step, self.total_steps = 0, total_steps
        self.device = next(module.parameters()).device
        self.optimizer = build_optimizer(module, config)
        # Kept: between forward and reshard the module's own attributes are the gathered copies.
        self.parameters = {name.removeprefix("model."): p for name, p in module.named_parameters()}
        self._score = score

    def update(self, minibatches: Sequence[Sequence[B]], loss: Loss[B]) -> UpdateMetrics:
        """One optimizer step per mini-batch; see FsdpLearner.update."""
        sums: dict[str, Tensor] = {}
        norms: list[float] = []
        forward_backward_s = optimizer_s = 0.0
        for microbatches in minibatches:
            started = self._now()
            self.accumulate(microbatches, loss, sums)
            accumulated = self._now()
            norms.append(self.apply())
            forward_backward_s += accumulated - started
            optimizer_s += self._now() - accumulated
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # a colocated engine is about to want this memory
        values = _reduce(sums)
        values[f"{_METRICS[self.section]}/grad_norm"] = sum(norms) / len(norms)
        values[f"{_METRICS[self.section]}/lr"] = self.optimizer.param_groups[0]["lr"]
        return UpdateMetrics(values=values, forward_backward_s=forward_backward_s, optimizer_s=optimizer_s)

    def accumulate(self, microbatches: Sequence[B], loss: Loss[B], sums: dict[str, Tensor]) -> None:
        """Add the gradient of the micro-batches, summed over ranks, and their metric sums."""
        assert isinstance(self.module, FSDPModule)
        for index, batch in enumerate(microbatches):
            # A CPU has the memory to reduce once; on a GPU unreduced gradients would be whole, not sharded.
            is_last = index == len(microbatches) - 1
            self.module.set_requires_gradient_sync(is_last or self.device.type != "cpu")
            batch = batch.to(self.device)
            scores, entropy = self._score(self.module, batch)
            if batch.is_empty:
                scores.sum().backward()
                continue
            output = loss(scores, entropy, batch)
            output.loss.backward()
            _add_sums(sums, output)

    def apply(self) -> float:
        """Clip, step, clear the gradient; return its norm before clipping."""
        norm = clip_gradients(self.parameters.values(), self.config.max_grad_norm)
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise LearnerError(
                f"{self.section}, optimizer step {self.step}: the gradient norm is {norm}, expected a finite "
                f"number. Nothing was applied. Lower {self.section}.lr, or look at the rewards and logprobs "
                "of this step."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.total_steps, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return norm

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: this rank's shards of weights and optimizer state, by name."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state[f"model.{name}"] = parameter.detach()
            for kind, value in self.optimizer.state[parameter].items() if parameter.requires_grad else ():
                state[f"optimizer.{kind}.{name}"] = value
        return state

    def move(self, device: str) -> None:
        """Weights and optimizer state to `device`."""
        self.module.to(device)
        for state in self.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items()})

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _add_sums(sums: dict[str, Tensor], output: LossOutput) -> None:
    for name, (numerator, denominator) in output.sums.items():
        pair = torch.stack([numerator.detach().double(), denominator.detach().double()])
        if name not in sums:
            sums[name] = pair
        else:
            sums[name] = torch.maximum(sums[name], pair) if name.endswith("_max") else sums[name] + pair


def _reduce(sums: dict[str, Tensor]) -> dict[str, float]:
    """Over ranks: `_max` entries by max, the others summed, then divided. A rank without tokens has no entries."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, {name: pair.tolist() for name, pair in sums.items()})
    values: dict[str, float] = {}
    for name in dict.fromkeys(name for of_rank in gathered for name in of_rank):
        pairs = [of_rank[name] for of_rank in gathered if name in of_rank]
        if name.endswith("_max"):
            values[name] = max(above for above, _ in pairs)
        elif below := sum(below for _, below in pairs):
            values[name] = sum(above for above, _ in pairs) / below
    return values
