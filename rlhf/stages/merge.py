"""One model folder from several, or from a base and its LoRA adapters; tensor by tensor, in float32."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import AutoTokenizer

from rlhf.config.merge import MergeConfig
from rlhf.config.schema import ModelConfig
from rlhf.errors import ModelError
from rlhf.learner.model import tokenizer_files
from rlhf.stages.checkpoints import Weights, write_weights
from rlhf.stages.model_folder import prepare_model_folder

SUMMARY = "merge.json"
_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora")
Merged = Callable[[str], Tensor]
"""The result's tensor of a name, before its type is changed."""


def run_merge(config: MergeConfig, out_folder: Path) -> str:
    """Write the merged model with its tokenizer into `out_folder`, unless it is there; the folder.

    ModelError for models that do not fit each other, or adapters that are more than LoRA on linear layers.
    """
    folders = _folders(config)
    identity = _identity(config, folders)
    summary = out_folder / SUMMARY
    if summary.is_file() and json.loads(summary.read_text())["identity"] == identity:
        return str(out_folder)
    first = next(iter(folders))
    weights = {
        key: Weights.of_model(folder, key=key) for key, folder in folders.items() if key != "merge.adapter"
    }
    _check_alike(folders, weights)
    merged, changed = _merged(config, folders, weights)
    partial = out_folder.with_name(out_folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    tensors = _tensors(weights[first], merged, dtype)
    count = write_weights(partial, tensors, shard_bytes=config.shard_mb * 2**20)
    _copy_rest(Path(folders[first]), partial, config.dtype)
    found = {"identity": identity, "metrics": {"tensors": count, "tensors_changed": changed}}
    (partial / SUMMARY).write_text(json.dumps(found, indent=1))
    shutil.rmtree(out_folder, ignore_errors=True)
    partial.rename(out_folder)
    return str(out_folder)


def _folders(config: MergeConfig) -> dict[str, str]:
    """Every input by its key, on this machine; the one that gives shape and tokenizer comes first."""
    named = {} if config.base is None else {"merge.base": config.base}
    named |= {f"merge.models[{i}]": model.path for i, model in enumerate(config.models)}
    found = {
        key: prepare_model_folder(ModelConfig(path=path), "", seed=0, key=key) for key, path in named.items()
    }
    if config.adapter is not None:
        folder = Path(config.adapter)
        for name in (_ADAPTER, _ADAPTER_WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(
                    f"merge.adapter: {config.adapter!r} holds no {name}; expected a peft folder."
                )
        found["merge.adapter"] = str(folder.resolve())
    return found


def _identity(config: MergeConfig, folders: Mapping[str, str]) -> dict[str, Any]:
    files = [file for folder in folders.values() for file in sorted(Path(folder).glob("*")) if file.is_file()]
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {"config": config.model_dump(mode="json", exclude={"shard_mb"}), "files": facts}


def _check_alike(folders: Mapping[str, str], weights: Mapping[str, Weights]) -> None:
    """One architecture, the same tensors of the same shapes, one vocabulary."""
    (first, own), *others = weights.items()
    ours = _config_of(folders[first])
    for key, other in others:
        theirs = _config_of(folders[key])
        for field in ("model_type", "architectures"):
            if ours.get(field) != theirs.get(field):
                raise ModelError(
                    f"{key}: {field} is {theirs.get(field)!r}, that of {first} is {ours.get(field)!r}: only models of "
                    "one architecture can be merged."
                )
        if odd := sorted(own.facts.keys() ^ other.facts.keys()):
            holder = first if odd[0] in own.facts else key
            raise ModelError(
                f"{key}: {len(odd)} tensors are not in both models, {odd[0]!r} only in {holder}."
            )
        for name, fact in own.facts.items():
            if other.facts[name].shape != fact.shape:
                raise ModelError(
                    f"{key}: {name} has the shape {other.facts[name].shape}, in {first} it has {fact.shape}."
                )
    _check_vocabularies(folders)


def _check_vocabularies(folders: Mapping[str, str]) -> None:
    known: tuple[str, Mapping[str, int]] | None = None
    for key, folder in folders.items():
        if not list(Path(folder).glob("tokenizer*")):
            continue
        vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
        known = known or (key, vocabulary)
        if odd := sorted(set(known[1].items()) ^ set(vocabulary.items())):
            raise ModelError(
                f"{key}: its tokenizer differs from that of {known[0]} in {len(odd)} entries, {odd[0][0]!r} among "
                "them: tokens would change their meaning. Merge models of one tokenizer."
            )


def _merged(
    config: MergeConfig, folders: Mapping[str, str], weights: Mapping[str, Weights]
) -> tuple[Merged, int]:
    """What gives each tensor of the result, and how many are not simply the first model's."""
    if config.method == "adapter":
        return _with_adapter(weights["merge.base"], folders["merge.adapter"])
    shares = [model.weight for model in config.models]
    sources = [weights[f"merge.models[{i}]"] for i in range(len(shares))]
    if config.method == "linear":
        shares = [share / sum(shares) for share in shares]
    else:
        shares = [1 - sum(shares), *shares]
        sources = [weights["merge.base"], *sources]
    num_averaged = sum(fact.dtype is not None for fact in sources[0].facts.values())
    return (lambda name: _weighted(name, sources, shares)), num_averaged


def _weighted(name: str, sources: Sequence[Weights], shares: Sequence[float]) -> Tensor:
    if sources[0].facts[name].dtype is None:
        return sources[0].read(name)  # a count or a mask has no average
    total = torch.zeros(sources[0].facts[name].shape)
    for source, share in zip(sources, shares, strict=True):
        total += share * source.read(name).float()
    return total


def _with_adapter(base: Weights, folder: str) -> tuple[Merged, int]:
    config = json.loads((Path(folder) / _ADAPTER).read_text(encoding="utf-8"))
    adapter = Weights([Path(folder) / _ADAPTER_WEIGHTS], f"merge.adapter ({folder})")
    if odd := [name for name in _UNSUPPORTED if config.get(name)]:
        raise ModelError(
            f"merge.adapter: {folder!r} has {odd[0]}, which is not plain LoRA: merge it with peft."
        )
    pairs: dict[str, str] = {}
    saved: dict[str, str] = {}
    for stored in adapter.facts:
        name = stored.removeprefix(_PREFIX)
        module, _, rest = name.partition(".lora_")
        if rest in ("A.weight", "B.weight"):
            pairs[f"{module}.weight"] = f"{_PREFIX}{module}"
        else:
            saved[name] = stored
    for name in (*pairs, *saved):
        if name not in base.facts:
            raise ModelError(
                f"merge.adapter: {name!r} is adapted, but {base.label} stores no such tensor (a tied head, experts "
                "in one tensor, or another model). Merge it with peft, or name the adapter's own base."
            )

    def merged(name: str) -> Tensor:
        if name in saved:
            _check_shape(name, adapter.facts[saved[name]].shape, base)
            return adapter.read(saved[name])
        weight = base.read(name)
        if name not in pairs:
            return weight
        low, high = (adapter.read(f"{pairs[name]}.lora_{side}.weight").float() for side in "AB")
        _check_shape(name, (high.shape[0], low.shape[1]), base)
        scaling = _scaling(config, pairs[name].removeprefix(_PREFIX), rank=low.shape[0])
        return weight.float() + scaling * (high @ low)

    return merged, len(pairs) + len(saved)


def _check_shape(name: str, found: Sequence[int], base: Weights) -> None:
    if tuple(found) != base.facts[name].shape:
        raise ModelError(
            f"merge.adapter: {name!r} is adapted in the shape {tuple(found)}, in {base.label} it has "
            f"{base.facts[name].shape}. Name the adapter's own base."
        )


def _scaling(config: Mapping[str, Any], module: str, *, rank: int) -> float:
    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(alphas.keys(), module), config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _tensors(first: Weights, merged: Merged, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for name, fact in first.facts.items():
        tensor = merged(name)
        yield name, tensor if fact.dtype is None else tensor.to(dtype or fact.dtype)


def _copy_rest(source: Path, folder: Path, dtype: str | None) -> None:
    """Config, generation settings, tokenizer and code of the first model."""
    for file in [*tokenizer_files(str(source)), *source.glob("*.py")]:
        shutil.copy(file, folder)
    config = _config_of(str(source))
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _config_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return found
