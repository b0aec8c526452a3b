"""What a service's process is told, as plain values that travel."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

_ENGINE = Literal["vllm", "hf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """One model to be served, and where."""

    name: str
    model: str
    """A folder on this machine."""
    kind: Literal["reward_model", "chat"]
    engine: _ENGINE
    device: Literal["cpu", "cuda"]
    num_gpus: int = 0
    threads: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: int | None = None
    chat_template: str | None = None
    """A Jinja file."""
    args: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    host: str = "127.0.0.1"
    port: int = 0

    def command(self) -> list[str]:
        """Engine and arguments of `rlhf.services.launch`."""
        return [self.engine, *(self._vllm_options() if self.engine == "vllm" else [json.dumps(asdict(self))])]

    def environment(self) -> dict[str, str]:
        """What the process needs beside its parent's environment."""
        found = {
            "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
            "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        if self.device == "cpu":
            # The GPUs of the machine belong to learner and engines.
            found |= {"CUDA_VISIBLE_DEVICES": "", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            found |= {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
        return found

    def _vllm_options(self) -> list[str]:
        options: dict[str, Any] = {
            "model": self.model,
            "served_model_name": self.name,
            "host": self.host,
            "port": self.port,
            "runner": "pooling" if self.kind == "reward_model" else "generate",
            "dtype": self.dtype,
            "tensor_parallel_size": max(self.num_gpus, 1),
            "max_model_len": self.max_model_len,
            "trust_remote_code": self.trust_remote_code,
            "chat_template": self.chat_template,
            "disable_uvicorn_access_log": True,
            "enforce_eager": self.device == "cpu",
            **self.args,
        }
        found: list[str] = []
        for key, value in options.items():
            flag = f"--{key.replace('_', '-')}"
            if value is True:
                found.append(flag)
            elif isinstance(value, Mapping):
                found += [flag, json.dumps(dict(value))]
            elif value is not None and value is not False:
                found += [flag, str(value)]
        return found
