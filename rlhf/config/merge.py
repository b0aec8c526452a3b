"""The keys of a stage that makes one model of several, or of a base and its adapters."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from rlhf.config.section import Section


class WeightedModel(Section):
    """A model and how it counts."""

    path: str
    """A Hugging Face folder or hub name."""
    weight: float = 1.0


class MergeConfig(Section):
    """What is merged, and into what."""

    method: Literal["adapter", "linear", "task_vectors"]
    """adapter: base + a LoRA folder. linear: sum of weight x model over the sum of the weights. task_vectors:
    base + sum of weight x (model - base)."""
    base: str | None = None
    """A Hugging Face folder or hub name (adapter, task_vectors)."""
    adapter: str | None = None
    """A folder with adapter_config.json, as peft writes it."""
    models: tuple[WeightedModel, ...] = ()
    """Of one architecture, with one tokenizer (linear, task_vectors)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the result; default: each tensor's own in the base, or in the first model."""
    shard_mb: PositiveInt = 4096
    """Largest file of the result."""

    @model_validator(mode="after")
    def _has_what_it_takes(self) -> "MergeConfig":
        needed = {"adapter": ("base", "adapter"), "linear": ("models",), "task_vectors": ("base", "models")}
        values = {"base": self.base, "adapter": self.adapter, "models": self.models}
        wanted = needed[self.method]
        missing = [key for key in wanted if not values[key]]
        unread = [key for key, value in values.items() if value and key not in wanted]
        if missing or unread:
            raise ValueError(
                f"merge.method is {self.method}, which takes {' and '.join(wanted)}: "
                f"missing {missing or 'nothing'}, not read {unread or 'nothing'}."
            )
        if self.method == "linear" and sum(model.weight for model in self.models) == 0:
            raise ValueError(
                "merge.models: the weights sum to 0, so there is no average. Change one of them."
            )
        return self
