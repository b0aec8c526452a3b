"""`select` as rules: its filters by the names under which the samples have their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.reject import FilterConfig, SelectConfig
from rlhf.config.rewards import RewardConfig
from rlhf.config.schema import Recipe
from rlhf.data.selection import Rules
from rlhf.errors import ConfigError
from rlhf.offline.collect import asked_of
from rlhf.rollout.reward_totals import short_names
from rlhf.rollout.scoring import ENVIRONMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graded:
    """What samples are graded with."""

    rewards: Sequence[RewardConfig]
    """Of the task, then the filters."""
    are_episodes: bool

    @property
    def names(self) -> tuple[str, ...]:
        return short_names(self.rewards)


def rules_of(recipe: Recipe, config: SelectConfig) -> Rules:
    """The rules for samples that are graded as `recipe` says, and by the filters.

    ConfigError for a `rank_by` that no reward has, and for what episodes cannot be made into.
    """
    task = recipe.task
    rewards = (*task.rewards, *(one.reward for one in config.filters))
    graded = _Graded(rewards=rewards, are_episodes=task.environment is not None)
    _check(config, graded)
    filters = dict(zip(graded.names[len(task.rewards) :], config.filters, strict=True))
    return Rules(config=config, filters=filters)


def graded_rules(samples: Path, config: SelectConfig) -> Rules:
    """The rules for the samples of a complete collection.

    ConfigError as `rules_of`, and for a filter that they were not graded with; DataError for another folder.
    """
    task = asked_of(samples)["task"]
    rewards = [RewardConfig(**values) for values in task["rewards"]]
    graded = _Graded(rewards=rewards, are_episodes=task.get("environment") is not None)
    _check(config, graded)
    return Rules(config=config, filters=_named(config, graded, samples))


def _named(config: SelectConfig, graded: _Graded, samples: Path) -> Mapping[str, FilterConfig]:
    filters: dict[str, FilterConfig] = {}
    for index, one in enumerate(config.filters):
        alike = [n for n, r in zip(graded.names, graded.rewards, strict=True) if _is_alike(one, r)]
        free = [name for name in alike if name not in filters]
        if not free:
            raise ConfigError(
                f"select.filters[{index}].use is {one.use!r} with kwargs {one.kwargs} and when {one.when}, but "
                f"{samples} was graded by {', '.join(graded.names)} alone{' (once)' if alike else ''}. Name it under "
                "select.filters or task.rewards of the stage that draws, with the same kwargs and when."
            )
        filters[free[0]] = one
    return filters


def _is_alike(one: FilterConfig, reward: RewardConfig) -> bool:
    return (one.use, one.kwargs, one.when) == (reward.use, reward.kwargs, reward.when)


def _check(config: SelectConfig, graded: _Graded) -> None:
    known = (*([ENVIRONMENT] if graded.are_episodes else []), *graded.names)
    if config.rank_by is not None and config.rank_by.partition("/")[0] not in known:
        raise ConfigError(
            f"select.rank_by is {config.rank_by!r}, expected a part of the reward: one of {', '.join(known)}, or "
            "<one of these>/<a part of its own>."
        )
    if graded.are_episodes and (config.pairs is not None or config.format == "parquet"):
        found = "select.pairs" if config.pairs is not None else "select.format: parquet"
        raise ConfigError(
            f"{found} is given and so is task.environment: episodes become rows of messages, as JSON lines, and no "
            "pairs. Remove the first."
        )
