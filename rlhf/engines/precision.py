"""Where an engine can compute in FP8, how it does there, and what vLLM is asked for."""

from rlhf.config.schema import EngineConfig
from rlhf.errors import ConfigError

FP8_CAPABILITY = (8, 9)
"""Of CUDA devices with FP8 arithmetic, from Ada on."""


def precision_arguments(config: EngineConfig) -> dict[str, str]:
    """Keyword arguments of vLLM's AsyncEngineArgs.

    Of its schemes the one with the finest scales, which refuses GPUs without FP8: others would round weights alone.
    """
    arguments = {"quantization": "fp8_per_channel"} if config.quantization == "fp8" else {}
    return arguments | ({} if config.kv_cache_dtype == "auto" else {"kv_cache_dtype": config.kv_cache_dtype})


def check_precision(config: EngineConfig, *, kind: str, device: str, dtype: str) -> str | None:
    """How FP8 is computed here, in one line for the log; None where it is not asked for.

    Raises ConfigError where the engine cannot.
    """
    if not config.narrow_keys:
        return None
    key, off = next(iter(config.narrow_keys.items()))
    if kind == "hf" and config.kv_cache_dtype != "auto":
        raise ConfigError(
            f"engine.kv_cache_dtype is {config.kv_cache_dtype} but the engine is hf, which keeps its cache in the "
            "model's type. Set engine.kv_cache_dtype: auto, or use vLLM."
        )
    if kind == "hf":
        return (
            "FP8 is simulated: rounded as vLLM rounds, computed in the model's type, no faster and no smaller"
        )
    if dtype != "bfloat16":
        raise ConfigError(
            f"engine.{key} is fp8 and model.dtype is {dtype}: vLLM makes FP8 of bfloat16 models only. "
            f"Set model.dtype: bfloat16, or engine.{key}: {off}."
        )
    if device == "cpu":
        return "FP8 on vLLM's CPU kernels: a GPU's numbers, not its speed"
    found = _capability()
    if found is not None and found < FP8_CAPABILITY:
        raise ConfigError(
            f"engine.{key} is fp8 but the GPU has compute capability {found[0]}.{found[1]}, and FP8 arithmetic begins "
            f"at {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} (Ada, Hopper). Set engine.{key}: {off}."
        )
    return "FP8: vLLM quantises at load and at every sync"


def _capability() -> tuple[int, int] | None:
    """Of the least capable GPU here; None without one, as on the driver's machine of a cluster."""
    import torch

    found = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return min(found, default=None)
