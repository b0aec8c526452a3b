"""One rank of the learner. Every public method is a collective: all ranks call it together, in one order."""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.config.schema import ModelConfig
from rlhf.data.vision_model import find_vision, sees
from rlhf.errors import ConfigError
from rlhf.interfaces import LossFunction, UpdateMetrics
from rlhf.learner.checkpoint import export_model, load_state, read_facts, save_state
from rlhf.learner.critic import PackedCritic, critic_settings, score_values
from rlhf.learner.forward import PackedPolicy, score_tokens
from rlhf.learner.model import (
    adapters_off,
    build_model,
    inference,
    scatter_from_first,
    shard,
    tokenizer_files,
)
from rlhf.learner.plan import LearnerPlan, RankPlace
from rlhf.learner.rank import LearnerRank
from rlhf.learner.routing import routers
from rlhf.learner.shards import local
from rlhf.learner.trained import TrainedModule
from rlhf.learner.vision import ImageReader, part_sizes

logger = logging.getLogger(__name__)

N = TypeVar("N", PackedPolicy, PackedCritic)


class FsdpLearner(LearnerRank):
    """A rank of FSDP2 training: policy, critic, reference, teachers; checkpoints, weights for engines."""

    def __init__(self, plan: LearnerPlan, place: RankPlace) -> None:
        _refuse(plan)
        self.plan, self.place = plan, place
        self.device = torch.device(place.device)
        self.dtype = getattr(torch, plan.model.dtype)
        if self.device.type == "cpu":
            torch.set_num_threads(plan.learner.threads)
        self._mesh = join_ranks(place)
        vision = None if plan.model.path is None else find_vision(plan.model.path)
        self._reader = None if vision is None else ImageReader(vision)
        torch.manual_seed(plan.seed + place.rank)
        self.policy = TrainedModule(
            self._sharded(plan.model, self._as_policy),
            self._policy_scores,
            section="learner",
            config=plan.learner,
            total_steps=plan.total_steps - plan.critic_alone,
        )
        if plan.keep_routing:
            self.policy.module.require_routing()
        self._log("policy", self.policy)
        self.critic: TrainedModule[PackedCritic, Batch] | None = None
        if plan.critic is not None:
            model = plan.model.model_copy(update={"lora": plan.critic.lora})
            self.critic = TrainedModule(
                self._sharded(model, self._as_critic),
                _critic_scores,
                section="critic",
                config=critic_settings(plan.learner, plan.critic),
                total_steps=plan.total_steps,
            )
            self._log("critic", self.critic)
        self.reference: PackedPolicy | None = None
        self._reference_parameters: dict[str, torch.nn.Parameter] = {}
        if plan.needs_reference and (plan.model.lora is None or plan.reference is not None):
            frozen = plan.reference or plan.model
            self.reference = self._sharded(frozen, self._as_policy).requires_grad_(False)
            self._reference_parameters = dict(self.reference.model.named_parameters())
        self.teachers = {
            name: self._sharded(model, self._as_policy).requires_grad_(False)
            for name, model in plan.teachers.items()
        }

    def _as_policy(self, network: PreTrainedModel) -> PackedPolicy:
        return PackedPolicy(network, self.plan.learner.logprob_chunk, self._reader_for(network))

    def _as_critic(self, network: PreTrainedModel) -> PackedCritic:
        return PackedCritic(network, self._reader_for(network))

    def _reader_for(self, network: PreTrainedModel) -> ImageReader | None:
        return self._reader if sees(network.config.to_dict()) else None

    def _policy_scores(self, policy: PackedPolicy, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores = score_tokens(policy, batch, self.plan.entropy)
        return scores.logprobs, scores.entropy

    def _log(self, name: str, trained: TrainedModule[Any, Batch]) -> None:
        if self.place.rank == 0:
            parts = part_sizes(trained.parameters)
            each = (f"{part} {few / 1e6:.2f} of {all_ / 1e6:.2f} M" for part, (few, all_) in parts.items())
            logger.info(
                "%s: %s, %.1f M parameters, %.1f M trained%s, %d ranks on %s",
                name,
                type(trained.module.decoder).__name__,
                sum(whole for _, whole in parts.values()) / 1e6,
                sum(few for few, _ in parts.values()) / 1e6,
                f" ({', '.join(each)})" if len(parts) > 1 else "",
                self.place.world_size,
                self.place.device,
            )

    def _sharded(self, model: ModelConfig, wrap: Callable[[PreTrainedModel], N]) -> N:
        first = self.place.rank == 0
        network = build_model(model, self.plan.seed, on_meta=not first)
        if self.plan.learner.activation_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        module = wrap(network).train()
        for router in routers(module):
            router.eval()  # some choose at random in training
        several = self.place.world_size > 1
        full = {name: p.detach() for name, p in module.named_parameters()} if several and first else {}
        shard(module, module.decoder.layers, self._mesh, self.dtype)
        if first:
            module.to(self.device)
        else:
            module.to_empty(device=self.device)
        if several:
            scatter_from_first(module, full, self.device)
        return module

    def update(self, minibatches: Sequence[Sequence[Batch]], loss: LossFunction) -> UpdateMetrics:
        """One optimizer step per mini-batch, each this rank's list of micro-batches (as many on every rank).

        Metrics are reduced over micro-batches and ranks; a metric whose denominator is 0 is left out.
        Raises LearnerError when a gradient is not finite; the weights are then those of the step before.
        """
        return self.policy.update(minibatches, loss)

    def update_critic(self, minibatches: Sequence[Sequence[Batch]], loss: LossFunction) -> UpdateMetrics:
        """As `update`, for the critic: the loss is given its values [N] and no entropy."""
        return self._held_critic().update(minibatches, loss)

    def logprobs(
        self, microbatches: Sequence[Batch], reference: bool = False, teacher: str | None = None
    ) -> list[Tensor]:
        """[N] per micro-batch, on the CPU: log-probability of each trained token, 0 elsewhere.

        Reference and teachers keep the sampling mask, so that all are distributions on one support, but route for
        themselves: the sampler's experts were never those of their weights.
        """
        policy: PackedPolicy = self.policy.module
        base: AbstractContextManager[None] = nullcontext()
        if teacher is not None:
            policy = self.teachers[teacher]
        elif reference and self.reference is not None:
            policy = self.reference
        elif reference:
            assert self.plan.model.lora is not None, "LearnerPlan.needs_reference was False"
            base = adapters_off(policy.model)
        if reference or teacher is not None:
            microbatches = [replace(batch, routing=None) for batch in microbatches]
        with base, inference(policy):
            return [score_tokens(policy, b.to(self.device), "none").logprobs.cpu() for b in microbatches]

    def values(self, microbatches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Per micro-batch, on the CPU: the value before each trained token [N], 0 elsewhere, and after each row [B]."""
        critic = self._held_critic().module
        with inference(critic):
            found = [score_values(critic, batch.to(self.device)) for batch in microbatches]
        return [(scores.values.cpu(), scores.last_values.cpu()) for scores in found]

    def reset_reference(self) -> None:
        """Make the current policy the reference, from here on and in every later checkpoint."""
        assert self.plan.reference_resets, "LearnerPlan.reference_resets was False"
        with torch.no_grad():
            for name, kept in self._reference_parameters.items():
                local(kept).copy_(local(self.policy.parameters[name]))

    def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1]: log-probability, at temperature 1, of each token after the first."""
        batch = _probe_batch(sequences)
        if self._reader is not None:
            batch = self._reader.shown(batch, images)
        (scores,) = self.logprobs([batch])
        rows = torch.split(scores, batch.row_lengths().tolist())
        return [row[1:].tolist() for row in rows]

    def save(self, folder: str) -> None:
        """Models, optimizers, schedules and random state into `folder`, readable at any number of ranks."""
        facts: dict[str, object] = {f"{prefix}step": t.step for prefix, t in self._trained().items()}
        facts |= {"world_size": self.place.world_size, "parts": self._parts(), "parameters": self._shapes()}
        save_state(Path(folder), self._state() | {self._rng_key: torch.get_rng_state()}, facts)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote. Raises CheckpointError when it belongs to another model."""
        facts = read_facts(Path(folder), self._shapes(), self._parts())
        state = self._state()
        if self.place.rank < facts["world_size"]:
            state[self._rng_key] = torch.get_rng_state()
        load_state(Path(folder), state)
        if self._rng_key in state:
            torch.set_rng_state(state[self._rng_key])
        for prefix, trained in self._trained().items():
            trained.step = facts[f"{prefix}step"]

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

    def _move(self, device: str) -> None:
        if self.device.type == "cpu":
            return
        for trained in self._trained().values():
            trained.move(device)
        frozen = [*self.teachers.values(), *([] if self.reference is None else [self.reference])]
        for policy in frozen:
            policy.to(device)
        torch.cuda.empty_cache()

    @property
    def _rng_key(self) -> str:
        return f"rng.{self.place.rank}"

    def _held_critic(self) -> TrainedModule[PackedCritic, Batch]:
        assert self.critic is not None, "LearnerPlan.critic was None"
        return self.critic

    def _trained(self) -> dict[str, TrainedModule[Any, Batch]]:
        """By what their names begin with in a checkpoint."""
        return {"": self.policy} | ({} if self.critic is None else {"critic.": self.critic})

    def _parts(self) -> list[str]:
        """What a checkpoint holds beside the policy."""
        parts = {
            "critic": self.critic is not None,
            "reference that is reset": self.plan.reference_resets,
            "narrow optimizer state": self.plan.learner.optimizer_state == "fp8",
        }
        return [name for name, is_held in parts.items() if is_held]

    def _shapes(self) -> dict[str, list[int]]:
        return {
            f"{prefix}{name}": list(p.shape)
            for prefix, trained in self._trained().items()
            for name, p in trained.parameters.items()
        }

    def _state(self) -> dict[str, Tensor]:
        state = {
            f"{prefix}{name}": t
            for prefix, trained in self._trained().items()
            for name, t in trained.state().items()
        }
        if self.plan.reference_resets:
            state |= {f"reference.{name}": p.detach() for name, p in self._reference_parameters.items()}
        return state


def _refuse(plan: LearnerPlan) -> None:
    if plan.reference_resets and plan.model.lora is not None:
        raise ConfigError(
            "algorithm.reference_reset_every is set, and so is model.lora: with LoRA the reference is the frozen "
            "base with its adapters off, which cannot take the policy's weights. Set reference_reset_every: 0, "
            "or remove model.lora."
        )
    assert plan.needs_reference or not plan.reference_resets, "only a reference that is held can be reset"


def _critic_scores(critic: PackedCritic, batch: Batch) -> tuple[Tensor, None]:
    return score_values(critic, batch).values, None


def join_ranks(place: RankPlace) -> DeviceMesh:
    """Meet the other ranks; a mesh of all of them."""
    backend = "cpu:gloo,cuda:nccl" if place.device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=place.timeout_s)
    if place.world_size == 1:
        # Nobody to meet: no port that another process could have taken meanwhile.
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        meeting = f"tcp://{place.address}:{place.port}"
        dist.init_process_group(
            backend, init_method=meeting, rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    return init_device_mesh(torch.device(place.device).type, (place.world_size,))


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
