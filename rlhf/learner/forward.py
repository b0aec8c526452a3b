"""From packed tokens to log-probabilities. The one place where targets are shifted against inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.errors import LearnerError
from rlhf.learner.attention import Packing, build_packing
from rlhf.learner.guidance import Kinds, kinds_of, lay, mix
from rlhf.learner.plan import EntropyMode
from rlhf.learner.routing import hook_routers
from rlhf.learner.vision import ImageReader, Seen, without_images


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What one forward pass needs, on the device: U tokens without repeats, M trained ones out of N."""

    tokens: Tensor
    """[U]"""
    positions: Tensor
    """[U], or [3, U] in a model that sees images."""
    packing: Packing
    before: Tensor
    """[M]: which of the U predicts each trained token."""
    targets: Tensor
    """[M]: the trained tokens."""
    trained: Tensor
    """[M]: their places in the batch."""
    last: Tensor
    """[B]: which of the U ends each row."""
    temperatures: Tensor | None = None
    """[M]; None: all 1."""
    kept: Tensor | None = None
    """[M, K]: the tokens among which each target was sampled, as Batch.kept_ids gives them."""
    routing: Tensor | None = None
    """[U, L, k]: as Batch.routing gives them; a shared token has those of its origin."""
    seen: Seen | None = None
    banned: tuple[int, ...] = ()
    """Ids that are left out of every distribution."""
    kinds: Kinds | None = None
    null_before: Tensor | None = None
    """[M]: as `before`, of what else predicts each trained token where it is guided (Laid.null_before)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Per-token results [N], zero where not trained; entropy None when it was not asked for."""

    logprobs: Tensor
    entropy: Tensor | None


class PackedPolicy(nn.Module):
    """A causal language model whose forward ends in log-probabilities of the trained tokens.

    The root FSDP module: head and embeddings are gathered while its forward runs.
    """

    def __init__(self, model: PreTrainedModel, chunk: int, reader: ImageReader | None = None) -> None:
        """`reader`: of a model that sees images."""
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.reader = reader
        self._routing_problem = hook_routers(model.get_decoder())

    @property
    def decoder(self) -> Any:
        """The layers below the head."""
        return self.model.get_decoder()

    def forward(self, inputs: Inputs, entropy: EntropyMode) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [M] and entropies [M] of the trained tokens, in float32 nats."""
        if inputs.routing is not None:
            self.require_routing()
        head = self.model.get_output_embeddings()
        hidden = decode(trunk(self.model, self.reader), inputs, routing=inputs.routing)
        settings = _HeadSettings(
            inputs.targets, inputs.temperatures, self.chunk, entropy, inputs.kept, inputs.banned, inputs.kinds
        )
        before = hidden.index_select(0, inputs.before)
        if inputs.null_before is not None and inputs.kinds is not None:
            before = mix(before, hidden.index_select(0, inputs.null_before), inputs.kinds.rule)
        return _ChunkedHead.apply(before, head.weight, head.bias, settings)  # type: ignore[no-untyped-call,no-any-return]

    def require_routing(self) -> None:
        """Raise LearnerError where recorded experts cannot be chosen again."""
        if self._routing_problem is not None:
            raise LearnerError(
                f"{type(self.model).__name__} cannot repeat the experts that the sampler chose: "
                f"{self._routing_problem}. Switch sampling.keep_routing off, or choose a model such as Qwen3-MoE."
            )


def trunk(model: PreTrainedModel, reader: ImageReader | None) -> Any:
    """What gives hidden states: the decoder, or all of a model that sees images but its head."""
    return model.get_decoder() if reader is None else model.base_model


def decode(network: Any, inputs: Inputs, *, routing: Tensor | None = None) -> Tensor:
    """Hidden states [U, H] of the last layer of a trunk; that of a token knows the tokens up to itself.

    `routing` reaches the layers as `packing` does; without it a mixture of experts chooses for itself.
    """
    sees = inputs.positions.ndim == 2
    seen = (
        {}
        if inputs.seen is None
        else {"pixel_values": inputs.seen.pixels, "image_grid_thw": inputs.seen.grids}
    )
    hidden: Tensor = network(
        input_ids=inputs.tokens[None],
        position_ids=inputs.positions[:, None] if sees else inputs.positions[None],
        use_cache=False,
        packing=inputs.packing,
        routing=routing,
        **seen,
    ).last_hidden_state[0]
    return without_images(network.visual, hidden) if sees and not seen else hidden


def prepare(batch: Batch, reader: ImageReader | None = None, *, guided: bool = True) -> Inputs:
    """The inputs of a batch, which may be empty: then one token stands in, so that collectives still run.

    `guided`: with the null rows of image codes, where they have any part in their distribution.
    """
    device = batch.tokens.device
    kept = routing = seen = kinds = null_before = None
    if reader is None and batch.image_ids is not None:
        raise LearnerError("rows show images, and one of the models that score them sees none")
    if batch.num_tokens == 0:
        zero = torch.zeros(1, dtype=torch.long, device=device)
        packing, tokens, positions, trained = build_packing([1], device), zero, zero, zero[:0]
        before = targets = last = trained
        positions = positions if reader is None else positions.expand(3, -1)
    else:
        # The first token of a row has nothing before it that could predict it.
        trained = torch.nonzero(batch.loss_mask & (batch.positions > 0)).flatten()
        laid = lay(batch, trained if guided else trained[:0])
        packing = build_packing(laid.lengths.tolist(), device, laid.origins)
        own = torch.nonzero(laid.origins == torch.arange(laid.origins.numel(), device=device)).flatten()
        tokens, positions = laid.tokens[own], laid.positions[own]
        if reader is not None:
            seen, positions = reader.read(batch, own)
        if laid.null_before is not None:
            null_before = packing.place[laid.null_before]
        kinds = kinds_of(batch, trained)
        before, targets = packing.place[trained - 1], batch.tokens[trained]
        last = packing.place[torch.cumsum(batch.row_lengths(), 0) - 1]
        kept = None if batch.kept_ids is None else batch.kept_ids[trained]
        routing = None if batch.routing is None else batch.routing[own]
    return Inputs(
        tokens=tokens,
        positions=positions,
        packing=packing,
        before=before,
        targets=targets,
        trained=trained,
        last=last,
        temperatures=None if batch.temperatures is None else batch.temperatures[batch.segment_ids[trained]],
        kept=kept,
        routing=routing,
        seen=seen,
        banned=batch.banned,
        kinds=kinds,
        null_before=null_before,
    )


def score_tokens(policy: PackedPolicy, batch: Batch, entropy: EntropyMode) -> TokenScores:
    """Run the policy on a batch already on its device; element t is about token t itself."""
    inputs = prepare(batch, policy.reader)
    logprobs, entropies = policy(inputs, entropy)
    size = batch.num_tokens
    return TokenScores(
        logprobs=spread(logprobs, inputs.trained, size),
        entropy=None if entropies is None else spread(entropies, inputs.trained, size),
    )


def spread(values: Tensor, index: Tensor, size: int) -> Tensor:
    """[size] with `values` at `index`, 0 elsewhere."""
    return values.new_zeros(size).index_copy(0, index, values)


@dataclass(frozen=True, slots=True)
class _HeadSettings:
    targets: Tensor
    temperatures: Tensor | None
    chunk: int
    entropy: EntropyMode
    kept: Tensor | None
    banned: tuple[int, ...] = ()
    kinds: Kinds | None = None

    def support(self, part: slice) -> tuple[Tensor, Tensor] | None:
        """Kept sets and targets of a chunk."""
        return None if self.kept is None else (self.kept[part], self.targets[part])

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
        """Logits of a chunk over their temperatures, so low that their probability is 0 for what is never drawn."""
        logits = linear(hidden, weight, bias).float()
        temperatures = _take(self.temperatures, part)
        logits = logits if temperatures is None else logits.div_(temperatures)
        if self.banned:
            logits[:, list(self.banned)] = torch.finfo(logits.dtype).min / 2
        if self.kinds is not None:
            logits.masked_fill_(self.kinds.outside(logits.shape[1], part), torch.finfo(logits.dtype).min / 2)
        return logits


class _ChunkedHead(torch.autograd.Function):
    """The output head, `chunk` rows at a time; backward computes the logits again instead of keeping them.

    With z the logits over their temperature, p their softmax over the support and H = -sum p log p:
    d logprob / dz = onehot - p, and dH / dz = -p (log p + H): both exactly 0 outside the support.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _HeadSettings
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        entropy = None if settings.entropy == "none" else torch.empty_like(logprobs)
        for part in _parts(hidden.shape[0], settings.chunk):
            logits = settings.logits(hidden[part], weight, bias, part)
            log_p = log_softmax(logits, settings.support(part))
            logprobs[part] = log_p.gather(1, settings.targets[part, None])[:, 0]
            if entropy is not None:
                entropy[part] = -(log_p.exp() * log_p).sum(1)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        if settings.entropy == "metric":
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, d_logprobs: Tensor | None, d_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        settings: _HeadSettings = ctx.settings
        d_hidden = torch.empty_like(hidden)
        trains_weight, trains_bias = ctx.needs_input_grad[1:3]
        # fp32: many chunks are added up.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if trains_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if trains_bias else None
        for part in _parts(hidden.shape[0], settings.chunk):
            temperatures = _take(settings.temperatures, part)
            log_p = log_softmax(settings.logits(hidden[part], weight, bias, part), settings.support(part))
            d_logits = _d_logits(
                log_p, settings.targets[part], _take(d_logprobs, part), _take(d_entropy, part)
            )
            d_logits = (d_logits if temperatures is None else d_logits.div_(temperatures)).to(weight.dtype)
            torch.mm(d_logits, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[part]
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
        )


def _parts(size: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def _take(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part, None]


def log_softmax(logits: Tensor, support: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Log-probabilities [M, V] of logits, which are overwritten; under a `support` on that alone.

    `support` is (kept [M, K], targets [M]): kept ids, padded with -1 (nothing but -1: the whole vocabulary);
    the target is always of the set. Outside it the result is finite and its exp exactly 0.
    Source: DeepSeek-V3.2 (arXiv 2512.02556), Keep Sampling Mask.
    """
    if support is not None:
        kept, targets = support
        size = logits.shape[1]
        # One column more, where padding lands.
        inside = torch.zeros(len(targets), size + 1, dtype=torch.bool, device=logits.device)
        inside.scatter_(1, torch.where(kept >= 0, kept, size).long(), True)
        inside |= (kept < 0).all(1, keepdim=True)
        inside.scatter_(1, targets[:, None], True)
        # Not -inf, whose product with a probability of 0 is NaN.
        logits.masked_fill_(~inside[:, :size], torch.finfo(logits.dtype).min / 2)
    return torch.log_softmax(logits, dim=-1)


def _d_logits(log_p: Tensor, targets: Tensor, d_logprobs: Tensor | None, d_entropy: Tensor | None) -> Tensor:
    p = log_p.exp()
    gradient = torch.zeros_like(p) if d_logprobs is None else p * -d_logprobs
    if d_logprobs is not None:
        gradient.scatter_add_(1, targets[:, None], d_logprobs)
    if d_entropy is not None:
        entropy = -(p * log_p).sum(1, keepdim=True)
        gradient -= d_entropy * p * (log_p + entropy)
    return gradient
