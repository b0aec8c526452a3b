"""What a run is made from, checked before any process is started: model, prompts, renderer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.cluster.launch import device_for
from rlhf.config.algorithm import frozen_models
from rlhf.config.environment import EnvironmentConfig
from rlhf.config.image_codes import vocabulary_problem
from rlhf.config.rewards import RewardConfig
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.services import ServiceConfig, named_services
from rlhf.data.dual_inputs import is_dual_folder
from rlhf.data.prompts import load_prompts, of_scenario
from rlhf.data.vision_model import find_vision
from rlhf.engines.choice import choose_engine, vllm_obstacle
from rlhf.engines.precision import check_precision
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.parsing import parser_of
from rlhf.episodes.render import Renderer
from rlhf.episodes.template_check import check_template
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import ConfigError, DataError, DependencyError, ModelError
from rlhf.image_codes import ImageCodes
from rlhf.plan import replays_routing
from rlhf.rollout.scoring import WorkerSettings
from rlhf.run_folder import RunFolder
from rlhf.sandbox.policy import Policy
from rlhf.services.settings import ServiceSettings
from rlhf.stages.model_folder import context_problem, prepare_model_folder, tokenizer_path
from rlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """What a run is made from once model and prompts are at hand, before any process is started."""

    recipe: Recipe
    folder: RunFolder
    model_folder: str
    renderer: Renderer
    train: list[Prompt]
    heldout: list[Prompt]
    device: str
    engine_kind: str
    keeps_routing: bool = False
    """sampling.keep_routing, decided for the model."""
    dialects: Mapping[str, Dialect] = field(default_factory=dict)
    """How turns become tokens, by scenario, where there is an environment."""

    @property
    def banned(self) -> tuple[int, ...]:
        """`Sampling.banned` of the model."""
        return () if self.renderer.vision is None else self.renderer.vision.banned

    @property
    def image_codes(self) -> ImageCodes | None:
        """`Sampling.image_codes` of the recipe."""
        codes = self.recipe.sampling.image_codes
        return None if codes is None else codes.rule

    @property
    def max_images(self) -> int:
        """Most images of one prompt, for an engine; 0 where the model sees none."""
        if self.renderer.vision is None:
            return 0
        known = [*self.train, *self.heldout]
        return max((len(prompt.images) for prompt in known), default=UNKNOWN_IMAGES) or 1


UNKNOWN_IMAGES = 8
"""Images of a prompt that an engine has room for where the prompts are not known yet."""


def load_task(recipe: Recipe, images: Path | None = None) -> tuple[list[Prompt], list[Prompt]]:
    """(training prompts, held-out prompts), rows checked; of all scenarios, one after another.

    Image bytes of rows are kept in the folder `images`; without one, in the references themselves.
    """
    train: list[Prompt] = []
    heldout: list[Prompt] = []
    for name in recipe.task.scenarios or [""]:
        part, key = recipe.task.alone(name), recipe.task.key_of(name)
        needed = part.needs_reference
        assert part.train is not None
        found = load_prompts(part.train, key=f"{key}.train", require_reference=needed, images=images)
        train += of_scenario(found, name)
        if part.heldout is not None and recipe.eval.every > 0:
            found = load_prompts(part.heldout, key=f"{key}.heldout", require_reference=needed, images=images)
            heldout += of_scenario(found, name)[: recipe.eval.num_prompts]
    return train, heldout


def renderer_for(recipe: Recipe, model_folder: str) -> Renderer:
    """The renderer of a recipe's task for the model in `model_folder`."""
    return Renderer(
        model_folder=model_folder,
        tokenizer_path=tokenizer_path(recipe.model),
        template=recipe.task.template,
        system_prompt=recipe.task.system_prompt,
        chat_template=recipe.model.chat_template,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def gather_materials(
    recipe: Recipe, folder: RunFolder, model_folder: str, *, has_prompts: bool = True
) -> Materials:
    """Check everything that can be checked before processes start; every error names its key.

    Without `has_prompts` neither prompts are read: whoever draws from the model reads his own.
    """
    renderer = renderer_for(recipe, model_folder)
    config = json.loads((Path(model_folder) / "config.json").read_text(encoding="utf-8"))
    _check_frozen(recipe, renderer, config)
    played = recipe.task.environments.items()
    dialects = {name: dialect_for(environment, renderer) for name, environment in played}
    train, heldout = load_task(recipe, folder.path / "images") if has_prompts else ([], [])
    refuse_images_in_environments(recipe, [*train, *heldout])
    _check_teachers(recipe, train)
    limit = recipe.sampling.max_prompt_tokens
    if train:
        renderer.check_prompts(train, max_prompt_tokens=limit, key="task.train")
    if heldout:
        renderer.check_prompts(heldout, max_prompt_tokens=limit, key="task.heldout")
    _check_context(recipe, config)
    _check_image_codes(recipe, renderer, config, [*train, *heldout])
    kind, _ = choose_engine(recipe.engine.kind)
    device = device_for(recipe.placement)
    check_precision(recipe.engine, kind=kind, device=device, dtype=recipe.model.dtype)
    return Materials(
        recipe=recipe,
        folder=folder,
        model_folder=model_folder,
        renderer=renderer,
        train=train,
        heldout=heldout,
        device=device,
        engine_kind=kind,
        keeps_routing=replays_routing(recipe, config),
        dialects=dialects,
    )


def refuse_images_in_environments(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """DataError for the first prompt with images that an environment would play."""
    for prompt in prompts:
        if prompt.images and prompt.scenario in recipe.task.environments:
            raise DataError(
                f"{recipe.task.key_of(prompt.scenario)}: row {prompt.id} has {len(prompt.images)} images, which "
                "environments do not show yet. Remove the environment, or drop the column with a mapper."
            )


def _check_frozen(recipe: Recipe, renderer: Renderer, config: Mapping[str, Any]) -> None:
    """Refuse a reference or teacher that reads our token ids otherwise, or lacks some of them."""
    for key, path in frozen_models(recipe.algorithm).items():
        folder = prepare_model_folder(ModelConfig(path=path), "", seed=0, key=key)
        renderer.check_reference(folder, key=key)
        theirs = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        ours, has = (_text_config(c).get("vocab_size", 0) for c in (config, theirs))
        if key != "algorithm.reference" and has < ours:
            raise ModelError(
                f"{key}: {path!r} has a vocabulary of {has} tokens, the model one of {ours}: it cannot score "
                "all that the model may sample. Use a teacher with the model's vocabulary."
            )


def _check_teachers(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Refuse a training prompt without one of the teachers."""
    teachers, column = recipe.algorithm.teachers, recipe.algorithm.teacher_by
    if not teachers or column is None:
        return
    for prompt in prompts:
        found = prompt.columns.get(column)
        if not isinstance(found, str) or found not in teachers:
            has = f"is {found!r}" if column in prompt.columns else "is missing"
            raise DataError(
                f"task.train: row {prompt.id}: its column {column!r} (algorithm.teacher_by) {has}, expected a name "
                f"under algorithm.teachers: {', '.join(teachers)}."
            )


def _check_image_codes(
    recipe: Recipe, renderer: Renderer, config: Mapping[str, Any], prompts: Sequence[Prompt]
) -> None:
    """Refuse ids that the model does not have, that end its answers, or that stand in prompts."""
    codes = recipe.sampling.image_codes
    if codes is None:
        return
    if renderer.vision is not None:
        raise ConfigError(
            "sampling.image_codes is given, but the model sees images as pixels (model_type "
            f"{config.get('model_type')!r}): the two do not go together yet. Choose a model of text and codes."
        )
    if (problem := vocabulary_problem(codes, _text_config(config).get("vocab_size", 0))) is not None:
        raise ConfigError(problem)
    for token in renderer.stop_token_ids:
        if codes.rule.is_code(token) or token == codes.begin_id:
            raise ConfigError(
                f"sampling.image_codes: id {token} ends an answer (eos of model.tokenizer or generation_config.json), "
                "so it can be neither a code nor begin_id. Correct first_id, num_codes or begin_id."
            )
    for prompt in prompts:
        problem = codes.rule.prompt_problem(renderer.encode_prompt(prompt))
        if problem is not None:
            raise DataError(
                f"task: prompt {prompt.id} {problem} (sampling.image_codes), expected text, at most ended by begin_id "
                f"({codes.begin_id}). Change the row or task.template."
            )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**config, **(config.get("text_config") or {})}


def load_environment(recipe: Recipe, code_dir: Path, scenario: str = "") -> LoadEnvironment:
    """What the process of a scenario's environment imports; '' is that of a task without scenarios."""
    environment = recipe.task.environments[scenario]
    return LoadEnvironment(
        use=environment.use,
        kwargs=environment.kwargs,
        code_dir=str(code_dir),
        sandbox=Policy(**recipe.sandbox.model_dump()),
        max_live=environment.max_live,
        start_s=recipe.timeouts.start_s,
    )


def dialect_for(environment: EnvironmentConfig, renderer: Renderer) -> Dialect:
    """How the turns of an environment become tokens. ModelError for a chat template that cannot be extended."""
    chat = ChatRenderer(renderer)
    check_template(chat)
    return Dialect(
        chat=chat,
        parse=parser_of(environment.tool_syntax, written=chat.written_call(), tokenizer=renderer.tokenizer),
        history=environment.history,
        compaction=environment.compaction,
        compaction_at=environment.compaction_at,
    )


def _check_context(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Refuse rows that are longer than what the model was made for."""
    problem = context_problem(config, longest=recipe.longest_context)
    if problem is not None:
        raise ConfigError(problem)


def worker_settings(recipe: Recipe) -> WorkerSettings:
    """What the reward workers of a recipe have in common. ConfigError for a sandbox that needs a confession."""
    return WorkerSettings(
        memory_mb=recipe.task.reward_memory_mb,
        max_steps=recipe.schedule.num_steps,
        keys=recipe.task.reward_keys,
        sandbox=Policy(**recipe.sandbox.model_dump()),
        environments=tuple(
            RewardConfig(
                use=environment.use, weight=environment.weight, when={"scenario": name} if name else {}
            )
            for name, environment in recipe.task.environments.items()
        ),
    )


def serviced(recipe: Recipe, device: str, names: Sequence[str] | None = None) -> list[ServiceSettings]:
    """What of `services` the rewards name (or only `names`), each with its model at hand.

    ConfigError for a GPU engine without GPUs.
    """
    found = []
    for name in named_services(recipe.task) if names is None else names:
        config = recipe.services[name]
        num_gpus = service_gpus(config, device)
        template = config.chat_template
        if template is not None and not Path(template).is_file():
            raise ConfigError(f"services.{name}.chat_template: there is no file {template!r}.")
        key = f"services.{name}.model"
        model = prepare_model_folder(ModelConfig(path=config.model), "", seed=0, key=key)
        found.append(
            ServiceSettings(
                name=name,
                model=model,
                kind=config.kind,
                engine=_service_engine(name, config, num_gpus, _sees_images(model)),
                device="cuda" if num_gpus else "cpu",
                num_gpus=num_gpus,
                threads=config.threads,
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                chat_template=None if template is None else str(Path(template).resolve()),
                args=config.args,
                trust_remote_code=recipe.model.trust_remote_code,
            )
        )
    return found


def service_bundles(recipe: Recipe, device: str) -> list[dict[str, float]]:
    """Cores and GPUs that each service takes of its node."""
    chosen = [recipe.services[name] for name in named_services(recipe.task)]
    return [{"CPU": float(c.threads), "GPU": float(service_gpus(c, device))} for c in chosen]


def service_gpus(config: ServiceConfig, device: str) -> int:
    """GPUs that a service has of its own."""
    return int(device == "cuda") if config.gpus is None else config.gpus


def _sees_images(model: str) -> bool:
    """Whether the model of a folder is shown images: a language model with a tower, or a dual encoder."""
    return find_vision(model) is not None or is_dual_folder(model)


def _service_engine(
    name: str, config: ServiceConfig, num_gpus: int, is_seeing: bool
) -> Literal["vllm", "hf"]:
    engine = config.engine
    if is_seeing and config.kind == "reward_model":
        if engine == "vllm":
            raise ConfigError(
                f"services.{name}.engine is vllm, but {config.model!r} is a reward model that sees images, whose head "
                "vLLM does not know. Set it to hf."
            )
        engine = "hf"
    if engine == "auto":
        engine = "vllm" if num_gpus and vllm_obstacle() is None else "hf"
    elif engine == "vllm" and (obstacle := vllm_obstacle()) is not None:
        raise DependencyError(
            f"services.{name}.engine is vllm, but {obstacle}. Set it to hf, or install vLLM."
        )
    if engine == "hf" and (config.args or num_gpus > 1):
        raise ConfigError(
            f"services.{name}: args and more than one GPU are vLLM's, but its engine is hf. Remove them, or set "
            f"services.{name}.engine: vllm."
        )
    return engine


def local_model(recipe: Recipe, model_folder: str) -> ModelConfig:
    """The recipe's model section with its weights in `model_folder`."""
    template = recipe.model.chat_template
    found = {
        "path": model_folder,
        "config": None,
        "tokenizer": tokenizer_path(recipe.model),
        "chat_template": None if template is None else str(Path(template).resolve()),
    }
    return recipe.model.model_copy(update=found)
