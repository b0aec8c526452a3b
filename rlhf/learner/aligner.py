"""One rank of retrieval alignment. Every public method is a collective: all ranks call it together, in one order."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from rlhf.algorithms.alignment import AlignmentSettings, Lists, Negatives, list_losses, nce
from rlhf.config.alignment import ImagesConfig
from rlhf.config.schema import LearnerConfig, ModelConfig
from rlhf.data.dual_encoder import (
    CONSTANTS,
    Inputs,
    RetrievalPolicy,
    preparation_of,
    read_retrieval_config,
    texts_of,
)
from rlhf.data.pixels import Pixels
from rlhf.interfaces import LossOutput, UpdateMetrics
from rlhf.learner.checkpoint import export_model, load_state, read_facts, save_state
from rlhf.learner.fsdp import join_ranks
from rlhf.learner.model import (
    full_weights,
    inference,
    scatter_from_first,
    shard,
    tokenizer_files,
)
from rlhf.learner.plan import RankPlace
from rlhf.learner.rank import LearnerRank
from rlhf.learner.retrieval import build_retrieval_model
from rlhf.learner.trained import TrainedModule
from rlhf.order_batch import OrderBatch, PairBatch
from rlhf.retrieval import Gallery

Batch = OrderBatch | PairBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignerPlan:
    """What is trained and how; the same on every rank."""

    model: ModelConfig
    """With a path."""
    learner: LearnerConfig
    images: ImagesConfig
    settings: AlignmentSettings
    gallery: Gallery
    total_steps: int
    seed: int = 0
    replay_label_smoothing: float = 0.0


class Aligner(LearnerRank):
    """A rank of FSDP2 training of a dual encoder; checkpoints, weights for engines."""

    not_sent = CONSTANTS

    def __init__(self, plan: AlignerPlan, place: RankPlace, *, pixels: Pixels | None = None) -> None:
        """`pixels` are those of another learner in this process, which has prepared the same images."""
        assert plan.model.path is not None, "prepare_model_folder comes first"
        self.plan, self.place = plan, place
        self.device = torch.device(place.device)
        self.dtype = getattr(torch, plan.model.dtype)
        if self.device.type == "cpu":
            torch.set_num_threads(plan.learner.threads)
        self._mesh = join_ranks(place)
        torch.manual_seed(plan.seed + place.rank)
        config = read_retrieval_config(plan.model)
        self.texts = texts_of(plan.model.path, config)
        self.pixels = pixels or Pixels(
            plan.gallery, preparation_of(plan.model.path), limit_mb=plan.images.cache_mb
        )
        self.policy: TrainedModule[RetrievalPolicy, Batch] = TrainedModule(
            self._sharded(),
            self._scores,
            section="learner",
            config=plan.learner,
            total_steps=plan.total_steps,
        )

    def _sharded(self) -> RetrievalPolicy:
        first = self.place.rank == 0
        policy = build_retrieval_model(self.plan.model, on_meta=not first)
        if self.plan.learner.activation_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
        several = self.place.world_size > 1
        full = {name: p.detach() for name, p in policy.named_parameters()} if several and first else {}
        shard(policy, policy.blocks, self._mesh, self.dtype)
        if first:
            policy.to(self.device)
        else:
            policy.to_empty(device=self.device)
        if several:
            scatter_from_first(policy, full, self.device)
        return policy

    def update(self, minibatches: Sequence[Sequence[Batch]]) -> UpdateMetrics:
        """One optimizer step per mini-batch, each this rank's list of micro-batches (of the same kinds on every rank).

        Raises LearnerError when a gradient is not finite; the weights are then those of the step before.
        """
        return self.policy.update(minibatches, self._loss)

    def _inputs(self, texts: Sequence[Sequence[int]], images: Sequence[str]) -> Inputs:
        # A rank without a share still runs both towers: the others wait for its part of the weights.
        ids, mask = self.texts.batch(texts or self.texts.ids([""]))
        pixels = self.pixels.of(images or self.plan.gallery.ids()[:1])
        return Inputs(
            token_ids=ids.to(self.device), attention_mask=mask.to(self.device), pixels=pixels.to(self.device)
        )

    def _scores(self, policy: RetrievalPolicy, batch: Batch) -> tuple[Tensor, None]:
        """Scores of lists [L, n], or losses of pairs [m]: their negatives are on all ranks."""
        if isinstance(batch, PairBatch):
            return self._pair_losses(policy, batch), None
        texts = list(dict.fromkeys(batch.queries))
        images = list(dict.fromkeys(name for items in batch.items for name in items))
        found_texts, found_images = policy(self._inputs(self.texts.ids(texts), images))
        if batch.is_empty:
            return found_texts.sum() * 0 + found_images.sum() * 0, None
        text_at, image_at = ({name: i for i, name in enumerate(names)} for names in (texts, images))
        rows = torch.tensor([text_at[query] for query in batch.queries], device=self.device)
        columns = torch.tensor([[image_at[i] for i in items] for items in batch.items], device=self.device)
        scores = torch.einsum("ld,lnd->ln", found_texts[rows], found_images[columns])
        return policy.scale * scores, None

    def _pair_losses(self, policy: RetrievalPolicy, batch: PairBatch) -> Tensor:
        texts, images = policy(self._inputs(self.texts.ids(batch.texts), batch.images))
        negatives = Negatives(
            all_texts=_gathered(texts),
            all_images=_gathered(images),
            keys=batch.keys,
            all_keys=_gathered(batch.keys),
            offset=self.place.rank * len(batch.texts),
        )
        smoothing = self.plan.replay_label_smoothing if batch.is_replay else 0.0
        return nce(texts, images, negatives, scale=policy.scale, label_smoothing=smoothing)

    def _loss(self, scores: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        del entropy
        if isinstance(batch, PairBatch):
            name = "update/replay_loss" if batch.is_replay else "update/list_loss"
            number = torch.tensor(float(len(scores)), device=scores.device)
            return LossOutput(loss=batch.weight * scores.sum(), sums={name: (scores.detach().sum(), number)})
        lists = Lists(
            scores=scores,
            ref_scores=batch.ref_scores,
            shape=batch.shape,
            pairs=batch.pairs,
            rewards=batch.rewards,
        )
        output = list_losses(lists, self.plan.settings)
        counted = output.counted.to(scores.dtype)
        moved = (scores.detach() - batch.ref_scores).abs().mean(1)
        sums = {
            "update/list_loss": (output.losses * counted, counted),
            "update/order_accuracy": (output.accuracy * counted, counted),
            "update/score_shift": (moved, torch.ones_like(moved)),
        }
        return LossOutput(
            loss=(batch.weights * output.losses).sum(),
            sums={name: (above.detach().sum(), below.sum()) for name, (above, below) in sums.items()},
        )

    def embed(self, texts: Sequence[str], images: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [Q, d] and [I, d] on the CPU, under the current weights; every rank computes them all."""
        size = self.plan.images.per_pass
        found_texts, found_images = [], []
        with inference(self.policy.module):
            for start in range(0, max(len(texts), len(images), 1), size):
                some_texts, some_images = texts[start : start + size], images[start : start + size]
                t, i = self.policy.module(self._inputs(self.texts.ids(some_texts), some_images))
                found_texts.append(t[: len(some_texts)].cpu())
                found_images.append(i[: len(some_images)].cpu())
        return torch.cat(found_texts), torch.cat(found_images)

    def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """Embeddings of texts, given as token ids, then of images, given one by one."""
        with inference(self.policy.module):
            texts, pictures = self.policy.module(self._inputs(sequences, [name for (name,) in images]))
        return [*texts.tolist(), *pictures.tolist()]

    @property
    def scale(self) -> float:
        """exp(logit_scale)."""
        return float(self.policy.module.scale)

    def save(self, folder: str) -> None:
        """Model, optimizer and schedule into `folder`, readable at any number of ranks. Training draws nothing."""
        facts = {
            "step": self.policy.step,
            "world_size": self.place.world_size,
            "parts": [],
            "parameters": self._shapes(),
        }
        save_state(Path(folder), self.policy.state(), facts)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote. Raises CheckpointError when it belongs to another model."""
        facts = read_facts(Path(folder), self._shapes(), [])
        load_state(Path(folder), self.policy.state())
        self.policy.step = facts["step"]

    def export(self, folder: str) -> None:
        """A Hugging Face folder with tokenizer and image processor."""
        shape = build_retrieval_model(self.plan.model.model_copy(update={"lora": None}), on_meta=True)
        export_model(Path(folder), shape.model, full_weights(self.policy.module, torch.float32))
        if self.place.rank == 0:
            source = Path(str(self.plan.model.path))
            for file in [*tokenizer_files(str(source)), source / "preprocessor_config.json"]:
                shutil.copy(file, folder)

    def _move(self, device: str) -> None:
        if self.device.type != "cpu":
            self.policy.move(device)
            torch.cuda.empty_cache()

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(p.shape) for name, p in self.policy.parameters.items()}


def _gathered(tensor: Tensor) -> Tensor:
    """The rows of all ranks, rank after rank; the gradient of each returns to its own."""
    if dist.get_world_size() == 1:
        return tensor
    if not tensor.requires_grad:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)
    return torch.cat(all_gather(tensor))  # type: ignore[no-untyped-call]
