"""From `model` of a recipe to a Hugging Face folder on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.config.schema import ModelConfig
from rlhf.config.vision import ImageProcessorConfig
from rlhf.data.characters import KINDS, VISION, write_character_tokenizer
from rlhf.data.scoring_models import is_dual
from rlhf.data.vision_model import auto_model, sees
from rlhf.errors import ModelError
from rlhf.stages.dual_folder import write_dual
from rlhf.stages.vision_folder import write_vision

SMALLEST_HEAD = 32
"""vLLM's CPU attention refuses a smaller head_dim."""


def prepare_model_folder(
    model: ModelConfig, folder: str | Path, *, seed: int, key: str = "model.path"
) -> str:
    """The folder of the model: `model.path` itself, its download, or a random model written to `folder`.

    A random model is the same for the same config and seed, and is written again each time.
    Raises ModelError naming the key (`key` is that of the path) when the model or its tokenizer cannot be had.
    """
    if model.config is not None:
        return _initialise(model, Path(folder).resolve(), seed=seed)
    path = Path(str(model.path))
    if path.exists():
        return _check_folder(path.resolve(), key)
    if path.is_absolute() or str(model.path).startswith((".", "~")) or str(model.path).count("/") > 1:
        raise ModelError(f"{key}: there is no folder {str(model.path)!r} (looked in {Path.cwd()}).")
    return _download(str(model.path), key)


def is_at_hand(name: str) -> bool:
    """Whether a model is on this machine: a folder, or a hub name whose download is in the cache."""
    if Path(name).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def tokenizer_path(model: ModelConfig) -> str | None:
    """The tokenizer to load beside the model folder; None: the one in it."""
    return None if model.tokenizer in KINDS else model.tokenizer


def context_problem(config: Mapping[str, Any], *, longest: int) -> str | None:
    """Why rows of `longest` tokens do not suit a model with this config.json; None when they do.

    They must fit into its positions, and into its sliding window where it has layers that use one:
    packed attention sees whole rows.
    """
    config = {**config, **(config.get("text_config") or {})}
    positions, window = config.get("max_position_embeddings"), config.get("sliding_window")
    layers = config.get("layer_types")
    slides = config.get("use_sliding_window") is not False
    if layers is not None:
        slides = "sliding_attention" in layers
    limits = [(positions, "positions (max_position_embeddings in its config.json)")]
    if slides:
        limits.append((window, "tokens of sliding window (sliding_window in its config.json)"))
    for limit, what in limits:
        if limit is not None and longest > limit:
            return (
                "sampling.max_prompt_tokens + sampling.max_tokens (or eval.max_tokens) is "
                f"{longest}, but the model has {limit} {what}. Lower the first two."
            )
    return None


def _check_folder(path: Path, key: str) -> str:
    if not (path / "config.json").is_file():
        raise ModelError(f"{key}: {str(path)!r} holds no config.json; expected a Hugging Face model folder.")
    return str(path)


def _download(name: str, key: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).rstrip(".")
        raise ModelError(
            f"{key}: {name!r} is neither a folder here nor a model that could be downloaded: {reason}. "
            "Give a folder, or a hub name that this machine can reach."
        ) from error


def _initialise(model: ModelConfig, folder: Path, *, seed: int) -> str:
    import torch
    from transformers import AutoConfig, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = _read_config(AutoConfig, model)
    text = config.get_text_config()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _write_tokenizer(model, folder, vocabulary_size=text.vocab_size)
    if is_dual(config.to_dict()):
        write_dual(config, tokenizer, folder, seed=seed)
        return str(folder)
    if sees(config.to_dict()):
        write_vision(config, tokenizer, model.image_processor or ImageProcessorConfig(), folder)
    elif model.image_processor is not None:
        raise ModelError(
            f"model.image_processor is given, but model.config has model_type {config.model_type!r}, which sees no "
            "images. Remove it."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = auto_model(config.to_dict()).from_config(
            config, dtype=torch.float32, trust_remote_code=model.trust_remote_code
        )
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    for part in (network.config, network.config.get_text_config()):
        for name, token in ends.items():
            setattr(part, name, token)
    network.generation_config = GenerationConfig(**ends)
    network.save_pretrained(folder)
    return str(folder)


def _read_config(auto_config: Any, model: ModelConfig) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    values = dict(model.config or {})
    kind = values.pop("model_type", None)
    if kind is None:
        raise ModelError(
            "model.config has no model_type; expected one that transformers knows, for example 'qwen3'."
        )
    remote = (values.get("auto_map") or {}).get("AutoConfig") if model.trust_remote_code else None
    try:
        if remote is None:
            config = auto_config.for_model(kind, **values)
        else:
            config = get_class_from_dynamic_module(remote, "")(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model.config cannot be used: {error}") from error
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head < SMALLEST_HEAD:
        raise ModelError(
            f"model.config: head_dim is {head}, expected {SMALLEST_HEAD} or more "
            f"(vLLM's CPU attention refuses less). "
            f"Set model.config.head_dim: {SMALLEST_HEAD}, or use fewer heads."
        )
    sections = (getattr(text, "rope_parameters", None) or {}).get("mrope_section")
    if sections is not None and sum(sections) != head // 2:
        raise ModelError(
            f"model.config: mrope_section is {list(sections)} and head_dim is {head}: expected sections that add up to "
            f"{head // 2}, half of it."
        )
    return config


def _write_tokenizer(model: ModelConfig, folder: Path, *, vocabulary_size: int) -> Any:
    from transformers import AutoTokenizer

    if model.tokenizer is None:
        raise ModelError(
            f"model.tokenizer is missing: with model.config give {', '.join(KINDS)}, a folder or a hub name."
        )
    if model.tokenizer in KINDS:
        write_character_tokenizer(
            folder,
            tags=KINDS[model.tokenizer],
            specials=VISION if sees(model.config or {}) else (),
            vocabulary_size=vocabulary_size,
        )
        return AutoTokenizer.from_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.tokenizer: no tokenizer could be loaded from {model.tokenizer!r}: {error}"
        ) from error
    if len(tokenizer) > vocabulary_size:
        raise ModelError(
            f"model.config.vocab_size is {vocabulary_size}, but the tokenizer {model.tokenizer!r} has "
            f"{len(tokenizer)} tokens."
        )
    tokenizer.save_pretrained(folder)
    return tokenizer
