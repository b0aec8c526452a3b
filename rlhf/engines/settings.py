"""What every engine is built from: plain values, picklable, ready to be sent to another process."""

from dataclasses import dataclass
from typing import Literal

from rlhf.config.schema import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One engine: which model, on what device, fed by which weight transfer."""

    model: str
    """A Hugging Face folder on disk."""
    config: EngineConfig
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    max_model_len: int
    """Longest prompt plus completion, in tokens."""
    seed: int = 0
    transfer: str = "cpu"
    """Weight-transfer backend: cpu, disk (both ours), nccl or ipc (vLLM's)."""
    index: int = 0
    """Place of this engine among the engines of the run."""
    trust_remote_code: bool = False
    record_routing: bool = False
    """Fill Completion.routing; the model must have experts."""
    kept_limit: int = 0
    """The largest Sampling.kept_limit that will be asked for."""
    max_images: int = 0
    """Most images of one prompt; more than 0 where the model sees any."""
    tokenizer: str | None = None
    """Where vLLM finds the tokenizer that its image processing asks for; None: in the model folder."""
