"""One rank of the learner. Every public method is a collective: all ranks call it together, in one order."""

import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from rlhf.batch import Batch
from rlhf.config.schema import ModelConfig
from rlhf.errors import LearnerError
from rlhf.interfaces import LossFunction, LossOutput, SenderFactory, TensorSpec, UpdateMetrics, WeightSender
from rlhf.learner.checkpoint import export_model, load_state, read_facts, save_state
from rlhf.learner.forward import PackedPolicy, score_tokens
from rlhf.learner.model import (
    adapters_off,
    build_model,
    full_weights,
    scatter_from_first,
    shard,
    tokenizer_files,
    weight_shapes,
)
from rlhf.learner.optimizer import build_optimizer, clip_gradients, learning_rate
from rlhf.learner.plan import LearnerPlan, RankPlace

logger = logging.getLogger(__name__)


class FsdpLearner:
    """A rank of FSDP2 training: packed forward, global gradients, AdamW, checkpoints, weights for engines."""

    def __init__(self, plan: LearnerPlan, place: RankPlace) -> None:
        self.plan, self.place = plan, place
        self.step = 0
        self.device = torch.device(place.device)
        self.dtype = getattr(torch, plan.model.dtype)
        if self.device.type == "cpu":
            torch.set_num_threads(plan.learner.threads)
        mesh = _join(place)
        torch.manual_seed(plan.seed + place.rank)
        self.policy = self._build(mesh, plan.model)
        self.optimizer = build_optimizer(self.policy, plan.learner)
        # Kept: between forward and reshard the module's own attributes are the gathered copies.
        self.parameters = dict(self.policy.model.named_parameters())
        self.sender: WeightSender | None = None
        self.reference: PackedPolicy | None = None
        if plan.needs_reference and plan.model.lora is None:
            self.reference = self._build(mesh, plan.model).requires_grad_(False)
        if place.rank == 0:
            sizes = [p.numel() for p in self.parameters.values()]
            trained = sum(p.numel() for p in self.parameters.values() if p.requires_grad)
            logger.info(
                "learner: %s, %.1f M parameters, %.1f M trained, %d ranks on %s",
                type(self.policy.model).__name__,
                sum(sizes) / 1e6,
                trained / 1e6,
                place.world_size,
                place.device,
            )

    def _build(self, mesh: DeviceMesh, model: ModelConfig) -> PackedPolicy:
        first = self.place.rank == 0
        network = build_model(model, self.plan.seed, on_meta=not first)
        if self.plan.learner.activation_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        policy = PackedPolicy(network, self.plan.learner.logprob_chunk).train()
        several = self.place.world_size > 1
        full = {name: p.detach() for name, p in policy.named_parameters()} if several and first else {}
        shard(policy, mesh, self.dtype)
        if first:
            policy.to(self.device)
        else:
            policy.to_empty(device=self.device)
        if several:
            scatter_from_first(policy, full, self.device)
        return policy

    def update(self, minibatches: Sequence[Sequence[Batch]], loss: LossFunction) -> UpdateMetrics:
        """One optimizer step per mini-batch, each this rank's list of micro-batches (as many on every rank).

        Metrics are reduced over micro-batches and ranks; a metric whose denominator is 0 is left out.
        Raises LearnerError when a gradient is not finite; the weights are then those of the step before.
        """
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
        values["update/grad_norm"] = sum(norms) / len(norms)
        values["update/lr"] = self.optimizer.param_groups[0]["lr"]
        return UpdateMetrics(values=values, forward_backward_s=forward_backward_s, optimizer_s=optimizer_s)

    def accumulate(self, microbatches: Sequence[Batch], loss: LossFunction, sums: dict[str, Tensor]) -> None:
        """Add the gradient of the micro-batches, summed over ranks, and their metric sums."""
        for index, batch in enumerate(microbatches):
            # A CPU has the memory to reduce once; on a GPU unreduced gradients would be whole, not sharded.
            is_last = index == len(microbatches) - 1
            _fsdp(self.policy).set_requires_gradient_sync(is_last or self.device.type != "cpu")
            batch = batch.to(self.device)
            scores = score_tokens(self.policy, batch, self.plan.entropy)
            if batch.num_tokens == 0:
                scores.logprobs.sum().backward()  # type: ignore[no-untyped-call]
                continue
            output = loss(scores.logprobs, scores.entropy, batch)
            output.loss.backward()  # type: ignore[no-untyped-call]
            _add_sums(sums, output)

    def apply(self) -> float:
        """Clip, step, clear the gradient; return its norm before clipping."""
        norm = clip_gradients(self.parameters.values(), self.plan.learner.max_grad_norm)
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise LearnerError(
                f"optimizer step {self.step}: the gradient norm is {norm}, expected a finite number. "
                "Nothing was applied. Lower learner.lr, or look at the rewards and logprobs of this step."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan.total_steps, self.plan.learner)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return norm

    def logprobs(self, microbatches: Sequence[Batch], reference: bool = False) -> list[Tensor]:
        """[N] per micro-batch, on the CPU: log-probability of each trained token, 0 elsewhere."""
        with self._inference(reference) as policy:
            return [score_tokens(policy, b.to(self.device), "none").logprobs.cpu() for b in microbatches]

    def probe(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """[sequence][T-1]: log-probability, at temperature 1, of each token after the first."""
        batch = _probe_batch(sequences)
        (scores,) = self.logprobs([batch])
        rows = torch.split(scores, batch.row_lengths().tolist())
        return [row[1:].tolist() for row in rows]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors in the compute dtype under Hugging Face names, one at a time, LoRA merged.

        They may share memory with the learner: copy them before the next update.
        """
        return full_weights(self.policy, self.dtype)

    def open_sender(self, make: SenderFactory) -> None:
        """Make this rank's half of the weight transfer; it is kept for the run."""
        specs = [
            TensorSpec(name=n, dtype=self.plan.model.dtype, shape=shape)
            for n, shape in weight_shapes(self.policy)
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

    def save(self, folder: str) -> None:
        """Model, optimizer, schedule and random state into `folder`, readable at any number of ranks."""
        shapes = {name: list(p.shape) for name, p in self.parameters.items()}
        facts = {"step": self.step, "world_size": self.place.world_size, "parameters": shapes}
        save_state(Path(folder), self._state() | {self._rng_key: torch.get_rng_state()}, facts)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote. Raises CheckpointError when it belongs to another model."""
        facts = read_facts(Path(folder), {name: list(p.shape) for name, p in self.parameters.items()})
        state = self._state()
        if self.place.rank < facts["world_size"]:
            state[self._rng_key] = torch.get_rng_state()
        load_state(Path(folder), state)
        if self._rng_key in state:
            torch.set_rng_state(state[self._rng_key])
        self.step = facts["step"]

    def export(self, folder: str) -> None:
        """A Hugging Face folder, with the tokenizer files of the model it started from."""
        shape = build_model(self.plan.model.model_copy(update={"lora": None}), 0, on_meta=True)
        export_model(Path(folder), shape, self.weights())
        source = self.plan.model.tokenizer or self.plan.model.path
        if self.place.rank == 0 and source is not None and source != "characters":
            for file in tokenizer_files(source):
                shutil.copy(file, folder)
            if self.plan.model.chat_template is not None:
                shutil.copy(self.plan.model.chat_template, Path(folder) / "chat_template.jinja")

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

    def _move(self, device: str) -> None:
        if self.device.type == "cpu":
            return
        for policy in filter(None, (self.policy, self.reference)):
            policy.to(device)
        for state in self.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items()})
        torch.cuda.empty_cache()

    @property
    def _rng_key(self) -> str:
        return f"rng.{self.place.rank}"

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state[f"model.{name}"] = parameter.detach()
            for kind, value in self.optimizer.state[parameter].items() if parameter.requires_grad else ():
                state[f"optimizer.{kind}.{name}"] = value
        return state

    @contextmanager
    def _inference(self, reference: bool) -> Iterator[PackedPolicy]:
        with torch.no_grad(), ExitStack() as stack:
            policy = self.policy
            if reference and self.plan.model.lora is not None:
                stack.enter_context(adapters_off(policy.model))
            elif reference:
                assert self.reference is not None, "LearnerPlan.needs_reference was False"
                policy = self.reference
            yield policy
            # Without a backward FSDP keeps gathered copies, which a later load or sync would read stale.
            for module in policy.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _join(place: RankPlace) -> DeviceMesh:
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if place.device.startswith("cuda") else "gloo",
        init_method=f"tcp://{place.address}:{place.port}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=place.timeout_s),
    )
    return init_device_mesh(torch.device(place.device).type, (place.world_size,))


def _fsdp(policy: PackedPolicy) -> FSDPModule:
    assert isinstance(policy, FSDPModule)
    return policy


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


def _probe_batch(sequences: Sequence[Sequence[int]]) -> Batch:
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    rows, total = len(sequences), int(lengths.sum())
    segment_ids = torch.repeat_interleave(torch.arange(rows), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    return Batch(
        tokens=torch.tensor([token for sequence in sequences for token in sequence]),
        positions=torch.arange(total) - starts[segment_ids],
        segment_ids=segment_ids,
        loss_mask=torch.ones(total, dtype=torch.bool),
        rollout_logprobs=torch.zeros(total),
        versions=torch.zeros(total, dtype=torch.long),
        rewards=torch.zeros(rows),
        group_ids=torch.zeros(rows, dtype=torch.long),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )
