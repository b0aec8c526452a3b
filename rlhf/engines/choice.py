"""Which engine `engine.kind: auto` means here."""

import importlib.util
import platform
from pathlib import Path
from typing import Literal

from rlhf.errors import DependencyError

EngineKind = Literal["auto", "vllm", "hf"]
CPU_FLAGS = Path("/proc/cpuinfo")


def choose_engine(kind: EngineKind) -> tuple[Literal["vllm", "hf"], str]:
    """(engine, why). Raises DependencyError when vLLM is asked for and cannot run here."""
    if kind == "hf":
        return kind, "asked for by engine.kind"
    obstacle = vllm_obstacle()
    if obstacle is None:
        return "vllm", "asked for by engine.kind" if kind == "vllm" else "installed"
    if kind == "vllm":
        raise DependencyError(
            f"engine.kind is vllm but {obstacle}. Install the `cpu` or `gpu` extra where it can run, "
            "or set engine.kind: hf."
        )
    return "hf", f"{obstacle}: the Hugging Face reference engine serves, slower"


def vllm_obstacle() -> str | None:
    """Why vLLM cannot run here, if it cannot. Imports nothing: the import itself may end the process."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here"
    # vLLM's CPU build ships AVX2 and AVX-512 kernels and dies with SIGILL below that.
    if platform.machine() == "x86_64" and CPU_FLAGS.is_file() and " avx2" not in CPU_FLAGS.read_text():
        return "this processor lacks AVX2, which vLLM needs"
    return None
