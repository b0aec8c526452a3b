"""Packed tensors: rows laid end to end, no padding. Made by data/packing, read by algorithms and learner.

N tokens, B rows (segments). Element t of a per-token field speaks about token t.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.image_codes import ImageCodes

_PER_ROW = frozenset(
    {
        "rewards",
        "group_ids",
        "truncated",
        "trajectory_ids",
        "temperatures",
        "task_rewards",
        "reward_parts",
        "last_values",
        "teacher_ids",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one optimizer step (or of a slice of it: a micro-batch is a Batch, too).

    A field that is None has not been filled in by its annotator yet.
    """

    tokens: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    """Place of each token in its row, from 0."""
    segment_ids: Int[Tensor, " N"]
    """Row of each token, 0..B-1, non-decreasing."""
    loss_mask: Bool[Tensor, " N"]
    rollout_logprobs: Float[Tensor, " N"]
    versions: Int[Tensor, " N"]
    """Weight version that sampled each token; -1 where none did."""
    rewards: Float[Tensor, " B"]
    """NaN where the reward was not gradable."""
    group_ids: Int[Tensor, " B"]
    truncated: Bool[Tensor, " B"]
    """True where the engine stopped at the token limit."""
    trajectory_ids: Int[Tensor, " B"] | None = None
    """Trajectory of each row; None: every row is one. Its rows share reward, group and truncation."""
    temperatures: Float[Tensor, " B"] | None = None
    """Logits of a row are divided by its own before every log-probability, as the engine did; None: all 1."""
    routing: Int[Tensor, "N L k"] | None = None
    """Experts that the engine chose in each decoder layer when the token was the input; -1: not recorded."""
    kept_ids: Int[Tensor, "N K"] | None = None
    """Ids of which the engine sampled the token, then -1; a row of -1 alone: of the whole vocabulary."""
    images: tuple[str, ...] = ()
    """References of the images that rows show, each once."""
    image_ids: Int[Tensor, " N"] | None = None
    """For an image token the place of its image in `images`, else -1; None: no row shows any."""
    banned: tuple[int, ...] = ()
    """Ids that the engine never draws: the distributions that are compared are over the others."""
    code_mask: Bool[Tensor, " N"] | None = None
    """True for image codes that the policy drew; None: it draws text alone."""
    image_codes: ImageCodes | None = None
    """The rule by which they were drawn: distributions are over the tokens of a token's kind."""
    task_rewards: Float[Tensor, " B"] | None = None
    """As graded. None while `rewards` are not shaped."""
    advantages: Float[Tensor, " N"] | None = None
    loss_weights: Float[Tensor, " N"] | None = None
    """W of the aggregation, computed once on the whole optimizer batch; loss = sum(W * token loss)."""
    old_logprobs: Float[Tensor, " N"] | None = None
    """Learner, before the update. None while one update follows each batch: then old = current, detached."""
    ref_logprobs: Float[Tensor, " N"] | None = None
    selected: Bool[Tensor, " N"] | None = None
    """Tokens that clip_cov or kl_cov treats apart, chosen once on the whole optimizer batch."""
    nll_weights: Float[Tensor, " N"] | None = None
    """Weights of the positive NLL term, computed once on the whole optimizer batch."""
    values: Float[Tensor, " N"] | None = None
    """Critic, before the update."""
    returns: Float[Tensor, " N"] | None = None
    """What the critic is trained towards."""
    last_values: Float[Tensor, " B"] | None = None
    """Critic, after each row's last token: what a truncated trajectory would still have earned."""
    token_rewards: Float[Tensor, " N"] | None = None
    """Rewards of single tokens beside the terminal one, such as minus the KL penalty. Read on trained tokens."""
    step_rewards: Float[Tensor, " N"] | None = None
    """Reward of the reasoning step that ends with this token; NaN where none ends."""
    reward_parts: Float[Tensor, "B K"] | None = None
    """The rewards that `rewards` was made from, one column each; NaN where one does not apply."""
    teacher_logprobs: Float[Tensor, " N"] | None = None
    teacher_ids: Int[Tensor, " B"] | None = None
    """Which of several teachers each row has."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.tokens.numel())

    @property
    def is_empty(self) -> bool:
        """N is 0."""
        return self.num_tokens == 0

    @property
    def num_computed(self) -> int:
        """Forward passes over each row: a guided one has its null row beside it."""
        return 2 if self.image_codes is not None and self.image_codes.is_guided else 1

    @property
    def num_rows(self) -> int:
        """B."""
        return int(self.rewards.numel())

    def row_lengths(self) -> Int[Tensor, " B"]:
        """Tokens in each row."""
        return torch.bincount(self.segment_ids, minlength=self.num_rows)

    def row_sampled(self) -> Int[Tensor, " B"]:
        """Trained tokens in each row: L_i."""
        return torch.bincount(self.segment_ids[self.loss_mask], minlength=self.num_rows)

    def token_index(self, rows: Int[Tensor, " R"]) -> Int[Tensor, " M"]:
        """Places in [0, N) of the tokens of `rows`, row after row in that order."""
        lengths = self.row_lengths()
        starts = torch.cumsum(lengths, 0) - lengths
        picked = lengths[rows]
        offsets = torch.cumsum(picked, 0) - picked
        places = torch.arange(int(picked.sum()), device=rows.device)
        return places + torch.repeat_interleave(starts[rows] - offsets, picked)

    def origins(self) -> Int[Tensor, " N"]:
        """For each token, the place of the first that says the same: same group, same tokens before it.

        A row shares its beginning (a prompt, earlier turns) with the first row of its group as far as the two
        agree, in recorded experts and images, too; all other tokens are their own origin. Where nothing later acts
        on what is earlier, as in a causal model, a token and its origin have the same hidden state.
        """
        places = torch.arange(self.num_tokens, device=self.tokens.device)
        if self.num_rows == 0:
            return places
        lengths = self.row_lengths()
        starts = torch.cumsum(lengths, 0) - lengths
        _, group = torch.unique(self.group_ids, return_inverse=True)
        rows = torch.arange(self.num_rows, device=places.device)
        leader = torch.full_like(rows, self.num_rows).scatter_reduce(0, group, rows, "amin")[group]
        inside = self.positions < lengths[leader][self.segment_ids]
        origin = torch.where(inside, starts[leader][self.segment_ids] + self.positions, places)
        agrees = inside & (self.tokens[origin] == self.tokens)
        if self.routing is not None:
            agrees &= (self.routing[origin] == self.routing).flatten(1).all(1)
        if self.image_ids is not None:
            agrees &= self.image_ids[origin] == self.image_ids
        differs_at = torch.where(agrees, lengths[self.segment_ids], self.positions)
        shared = lengths.scatter_reduce(0, self.segment_ids, differs_at, "amin")
        return torch.where(self.positions < shared[self.segment_ids], origin, places)

    def select_rows(self, rows: Int[Tensor, " R"]) -> "Batch":
        """The batch made of `rows` in that order. Weights and advantages travel with their tokens."""
        index = self.token_index(rows)
        changed: dict[str, Any] = {n: t[rows] if n in _PER_ROW else t[index] for n, t in self._tensors()}
        order = torch.arange(rows.numel(), device=rows.device)
        changed["segment_ids"] = torch.repeat_interleave(order, self.row_lengths()[rows])
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._tensors()}
        return replace(self, **moved)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                yield item.name, value
