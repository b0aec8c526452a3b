"""The sections of stages that train through TRL: supervised fine-tuning, preferences (DPO), reward models."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from rlhf.config.section import Count, Fraction, NonNegative, Positive, Section
from rlhf.config.task import SourceConfig

PreferenceLoss = Literal["sigmoid", "hinge", "ipo", "robust", "exo_pair", "bco_pair", "apo_zero", "apo_down"]
"""TRL's losses that are a mean over pairs; those that look at a whole batch depend on how it is split.

`bco_pair` is one of them: TRL's has no running mean of rewards, which BCO's paper subtracts.
"""
SFT_TERM = "sft"
"""The name of the negative log-likelihood in a mapping of losses."""
_SORTS_BATCHES = ("aot", "aot_unpaired")
READ_LABEL_SMOOTHING = frozenset({"robust", "exo_pair"})


class TrainerConfig(BaseModel):
    """Keys that the three share. Weights and optimizer state are float32; on a GPU, passes run in bfloat16."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    num_steps: PositiveInt | None = 100
    """Optimizer steps. Give this or `num_epochs`."""
    num_epochs: Positive | None = None
    """Passes over the rows, in place of `num_steps`; the last batch is filled with rows of the next pass."""
    batch_size: PositiveInt = 64
    """Rows (of preferences: pairs) of an optimizer step, over all ranks."""
    microbatch_size: PositiveInt | None = None
    """Rows of a rank's forward pass; default: all that it has of a step. Changes memory, not the loss."""
    lr: Positive = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    min_lr_ratio: Fraction = 0.0
    """Final learning rate as a share of `lr` (linear, cosine)."""
    warmup_steps: Count = 0
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    max_length: PositiveInt = 1024
    """Tokens of the longest row (of preferences: of the longer side, prompt included). No row is ever cut."""
    on_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of a longer row: an error that counts them, or they are left out, counted in the summary."""
    num_ranks: PositiveInt = 1
    """Processes that share a step; on GPUs one GPU each."""
    threads: PositiveInt | None = None
    """CPU threads of a rank; default: every core the process may use, shared out among the ranks."""
    checkpoint_every: Count = 100
    """Optimizer steps between checkpoints from which a killed stage goes on; 0: it begins anew."""
    lora_result: Literal["merged", "adapter"] = "merged"
    """With model.lora: a whole model, or the adapter alone (peft's folder, which names its base)."""
    load_in_4bit: bool = False
    """QLoRA: hold the frozen base in 4 bits (nf4). Needs model.lora, a GPU and bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _steps_give_way(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("num_epochs") is not None:
            return {"num_steps": None} | values
        return values

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError(
                f"num_steps is {self.num_steps} and num_epochs is {self.num_epochs}: give exactly one of the two."
            )
        if self.min_lr_ratio and self.lr_schedule == "constant":
            raise ValueError(
                f"min_lr_ratio is {self.min_lr_ratio} but lr_schedule is constant, which never falls. "
                "Set lr_schedule: linear or cosine, or remove the first."
            )
        share = self.num_ranks * (self.microbatch_size or 1)
        if self.batch_size % share:
            raise ValueError(
                f"batch_size ({self.batch_size}) is not a multiple of num_ranks x microbatch_size ({share}): "
                "every rank takes the same number of micro-batches of a step."
            )
        return self


class SftConfig(TrainerConfig, Section):
    """Supervised fine-tuning: a cold start before RL, a stage of its own, or distillation from a teacher's rows."""

    source: SourceConfig | tuple[SourceConfig, ...]
    """Rows with a prompt and a `completion`, or with `messages` (and their `tools`): a whole conversation, of which the
    assistant's turns are learned. A list of sources is learned as one set; ids are unique within each."""
    repeat: tuple[Positive, ...] = ()
    """With a list of sources: how often the rows of each come in a pass. 2.5 is all of them twice and half of them
    (drawn by the seed) once more. Default: once each."""
    packing: bool = False
    """Rows of a forward pass end to end instead of padded. Changes speed, not the loss."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """Every source by its key, in order."""
        if isinstance(self.source, SourceConfig):
            return {"sft.source": self.source}
        return {f"sft.source[{index}]": source for index, source in enumerate(self.source)}

    @model_validator(mode="after")
    def _repeats_fit(self) -> Self:
        if self.source == ():
            raise ValueError("source is an empty list, expected at least one source")
        if self.repeat and (isinstance(self.source, SourceConfig) or len(self.repeat) != len(self.source)):
            raise ValueError(
                f"repeat has {len(self.repeat)} numbers, source {len(self.sources)} entries: give one number for each "
                "source of a list, or none. With a single source use num_epochs."
            )
        return self


class PreferenceConfig(BaseModel):
    """Keys that both learners of preference pairs share.

    A pair has a `prompt` and two answers, `chosen` and `rejected`: texts, or messages (the answer alone, or the whole
    conversation).
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    source: SourceConfig
    heldout: SourceConfig | None = None
    """Pairs on which accuracy is measured before and after training; never trained on."""
    length_bias_margin: Fraction = 0.05
    """The pairs are called length-biased when the accuracy of `the longer one is better` lies, with its whole 95 %
    interval, above 0.5 by more than this."""


class DpoConfig(TrainerConfig, PreferenceConfig, Section):
    """Direct preference optimization."""

    lr: Positive = 1e-6
    loss: PreferenceLoss | dict[str, Positive] = "sigmoid"
    """As TRL has them: `ipo` is on log-ratios per token, at the same beta a very different loss from that on sums. Or
    several with their weights: {sigmoid: 0.8, bco_pair: 0.2, sft: 1.0} is MPO, where sft is the term of sft_coef."""
    beta: Positive = 0.1
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round; read by `robust` and `exo_pair` alone."""
    sft_coef: NonNegative = 0.0
    """Weight of the chosen's negative log-likelihood, a mean over its tokens, then over pairs (RPO)."""
    reference: str = "start"
    """`start`: the model before training; `none`: a uniform one; else a folder or hub name."""

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses on pairs and their weights, the SFT term left out."""
        given = {self.loss: 1.0} if isinstance(self.loss, str) else self.loss
        return {name: weight for name, weight in given.items() if name != SFT_TERM}

    @property
    def sft_weight(self) -> float:
        """Weight of the SFT term, from wherever it is given."""
        return self.sft_coef if isinstance(self.loss, str) else self.loss.get(SFT_TERM, self.sft_coef)

    @model_validator(mode="after")
    def _knows_its_losses(self) -> Self:
        known = (*get_args(PreferenceLoss), SFT_TERM)
        for name in () if isinstance(self.loss, str) else self.loss:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}."
                if name in _SORTS_BATCHES:
                    hint = f"it sorts the pairs of a batch, so it depends on how that is split; {hint}"
                raise ValueError(f"loss names {name!r}, which is no loss on pairs here: {hint}")
        if not self.losses:
            raise ValueError(
                f"loss is {self.loss}, which has no loss on pairs. Name one of {', '.join(known[:-1])}, or use an sft "
                "stage."
            )
        if not isinstance(self.loss, str) and SFT_TERM in self.loss and self.sft_coef:
            raise ValueError(
                f"loss.sft is {self.loss[SFT_TERM]:g} and sft_coef is {self.sft_coef:g}: they are the same term. Give "
                "one of the two."
            )
        return self

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        named = ", ".join(self.losses)
        if self.label_smoothing and READ_LABEL_SMOOTHING.isdisjoint(self.losses):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} but loss is {named}, which does not read it in TRL "
                "(sigmoid ignores it in silence). Set loss: robust, or label_smoothing: 0."
            )
        if not self.label_smoothing and not READ_LABEL_SMOOTHING.isdisjoint(self.losses):
            raise ValueError(
                f"loss is {named} but label_smoothing is 0, at which it is not a loss of its own. "
                "Set label_smoothing to the share of wrong labels, or loss: sigmoid."
            )
        return self


class RewardModelConfig(TrainerConfig, PreferenceConfig, Section):
    """A Bradley-Terry reward model: the network with a scalar head, read at the last token of an answer."""

    lr: Positive = 1e-5
    center_coef: NonNegative = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0; 0.01 is usual."""
    margin: str | None = None
    """Column with the margin by which the chosen's reward should at least be ahead; none: 0."""
