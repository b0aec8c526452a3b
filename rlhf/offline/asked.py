"""What is asked of one model on one set, checked before any process starts."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.evaluation import EvalSet, EvaluateConfig, name_problem, recipe_of_set
from rlhf.config.schema import Recipe
from rlhf.config.services import named_services
from rlhf.content_hashes import ContentHashes
from rlhf.errors import ConfigError, DataError
from rlhf.materials import Materials, gather_materials
from rlhf.offline.collect import CollectPlan, is_collected
from rlhf.rollout.reward_totals import short_names
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.types import Sampling

_CHUNKS_ON_GPU = 4
"""In flight: while the longest answers of one chunk end, others fill the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One model on one set."""

    name: str
    one: EvalSet
    config: EvaluateConfig
    sampling: Sampling
    materials: Materials
    hashes: Mapping[str, Any]
    """What the model holds, and what the models hold that its rewards ask."""
    folder: Path
    """Where its samples are collected."""

    @property
    def recipe(self) -> Recipe:
        """The model's recipe with the set in place of its task."""
        return self.materials.recipe

    @property
    def plan(self) -> CollectPlan:
        """What is to be collected."""
        on_gpu = self.materials.device == "cuda"
        return CollectPlan(
            prompts=self.materials.train,
            sampling=self.sampling,
            samples_per_prompt=self.config.num_samples,
            seed=self.recipe.seed,
            prompts_per_chunk=self.config.prompts_per_chunk,
            chunks_in_flight=_CHUNKS_ON_GPU if on_gpu else 1,
            identity=self._identity(),
        )

    @property
    def is_collected(self) -> bool:
        """Whether every sample is there. CheckpointError where they were collected with other settings."""
        return is_collected(self.plan, self.folder)

    def _identity(self) -> dict[str, Any]:
        task = self.recipe.task.model_dump(mode="json")
        wanted = ("rewards", "template", "system_prompt", "environment")
        return {**self.hashes} | {key: task[key] for key in wanted}

    def described(self) -> dict[str, Any]:
        """What stands beside every figure in eval.json."""
        task = self.recipe.task
        return {
            "source": self.one.source.model_dump(mode="json", exclude_defaults=True),
            "rewards": [reward.use for reward in task.rewards],
            "environment": None if task.environment is None else task.environment.use,
            "template": task.template,
            "votes": self.one.votes,
            "best_of": self.config.best_of,
            "sampling": {
                "num_samples": self.config.num_samples,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "top_k": self.sampling.top_k,
                "max_tokens": self.sampling.max_tokens,
                "seed": self.recipe.seed,
            },
        }


def check_names(names: Mapping[str, object], key: str) -> None:
    """ConfigError unless every name of `key` can be a folder's."""
    if not names:
        raise ConfigError(f"{key} is empty: name at least one.")
    problem = name_problem(names, key)
    if problem is not None:
        raise ConfigError(problem)


def prepare(
    recipe: Recipe, sets: Mapping[str, EvalSet], config: EvaluateConfig, folder: Path, *, model: str
) -> list[Asked]:
    """Everything that can be checked before a process starts."""
    model_folder = prepare_model_folder(recipe.model, folder / "start" / model, seed=recipe.seed)
    hashes = ContentHashes(folder)
    asked = []
    for name, one in sets.items():
        own = recipe_of_set(recipe, one, config)
        names = short_names(own.task.rewards)
        if config.best_of is not None and config.best_of.partition("/")[0] not in names:
            raise ConfigError(
                f"eval.best_of is {config.best_of!r}, but the rewards of sets.{name} are {', '.join(names)}: name "
                "one of these, or a number that it gives beside its value (`reward/number`)."
            )
        with _naming(f"sets.{name}.source"):
            materials = gather_materials(own, RunFolder(folder), model_folder)
        place = folder / "collected" / model / name
        asked.append(
            Asked(
                name=name,
                one=one,
                config=config,
                sampling=_sampling(recipe, config, materials),
                materials=materials,
                hashes=_hashes(materials, hashes),
                folder=place,
            )
        )
    hashes.save()
    return asked


def _hashes(materials: Materials, hashes: ContentHashes) -> dict[str, Any]:
    recipe = materials.recipe
    services = {name: hashes.of_model(recipe.services[name].model) for name in named_services(recipe.task)}
    return {"model": hashes.of_model(materials.model_folder)} | ({"services": services} if services else {})


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """A set's prompts are read as those of `task.train`: errors name the key that the user wrote."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("task.train", key)) from error


def _sampling(recipe: Recipe, config: EvaluateConfig, materials: Materials) -> Sampling:
    temperature = config.temperature
    if temperature is None:
        temperature = 0.0 if config.num_samples == 1 else recipe.sampling.temperature
    return Sampling(
        max_tokens=materials.recipe.sampling.max_tokens,
        temperature=temperature,
        top_p=recipe.sampling.top_p if config.top_p is None else config.top_p,
        top_k=recipe.sampling.top_k,
        stop_token_ids=materials.renderer.stop_token_ids,
        banned=materials.banned,
        image_codes=materials.image_codes,
    )
