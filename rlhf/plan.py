"""What a recipe amounts to: derived sizes and a memory estimate, before anything starts."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.algorithms.catalogue import Algorithm, resolve
from rlhf.config.rewards import RewardConfig
from rlhf.config.schema import Recipe
from rlhf.config.task import TaskConfig
from rlhf.data.vision_model import auto_model, part_of, sees
from rlhf.errors import ConfigError

_BYTES = {"float32": 4, "bfloat16": 2}
_MOMENT_BYTES = {"float32": 8.0, "fp8": 3 + 8 / 128}
"""AdamW's, a parameter: FP8 and float16, with two scales a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What an estimate needs to know of a model."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    source: str
    """Where the numbers come from, for the reader."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Parameters of each part, in a model that sees images."""


def derive_plan(recipe: Recipe) -> list[tuple[str, str]]:
    """(what, how much) lines: the arithmetic that batch sizes, slots and memory follow from."""
    s, learner = recipe.schedule, recipe.learner
    sequences = s.prompts_per_step * s.samples_per_prompt
    codes = recipe.sampling.image_codes
    row = recipe.longest_row * (2 if codes is not None and codes.rule.is_guided else 1)
    per_minibatch = sequences // s.minibatches
    per_rank = -(-per_minibatch // learner.num_ranks)
    at_most = -(-per_rank // (learner.microbatch_tokens // row))
    algorithm = resolve(recipe)
    lines = [
        ("steps", f"{s.num_steps}"),
        (
            "sequences per step",
            f"{s.prompts_per_step} prompts x {s.samples_per_prompt} samples = {sequences}",
        ),
        (
            "optimizer steps per step",
            f"{s.minibatches} mini-batches of {per_minibatch} sequences"
            + (f", {s.inner_epochs} passes" if s.inner_epochs > 1 else ""),
        ),
        (
            "micro-batches per rank",
            f"at most {at_most} per mini-batch ({learner.num_ranks} ranks, {learner.microbatch_tokens} tokens each, "
            f"rows up to {row} tokens{', unconditional ones included' if row > recipe.longest_row else ''})",
        ),
        (
            "admission slots",
            f"({s.max_staleness} + 1) x {s.prompts_per_step} = {(s.max_staleness + 1) * s.prompts_per_step} groups",
        ),
        ("staleness bound", f"no token is trained more than {s.max_staleness} weight versions late"),
        *algorithm.lines(),
        *_around(recipe, algorithm),
        *_judges(recipe),
        (
            "learner",
            f"{learner.num_ranks} FSDP2 ranks, {recipe.model.dtype} compute, float32 master weights"
            + (", AdamW's moments in FP8 and float16" if learner.optimizer_state == "fp8" else ""),
        ),
        (
            "engines",
            f"{recipe.engine.num_engines} x {recipe.engine.kind} (tensor parallel {recipe.engine.tensor_parallel}), "
            f"{recipe.engine.max_sequences} sequences at a time, placement {recipe.placement.kind}"
            + "".join(f", {key} fp8" for key in recipe.engine.narrow_keys),
        ),
    ]
    lines.append(("devices", _devices(recipe)))
    return lines + _memory(
        recipe, needs_reference=algorithm.needs_reference, has_critic=algorithm.value_loss is not None
    )


def _around(recipe: Recipe, algorithm: Algorithm) -> list[tuple[str, str]]:
    """What the bundle sets outside the section `algorithm`, or leaves without effect."""
    config, schedule, task = recipe.algorithm, recipe.schedule, recipe.task
    lines = []
    has_ratio = config.policy != "reinforce"
    if has_ratio and schedule.minibatches * schedule.inner_epochs == 1 and config.old_from == "learner":
        lines.append(
            ("  ratio", "1, so that no clip acts: one update per step (schedule.minibatches, inner_epochs)")
        )
    if algorithm.needs_reference:
        every, target = config.reference_reset_every, config.kl_target
        within = "" if every < schedule.num_steps else " (not within this run)"
        role = "teacher: " if "teacher_logprobs" in algorithm.inputs else ""
        parts = [
            f"{role}{config.reference or 'the model before training'}",
            f"the policy takes its place every {every} steps{within}" if every else "",
            f"kl_coef is steered towards a KL of {target:g} per token" if target else "",
        ]
        lines.append(("  reference", "; ".join(filter(None, parts))))
    if config.teachers:
        named = ", ".join(f"{name}: {path}" for name, path in config.teachers.items())
        lines.append(("  teachers", f"{named}; a row's is named by its column {config.teacher_by}"))
    if algorithm.value_loss is not None:
        critic = recipe.critic
        alone = f"{critic.pretrain_steps} of {schedule.num_steps} steps on the critic alone first"
        adapters = "" if critic.lora is None else ", adapters"
        lines.append(("  critic training", f"lr {critic.lr:g} {critic.lr_schedule}{adapters}; {alone}"))
    lines.append(("sampling", _sampling(recipe)))
    if schedule.drop_zero_variance:
        share = f"stop above {schedule.max_discarded:g} of the groups"
        lines.append(("dynamic sampling", f"groups of equal rewards are discarded; {share}"))
    if task.curriculum is not None:
        band = f"pass rate {task.curriculum.low:g} to {task.curriculum.high:g} or never measured"
        lines.append(("curriculum", f"{band}; others with chance {task.curriculum.revisit:g}"))
    return lines


def _judges(recipe: Recipe) -> list[tuple[str, str]]:
    task = recipe.task
    lines = []
    for name, share in task.shares(recipe.schedule.num_steps).items() if task.scenarios else ():
        points = [f"{weight:g} at step {step}" for step, weight in task.scenarios[name].weight_points]
        mean = f" (weight {', '.join(points)})" if points else ""
        per_step = share * recipe.schedule.prompts_per_step
        lines.append((f"scenario {name}", f"{share:.1%} of the prompts, {per_step:.4g} a step{mean}"))
        lines += [(f"  {what}", text) for what, text in _judges_of(recipe, task.alone(name))]
    return lines or _judges_of(recipe, task)


def _judges_of(recipe: Recipe, task: TaskConfig) -> list[tuple[str, str]]:
    environment, rewards = task.environment, task.rewards
    lines = []
    if environment is not None:
        limits = environment.limits
        lines.append(
            (
                "environment",
                f"{environment.use}, weight {environment.weight:g}; at most {limits.max_turns} turns, "
                f"{limits.max_tokens} tokens, {limits.episode_s:g} s; history {environment.history}",
            )
        )
    if rewards:
        told = (f"{r.weight:g} x {r.use}{_when(r, recipe.schedule.num_steps)}" for r in rewards)
        lines.append(("rewards", ", ".join(told)))
    return lines


def _when(reward: RewardConfig, num_steps: int) -> str:
    if not reward.is_scheduled:
        return ""
    counts = [version for version in range(num_steps) if reward.counts_at(version, num_steps)]
    return f" (steps {counts[0]} to {counts[-1]} of 0 to {num_steps - 1})"


def _sampling(recipe: Recipe) -> str:
    sampling, config = recipe.sampling, _model_config(recipe)
    points = [f"{temperature:g} at step {step}" for step, temperature in sampling.temperature_points]
    parts = [f"temperature {', '.join(points) or format(sampling.temperature, 'g')}"]
    parts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
    if sampling.keep_sampling_mask:
        acts = f"sets of up to {sampling.kept_limit} tokens are kept for the learner"
        parts.append(acts if len(parts) > 1 else "no sampling mask to keep: top_p and top_k are off")
    if sampling.image_codes is not None:
        codes = sampling.image_codes
        acts = f", guidance {codes.guidance:g}" if codes.rule.is_guided else ""
        parts.append(f"images of {codes.num_tokens} out of {codes.num_codes} codes{acts}")
    if config is None:
        parts += [f"keep_routing {sampling.keep_routing}"] if sampling.keep_routing else []
    elif replays_routing(recipe, config):
        parts.append("chosen experts are replayed in the learner")
    elif sampling.keep_routing:
        parts.append("no routing to keep: the model has no experts")
    return ", ".join(parts)


def _devices(recipe: Recipe) -> str:
    learner, engine = recipe.learner, recipe.engine
    learner_cores, engine_cores = learner.num_ranks * learner.threads, engine.num_engines * engine.threads
    if recipe.placement.kind == "colocated":
        return f"{learner.num_ranks} GPUs, or {max(learner_cores, engine_cores)} cores: learner and engines take turns"
    gpus = learner.num_ranks + engine.num_engines * engine.tensor_parallel
    return f"{gpus} GPUs, or {learner_cores + engine_cores} cores"


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json is a mixture of experts."""
    config = {**config, **(config.get("text_config") or {})}
    return any((config.get(key) or 0) > 1 for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def replays_routing(recipe: Recipe, config: Mapping[str, Any]) -> bool:
    """Whether `sampling.keep_routing` acts on a model with this config.json. Raises ConfigError where it cannot."""
    keep = recipe.sampling.keep_routing
    if keep is True and not any("expert" in key for key in {**config, **(config.get("text_config") or {})}):
        raise ConfigError(
            "sampling.keep_routing is true but the model has no experts (its config.json names none). "
            "Set sampling.keep_routing: false, or auto, or use a mixture of experts."
        )
    acts = has_experts(config) if keep == "auto" else keep
    if acts and recipe.engine.compile:
        raise ConfigError(
            f"sampling.keep_routing is {keep}, the model has experts and engine.compile is true: the experts are "
            "recorded by code that a compiled model does not run. Set one of the two to false."
        )
    return acts


def model_size(recipe: Recipe) -> ModelSize | None:
    """The size of the recipe's model, from its config or, failing that, its name; None if neither tells."""
    config = _model_config(recipe)
    return _from_name(str(recipe.model.path)) if config is None else _from_config(config)


def _model_config(recipe: Recipe) -> dict[str, Any] | None:
    """What the model's config.json says; None where it is not on this machine."""
    if recipe.model.config is not None:
        return recipe.model.config
    file = Path(str(recipe.model.path)) / "config.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _from_config(config: dict[str, Any]) -> ModelSize:
    import torch
    from transformers import AutoConfig

    settings = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    built = AutoConfig.for_model(config["model_type"], **settings)
    with torch.device("meta"):
        model = auto_model(config).from_config(built)
    text, sizes = built.get_text_config(), {name: p.numel() for name, p in model.named_parameters()}
    parts: Counter[str] = Counter()
    for name, size in sizes.items() if sees(config) else ():
        parts[part_of(name)] += size
    return ModelSize(
        parameters=sum(sizes.values()),
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        source="the model's config",
        parts=parts,
    )


def _from_name(name: str) -> ModelSize | None:
    """Sizes of a dense model of the named class, from its parameter count: 12 h^2 parameters a layer, h/128 layers."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", name.lower())
    if found is None:
        return None
    parameters = int(float(found[1]) * (1e9 if found[2] == "b" else 1e6))
    hidden = round((parameters / 12 * 128) ** (1 / 3) / 64) * 64
    return ModelSize(
        parameters=parameters,
        hidden=hidden,
        layers=max(hidden // 128, 1),
        vocabulary=151_936,
        source="the model's name (its config is not on this machine)",
    )


def _memory(recipe: Recipe, *, needs_reference: bool, has_critic: bool) -> list[tuple[str, str]]:
    size = model_size(recipe)
    if size is None:
        return [
            (
                "memory estimate",
                "unknown: the model's config is not on this machine and its name gives no size",
            )
        ]
    width = _BYTES[recipe.model.dtype]
    ranks = recipe.learner.num_ranks
    frozen = sum(size.parts.get(part, 0) for part in recipe.model.freeze.frozen)
    trained = size.parameters - frozen if recipe.model.lora is None else _lora_parameters(recipe, size)
    state = (4 * size.parameters + (4 + _MOMENT_BYTES[recipe.learner.optimizer_state]) * trained) / ranks
    critic = state if has_critic else 0.0
    reference = 4 * size.parameters / ranks if needs_reference and recipe.model.lora is None else 0
    tokens = recipe.learner.microbatch_tokens
    per_layer = 2 if recipe.learner.activation_checkpointing else 34
    activations = tokens * size.hidden * width * (per_layer / 2 * size.layers + 17)
    logits = recipe.learner.logprob_chunk * size.vocabulary * 4 * 3
    weights = _engine_weights(recipe, size) / recipe.engine.tensor_parallel
    cache = recipe.engine.kv_cache_mb
    teachers = sum(4 * _size_of(path, size) / ranks for path in recipe.algorithm.teachers.values())
    rank_total = state + critic + reference + teachers + activations + logits
    return [
        (
            "parameters",
            f"{size.parameters / 1e6:,.1f} M ({trained / 1e6:,.1f} M trained), from {size.source}",
        ),
        *_parts(recipe, size),
        (
            "memory per learner rank",
            f"about {_gib(rank_total)} (weights, gradients, AdamW {_gib(state)}; "
            + (f"critic {_gib(critic)}; " if has_critic else "")
            + f"reference {_gib(reference)}; "
            + (f"{len(recipe.algorithm.teachers)} teachers {_gib(teachers)}; " if teachers else "")
            + f"activations up to {_gib(activations)}; logits {_gib(logits)})",
        ),
        (
            "memory per engine",
            f"about {_gib(weights)} of weights + KV cache "
            + (
                f"{cache} MB"
                if cache
                else f"(what engine.gpu_memory_fraction = {recipe.engine.gpu_memory_fraction} leaves; 512 MB on a CPU)"
            ),
        ),
    ]


def _parts(recipe: Recipe, size: ModelSize) -> list[tuple[str, str]]:
    """What is trained of each part of a model that sees images."""
    if not size.parts:
        return []
    told = []
    for part, number in size.parts.items():
        state = "frozen" if part in recipe.model.freeze.frozen else "trained"
        if recipe.model.lora is not None:
            state = "frozen" if part != "text" else "adapters"
        told.append(f"{part} {number / 1e6:,.2f} M {state}")
    return [("  parts", ", ".join(told))]


def _engine_weights(recipe: Recipe, size: ModelSize) -> float:
    """Bytes. In FP8 embeddings and head keep the model's type, the linear layers have one byte a parameter."""
    width = _BYTES[recipe.model.dtype]
    if recipe.engine.quantization == "none":
        return width * size.parameters
    embeddings = size.vocabulary * size.hidden
    return width * embeddings + (size.parameters - embeddings)


def _size_of(path: str, policy: ModelSize) -> int:
    """Parameters of another model; where nothing tells, as many as the policy has."""
    file = Path(path) / "config.json"
    found = _from_config(json.loads(file.read_text())) if file.is_file() else _from_name(path)
    return policy.parameters if found is None else found.parameters


def _lora_parameters(recipe: Recipe, size: ModelSize) -> int:
    assert recipe.model.lora is not None
    # Seven linear layers of a decoder block: about 18 x hidden in + out features together.
    return recipe.model.lora.rank * size.layers * 18 * size.hidden


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.0f} GiB"
