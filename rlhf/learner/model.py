"""The policy network: loaded or made at random, checked, adapted by LoRA, sharded by FSDP2."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightTransform,
    revert_weight_conversion,
)

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.data.vision_model import TOWER, auto_model, part_of, sees
from rlhf.errors import ModelError
from rlhf.learner.attention import PACKED
from rlhf.learner.cpu_layers import use_cpu_layers
from rlhf.learner.routing import routers
from rlhf.learner.shards import local
from rlhf.learner.vision import freeze

_MIXERS = re.compile(r"mamba|deltanet|shortconv|recurrent|linearattention|rwkv|ssm", re.IGNORECASE)
_NO_BACKENDS = (
    "{kind} does not support attention backends in transformers, so rows cannot be packed. "
    "Choose a model that does (Qwen, Llama, Mistral, Phi, ...)."
)
_UNIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


def read_config(model: ModelConfig) -> PretrainedConfig:
    """The Hugging Face config of the model.

    Raises ModelError when it cannot be read or cannot be trained here.
    """
    try:
        if model.path is not None:
            config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        else:
            assert model.config is not None
            config = AutoConfig.for_model(**model.config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        key = f"model.path: {model.path!r}" if model.path is not None else "model.config"
        raise ModelError(
            f"{key} is not a model that transformers can read ({error}). "
            "Expected a folder with config.json, a hub name, or a config with model_type."
        ) from error
    _refuse_config(config)
    return config


def _refuse_config(config: PretrainedConfig) -> None:
    found = config.get_text_config().to_dict()
    mixers = sorted(set(found.get("layer_types") or ()) - {"full_attention", "sliding_attention"})
    scaled = [name for name in _UNIT_SCALES if found.get(name) not in (None, 1, 1.0)]
    reason = ""
    if mixers:
        reason = f"layers of type {', '.join(mixers)}, which cannot be packed"
    elif scaled or found.get("final_logit_softcapping") is not None:
        reason = (
            f"rescaled logits ({(*scaled, 'final_logit_softcapping')[0]}), which the learner does not compute"
        )
    if reason:
        raise ModelError(f"model type {config.model_type!r} has {reason}. Choose a full-attention model.")


def build_model(model: ModelConfig, seed: int, *, on_meta: bool) -> PreTrainedModel:
    """The model in float32 on the CPU (weights of the folder, or random by `seed`), or without storage."""
    config = read_config(model)
    auto = auto_model(config.to_dict())
    is_seeing = sees(config.to_dict())
    options = {
        "dtype": torch.float32,
        # A tower looks at each image whole: its attention is not over packed rows.
        "attn_implementation": {"text_config": PACKED, "vision_config": "sdpa"} if is_seeing else PACKED,
        "trust_remote_code": model.trust_remote_code,
    }
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.manual_seed(seed)
        try:
            if model.path is None or on_meta:
                network = auto.from_config(config, **options)
            else:
                network = auto.from_pretrained(model.path, config=config, **options)
        except KeyError as error:
            # Models with attention classes of their own look theirs up by name.
            if error.args != (PACKED,):
                raise
            raise ModelError(_NO_BACKENDS.format(kind=f"model type {config.model_type!r}")) from error
        _refuse_modules(network)
        if model.lora is not None:
            add_lora(network, model.lora, sees=is_seeing)
        _freeze(network, model)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "jitter_noise" in vars(module):
            module.jitter_noise = 0.0
    # Kept as transformers keeps it: the same names on every rank, whether its model was loaded or made.
    network._weight_conversions = _conversions(network)
    use_cpu_layers(network)
    return network


def _conversions(network: PreTrainedModel) -> list[WeightTransform]:
    """How the tensors of a checkpoint become those of the network; each must go back by itself."""
    found = [
        conversion
        for conversion in get_model_conversion_mapping(network, add_legacy=False)
        if not isinstance(conversion, PrefixChange)
    ]
    for conversion in found:
        if isinstance(conversion, WeightConverter) and len(conversion.target_patterns) > 1:
            raise ModelError(
                f"{type(network).__name__} splits {conversion.source_patterns[0]!r} of its checkpoint into several "
                "tensors, and the learner publishes one at a time. Choose another architecture (Qwen, Llama, ...)."
            )
    return found


def _refuse_modules(network: PreTrainedModel) -> None:
    kind = type(network).__name__
    if not network._supports_attention_backend:
        raise ModelError(_NO_BACKENDS.format(kind=kind))
    mixer = next((type(m).__name__ for m in network.modules() if _MIXERS.search(type(m).__name__)), None)
    if mixer is not None:
        raise ModelError(
            f"{kind} mixes tokens through {mixer}, which carries state from row to row when packed."
        )


def _freeze(network: PreTrainedModel, model: ModelConfig) -> None:
    parts = model.freeze.frozen
    absent = parts - {part_of(name) for name, _ in network.named_parameters()}
    if absent:
        raise ModelError(
            f"model.freeze names {', '.join(sorted(absent))}, which {type(network).__name__} does not have. "
            "Remove it, or choose a model that sees images."
        )
    freeze(network, parts)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(
            f"model.freeze names {', '.join(sorted(parts))}, which is all that would be trained of "
            f"{type(network).__name__}. Free one of them, or change model.lora.targets."
        )


def add_lora(network: PreTrainedModel, lora: LoraConfig, *, sees: bool) -> None:
    """Give the named modules adapters. Raises ModelError for modules that are not there or cannot have them."""
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    names_tower = not isinstance(lora.targets, str) and any(TOWER in target for target in lora.targets)
    adapter = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        exclude_modules=rf".*\b{TOWER}\b.*" if sees and not names_tower else None,
    )
    try:
        inject_adapter_in_model(adapter, network)
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {error}") from error
    adapted = [module for module in network.modules() if isinstance(module, LoraLayer)]
    if any(isinstance(module, ParamWrapper) for module in adapted):
        raise ModelError(
            "model.lora.targets reaches the experts, which are one tensor per layer and get no adapters here. "
            "Name the other modules, for example [q_proj, k_proj, v_proj, o_proj]."
        )
    # Of dual encoders transformers knows no input embeddings, and a convolution cuts pictures into patches.
    embeddings = [
        module for module in adapted if isinstance(module.get_base_layer(), nn.Embedding | nn.Conv2d)
    ]
    if embeddings or network.get_output_embeddings() in adapted:
        raise ModelError("model.lora.targets names the embeddings or the output head. Leave them out.")


class HasModel(Protocol):
    """A root module around a network of transformers."""

    model: PreTrainedModel


_EXACT = MixedPrecisionPolicy(param_dtype=torch.float32)
"""Of routers: a bfloat16 logit is too coarse to say which expert comes next."""


def shard(module: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard every block, then the root; gradients are summed over ranks, not averaged."""
    precision = MixedPrecisionPolicy()
    if dtype != torch.float32:
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    spread = mesh.size() > 1
    for layer in blocks:
        if dtype != torch.float32:
            for router in routers(layer):
                fully_shard(router, mesh=mesh, mp_policy=_EXACT, reshard_after_forward=spread)
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=spread)
    # Cast here, temperatures would be rounded to bfloat16; hidden states take its type from the embeddings.
    uncast = replace(precision, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=uncast, reshard_after_forward=False)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Forward passes without gradients.

    Without a backward FSDP keeps gathered copies, which a later load or sync would read stale: they are dropped.
    """
    with torch.no_grad():
        yield
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def scatter_from_first(module: nn.Module, full: dict[str, Tensor], device: torch.device) -> None:
    """Give every rank its shard of rank 0's parameters (`full` there, empty elsewhere). A collective."""
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor)
        whole = full[name].to(device) if full else torch.empty(parameter.shape, device=device)
        shards = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=0)
        local(parameter.data).copy_(shards.to_local())
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Run the frozen base of a LoRA model: the reference policy."""
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    kept = [dict(layer.scaling) for layer in layers]
    # peft's own switch also freezes the adapters, and FSDP would remember that.
    for layer in layers:
        layer.scaling = dict.fromkeys(layer.scaling, 0.0)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling = scaling


def full_weights(policy: HasModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight whole, named and shaped as in a checkpoint, LoRA merged, a tied head left out. A collective.

    Experts, which transformers fuses, are apart again. Buffers that a checkpoint holds keep their own dtype.
    """
    adapters = {
        name: module for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)
    }
    for name, parameter in policy.model.named_parameters():
        if ".lora_" in name:
            continue
        weight = whole(parameter)
        if name.endswith(".base_layer.weight") and (
            layer := adapters.get(name.removesuffix(".base_layer.weight"))
        ):
            weight = weight + layer.scaling["default"] * (
                whole(layer.lora_B["default"].weight) @ whole(layer.lora_A["default"].weight)
            )
        yield from _as_in_checkpoint(policy, name, weight.to(dtype))
    for name, buffer in _saved_buffers(policy):
        yield from _as_in_checkpoint(policy, name, buffer)


def weight_specs(policy: HasModel, dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """What `full_weights` yields, in its order, as tensors without storage: nothing is gathered."""
    with torch.device("meta"):
        tensors = [
            (name, torch.empty(parameter.shape, dtype=dtype))
            for name, parameter in policy.model.named_parameters()
            if ".lora_" not in name
        ]
    tensors += [(name, buffer.to("meta")) for name, buffer in _saved_buffers(policy)]
    return [spec for name, tensor in tensors for spec in _as_in_checkpoint(policy, name, tensor)]


def _saved_buffers(policy: HasModel) -> list[tuple[str, Tensor]]:
    """Buffers that are weights: the selection bias of a router."""
    saved = policy.model.state_dict().keys()
    return [(name, buffer) for name, buffer in policy.model.named_buffers() if name in saved]


def _as_in_checkpoint(policy: HasModel, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    name = name.replace(".base_layer.", ".")
    yield from revert_weight_conversion(policy.model, {name: tensor}).items()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a shard; with one rank it may be the shard itself. A collective."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja",
    "chat_template*", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip


def tokenizer_files(source: str) -> list[Path]:
    """Tokenizer and generation files of a model folder or hub name."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=list(_TOKENIZER_FILES)))
    return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})
