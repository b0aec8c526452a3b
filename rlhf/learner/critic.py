"""The critic: the policy's network with a scalar head in place of the vocabulary, scored on the same packed rows."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.batch import Batch
from rlhf.config.algorithm import CriticConfig
from rlhf.config.schema import LearnerConfig
from rlhf.learner.forward import Inputs, decode, prepare, spread
from rlhf.learner.vision import ImageReader


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValues:
    """Expected returns in float32: per token [N], zero where not trained, and after each row [B]."""

    values: Tensor
    """Of the state before token t, at place t."""
    last_values: Tensor
    """Of the state after a row's last token: what a truncated row bootstraps from."""


class PackedCritic(nn.Module):
    """A decoder whose forward ends in values. The root FSDP module, as PackedPolicy is."""

    def __init__(self, model: PreTrainedModel, reader: ImageReader | None = None) -> None:
        """`reader`: of a model that sees images."""
        super().__init__()
        weight = model.get_output_embeddings().weight
        self.decoder = model.get_decoder()
        self.reader = reader
        self.trunk = self.decoder if reader is None else model.base_model
        self.head = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
        # Zero: before it has learned anything it says 0, and advantages are plain returns.
        nn.init.zeros_(self.head.weight)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Values before the trained tokens [M] and after the rows [B]."""
        hidden = decode(self.trunk, inputs)
        # fp32: a bf16 value near 1 is exact to 2**-8, no better than many advantages are large.
        head = self.head.weight[0].float()
        before, last = (hidden.index_select(0, places).float() for places in (inputs.before, inputs.last))
        return before @ head, last @ head


def score_values(critic: PackedCritic, batch: Batch) -> TokenValues:
    """Run the critic on a batch already on its device."""
    inputs = prepare(batch, critic.reader, guided=False)
    values, last_values = critic(inputs)
    return TokenValues(values=spread(values, inputs.trained, batch.num_tokens), last_values=last_values)


def critic_settings(learner: LearnerConfig, critic: CriticConfig) -> LearnerConfig:
    """The learner's settings with the critic's own learning rate, schedule, decay and clipping."""
    own = ("lr", "warmup_steps", "lr_schedule", "min_lr_ratio", "weight_decay", "max_grad_norm")
    values = critic.model_dump()
    return learner.model_copy(update={name: values[name] for name in own})
