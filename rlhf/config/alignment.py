"""Every key of a recipe of retrieval alignment (`rlhf vision`), with its default and its meaning."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from rlhf.config.schema import (
    CheckpointConfig,
    EngineConfig,
    LearnerConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    SyncConfig,
    TelemetryConfig,
    TimeoutConfig,
)
from rlhf.config.section import Count, Fraction, NonNegative, Positive, Section


class PluginConfig(Section):
    """An object of the user's or of ours: what `use` names is called with `kwargs` and gives it."""

    use: str
    """`module:attribute` or `file.py:attribute`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)


class JudgeConfig(Section):
    """One judge of images, and how it counts."""

    use: str
    """As in `PluginConfig`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    weight: float = 1.0
    """Of its z-score within a list; 0: asked and recorded, not followed."""


class PretrainConfig(Section):
    """A cold start of a random model (`model.config`) on pictures with captions, by the replay loss alone."""

    captions: PluginConfig
    """Gives (image id, caption) pairs."""
    num_steps: PositiveInt = 2500
    batch_size: PositiveInt = 192
    lr: Positive = 1e-3
    warmup_steps: Count = 100
    weight_decay: NonNegative = 0.1


class DataConfig(Section):
    """What is aligned."""

    gallery: PluginConfig
    """A `rlhf.retrieval.Gallery`: the images that are retrieved, and those of `replay`."""
    queries: PluginConfig
    """Gives `rlhf.retrieval.RetrievalQuery`s to train on."""
    replay: PluginConfig | None = None
    """Gives (image id, caption) pairs that hold retrieval ability (loss.replay_coef)."""


class OrdersConfig(Section):
    """How images of a query are picked and ordered: u rows of falling relevance, v places of falling taste."""

    u: PositiveInt = 5
    v: PositiveInt = 5
    stride: PositiveInt = 2
    """Of what is retrieved every stride-th image is taken."""
    pool: Literal["union", "rephrased", "plain"] = "union"
    """Retrieved by which text. union: by both, so that images which only the plain query likes are seen, too."""
    gallery_share: float = Field(default=1.0, gt=0, le=1)
    """Each visit to a query retrieves from a random share of the gallery: its lists differ."""
    refresh_every: Count = 0
    """Weight versions after which the gallery is embedded anew; 0: never, lists are those of the start."""
    path: str | None = None
    """Lists that `rlhf vision build-orders` wrote; none: they are made as the run goes on."""

    @property
    def num_items(self) -> int:
        """Images of a list."""
        return self.u * self.v

    @model_validator(mode="after")
    def _is_a_list(self) -> Self:
        if self.num_items < 2:
            raise ValueError("orders.u times orders.v is 1: a list needs two images to be ordered.")
        return self


class LossConfig(Section):
    """What is learned from the lists (rlhf/algorithms/alignment.py)."""

    name: Literal["rp_pl", "rp_dpo", "dpo", "ipo", "sft", "sft_list", "grpo", "none"] = "rp_pl"
    """none: nothing but the replay loss."""
    beta: Positive = 1.0
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round (rp_dpo, dpo)."""
    closure: Literal["rows_columns", "dominance"] = "rows_columns"
    """Which pairs of the grid are ordered (rp_dpo)."""
    kl_coef: NonNegative = 0.0
    """Of KL to the reference over the pool (grpo)."""
    replay_coef: NonNegative = 1.0
    """w_pt: of the contrastive loss on `data.replay`, which holds retrieval ability. 0 gives that up."""
    replay_label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        readers = {
            "beta": ("rp_pl", "rp_dpo", "dpo", "ipo"),
            "label_smoothing": ("rp_dpo", "dpo"),
            "closure": ("rp_dpo",),
            "kl_coef": ("grpo",),
        }
        for key, losses in readers.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.name not in losses:
                raise ValueError(
                    f"loss.{key} is {value} but loss.name is {self.name}, which does not read it; "
                    f"{', '.join(losses)} do. Remove it, or name one of them."
                )
        return self


class AlignmentScheduleConfig(Section):
    """How much, and how far judging may run ahead."""

    num_steps: PositiveInt = 200
    queries_per_step: PositiveInt = 8
    """Lists of a step. Pair losses read two images of each: 100 pairs cost as much as 8 lists of 25."""
    replay_per_step: PositiveInt = 96
    """(image, caption) pairs of a step."""
    max_staleness: Count = 0
    """0 synchronous, 1 one-step-off, k asynchronous: no list is trained more than k versions after it was judged."""
    max_discarded: Fraction = 0.9


class ImagesConfig(Section):
    """How many pictures a learner rank holds."""

    per_pass: PositiveInt = 512
    """Most images of lists in one forward pass. Pairs (replay, sft) are in one: all are negatives of each other."""
    cache_mb: PositiveInt = 512
    """Prepared images that a rank remembers."""


class VisionEvalConfig(Section):
    """Evaluation on held-out queries and images: taste and retention side by side."""

    every: Count = 50
    """Steps between evaluations (also before the first and after the last step); 0: never."""
    gallery: PluginConfig | None = None
    """Images that training never retrieves; none: no evaluation."""
    queries: PluginConfig | None = None
    truth: PluginConfig | None = None
    """A `rlhf.retrieval.Truth`: relevance and taste that training never sees. Without it the judges' mean score is
    all that is measured of taste."""
    captions: PluginConfig | None = None
    """(image id, caption) pairs for recall."""
    recall_among: PositiveInt | None = None
    """Most captions that a recall searches at a time: more are measured in parts of equal size. Default: all."""
    classes: PluginConfig | None = None
    """Gives {text: image ids} for zero-shot accuracy."""
    top_k: PositiveInt = 10

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.gallery is None) != (self.queries is None):
            missing = "gallery" if self.gallery is None else "queries"
            raise ValueError(
                f"{missing} is missing: an evaluation needs gallery and queries. Give both, or none."
            )
        return self


class AlignmentRecipe(Section):
    """A whole run of retrieval alignment."""

    name: str
    seed: int = 0
    run_dir: str | None = None
    """Default: runs/<name>."""
    model: ModelConfig
    pretrain: PretrainConfig | None = None
    data: DataConfig
    judges: dict[str, JudgeConfig] = Field(default_factory=dict)
    rephraser: PluginConfig | None = None
    orders: OrdersConfig = OrdersConfig()
    loss: LossConfig = LossConfig()
    schedule: AlignmentScheduleConfig = AlignmentScheduleConfig()
    learner: LearnerConfig = LearnerConfig()
    images: ImagesConfig = ImagesConfig()
    engine: EngineConfig = EngineConfig()
    sync: SyncConfig = SyncConfig()
    placement: PlacementConfig = PlacementConfig()
    eval: VisionEvalConfig = VisionEvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

    @field_validator("model")
    @classmethod
    def _is_trained_whole(cls, model: ModelConfig) -> ModelConfig:
        if model.trust_remote_code or model.chat_template is not None:
            raise ValueError(
                "model.trust_remote_code and model.chat_template are of language models: remove them."
            )
        return model

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.placement.kind == "colocated" and self.schedule.max_staleness > 0:
            raise ValueError(
                f"schedule.max_staleness is {self.schedule.max_staleness} but placement.kind is colocated: colocated "
                "runs are synchronous. Set max_staleness: 0, or placement.kind: split."
            )
        if self.loss.replay_coef > 0 and self.data.replay is None:
            raise ValueError(
                f"loss.replay_coef is {self.loss.replay_coef:g} but data.replay is missing: without pictures with "
                "captions retrieval ability is lost. Give data.replay, or set loss.replay_coef: 0 to give it up."
            )
        if self.loss.name == "none" and self.loss.replay_coef == 0:
            raise ValueError("loss.name is none and loss.replay_coef is 0: nothing would be learned.")
        if self.orders.num_items > self.images.per_pass:
            raise ValueError(
                f"orders.u x orders.v is {self.orders.num_items} but images.per_pass is {self.images.per_pass}: one "
                "list must fit in a pass."
            )
        learner, default = self.learner.model_dump(), LearnerConfig().model_dump()
        unread = [name for name in ("logprob_chunk", "microbatch_tokens") if learner[name] != default[name]]
        if unread:
            raise ValueError(
                f"learner.{unread[0]} is of language models and read by nothing here: remove it. What bounds a pass "
                "is images.per_pass."
            )
        for key, size in self._shared_out().items():
            if size % self.learner.num_ranks:
                raise ValueError(
                    f"{key} ({size}) is not a multiple of learner.num_ranks ({self.learner.num_ranks}): every rank "
                    "takes as many pairs."
                )
        return self

    def _shared_out(self) -> dict[str, int]:
        sizes = {"schedule.replay_per_step": self.schedule.replay_per_step} if self.loss.replay_coef else {}
        if self.loss.name == "sft":
            sizes["schedule.queries_per_step"] = self.schedule.queries_per_step
        if self.pretrain is not None:
            sizes["pretrain.batch_size"] = self.pretrain.batch_size
        return sizes


AnyRecipe = Recipe | AlignmentRecipe
"""What learner, engines and weight sync are placed for."""
