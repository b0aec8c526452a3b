"""The keys of `rlhf vision bench`: one comparison of ways to align a retriever, tuned alike and judged once."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.alignment import AlignmentRecipe, PluginConfig, VisionEvalConfig
from rlhf.config.section import Fraction, NonNegative, Positive, Section

TrainedRow = Literal["sft", "sft_list", "dpo", "ipo", "rp_dpo", "rp_pl", "grpo"]
_READERS = {"beta": ("dpo", "ipo", "rp_dpo", "rp_pl"), "kl_coef": ("grpo",)}
_MEASURED = ("gallery", "queries", "truth", "captions", "classes")
"""What taste and every retained ability are measured on."""


class GridConfig(Section):
    """The settings that a trained row is tuned over: all combinations."""

    beta: tuple[Positive, ...] = (1.0,)
    kl_coef: tuple[NonNegative, ...] = (0.0,)
    """grpo."""
    lr: tuple[Positive, ...] = (3e-4,)
    replay_coef: tuple[Positive, ...] = (1.0,)
    queries_per_step: PositiveInt | None = None
    """Default: the recipe's. Pair losses read two images of a list, sft one: more queries make the work equal."""

    @property
    def size(self) -> int:
        """Combinations."""
        return len(self.beta) * len(self.kl_coef) * len(self.lr) * len(self.replay_coef)


class RetentionConfig(Section):
    """How much of each ability may be lost, absolutely, against the pre-trained model."""

    precision: NonNegative = 0.02
    zero_shot: NonNegative = 0.015
    recall_10: NonNegative = 0.03


class GatesConfig(Section):
    """What the bench demands, in points of taste at k, of the recipe's own loss."""

    over_pretrained: float = 1.0
    over_sft: float = 0.5
    under_cascade: float = 0.1
    """One pass may lie this much under the cascade over the 40 first."""
    no_teacher: Positive = 0.3
    """Without teachers taste moves less than this."""
    over_each_teacher: float = 0.0


class BenchRecipe(Section):
    """A bench file."""

    name: str
    run_dir: str | None = None
    alignment: AlignmentRecipe
    """What every row shares; its `loss` is the row that the gates are about, its `eval` is not read."""
    rows: dict[TrainedRow, GridConfig]
    seeds: PositiveInt = 5
    validation: VisionEvalConfig
    """Where settings are chosen."""
    test: VisionEvalConfig
    """Opened once, after settings and gates are frozen."""
    pair_judge: PluginConfig | None = None
    """A `rlhf.retrieval.PairJudge` that compares a row's first images with the pre-trained model's, both ways round."""
    cascade: tuple[PositiveInt, ...] = (20, 40)
    """Images that a cascade scores before it answers."""
    retention: RetentionConfig = RetentionConfig()
    validation_share: Fraction = 0.75
    """Share of `retention` that a setting may use on validation: one at the line falls over it on the test split as
    often as not. The smaller the sets there are, the lower."""
    gates: GatesConfig = GatesConfig()
    workers: PositiveInt | None = None
    """Runs at a time; default: the cores that the process may use."""
    controls: tuple[Literal["no_replay", "judge_only", "rephraser_only", "no_teacher"], ...] = Field(
        default=("no_replay", "judge_only", "rephraser_only", "no_teacher")
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name, heldout in (("validation", self.validation), ("test", self.test)):
            given = heldout.model_dump()
            missing = next((key for key in _MEASURED if given[key] is None), None)
            if missing is not None:
                raise ValueError(
                    f"{name}.{missing} is missing: a bench measures taste and retention, which need "
                    f"{', '.join(_MEASURED)}. Give all."
                )
            if heldout.every == 0:
                raise ValueError(
                    f"{name}.every is 0, which turns evaluation off: remove it, a bench evaluates."
                )
        if self.alignment.data.replay is None:
            raise ValueError(
                "alignment.data.replay is missing: every row is tuned over rows.*.replay_coef, which is of the loss on "
                "it. Give pictures with captions."
            )
        shallow = [depth for depth in self.cascade if depth < self.test.top_k]
        if shallow:
            raise ValueError(
                f"cascade has {shallow[0]} but test.top_k is {self.test.top_k}: a cascade answers with images that it "
                "scored. Deepen it, or lower top_k."
            )
        return self

    @model_validator(mode="after")
    def _is_fair(self) -> Self:
        for row, grid in self.rows.items():
            given = grid.model_dump()
            twice = sorted(k for k, v in given.items() if isinstance(v, tuple) and len(set(v)) < len(v))
            if twice:
                raise ValueError(f"rows.{row}.{twice[0]} is {list(given[twice[0]])}: it names a value twice.")
            for key, readers in _READERS.items():
                if len(given[key]) > 1 and row not in readers:
                    raise ValueError(
                        f"rows.{row}.{key} is {list(given[key])} but {row} does not read it: every setting would be "
                        f"trained {len(given[key])} times. Take it out."
                    )
        sizes = {name: grid.size for name, grid in self.rows.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"rows have grids of sizes {sizes}: every trained row is tuned over as many settings."
            )
        if self.alignment.loss.name not in self.rows:
            raise ValueError(
                f"alignment.loss.name is {self.alignment.loss.name}, which rows does not have: add it."
            )
        return self
