"""What a recipe may not say of its algorithm: settings that would do nothing, and choices that exclude each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.config.algorithm import AlgorithmConfig, CriticConfig
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError

ONE_BY_ONE = frozenset({"reinforce", "reinforce_pp", "gae", "process", "distill"})
"""Estimators to which a sample says something without another one of its prompt."""
_BLIND_TO_REWARDS = {
    "gdpo": "which reads the parts of the reward one by one",
    "process": "which reads the rewards of steps",
    "distill": "which reads log-probabilities",
}
_BLIND_TO_TOKEN_REWARDS = {
    "gdpo": "it reads the parts of the task's reward, not token rewards",
    "pass_at_k": "it reads who is correct, not token rewards",
    "process": "it reads the rewards of steps, not token rewards",
    "distill": "it reads log-probabilities, not rewards",
    "maxrl": "it divides by the group's mean reward, which a penalty may bring near 0",
}
_MASKING = frozenset({"token_mis", "icepop", "sequence_mis", "geometric_mask", "geometric_mask_tis"})
_CLIPS = ("clip_low", "clip_high", "dual_clip")


def refuse_algorithm(recipe: Recipe) -> None:
    """Raise ConfigError, with the keys, for the first thing that would be ignored or cannot mean anything."""
    for check in (
        _idle,
        _of_kl,
        _of_ranges,
        _of_policy,
        _of_estimator,
        _of_groups,
        _of_shaping,
        _of_critic,
        _of_engine,
    ):
        for problem in check(recipe):
            raise ConfigError(problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """Keys of `algorithm` that nothing reads in some recipes."""

    keys: tuple[str, ...]
    unread: Callable[[AlgorithmConfig], bool]
    why: str
    """May name keys of `algorithm` in braces."""
    instead: str


_IDLE = (
    _Idle(
        keys=(
            *("kl_target", "reference_reset_every", "kl_in", "kl_estimator"),
            *("kl_ratio_from", "kl_horizon"),
        ),
        unread=lambda a: a.kl_coef == 0,
        why="algorithm.kl_coef is 0: no KL is taken",
        instead="set kl_coef",
    ),
    _Idle(
        keys=("kl_ratio_from",),
        unread=lambda a: a.kl_in == "reward" or a.kl_estimator not in (None, "k3_unbiased"),
        why="algorithm.kl_in is {kl_in} and algorithm.kl_estimator is {kl_estimator}, which has no ratio",
        instead="set kl_in: loss and kl_estimator: k3_unbiased",
    ),
    _Idle(
        keys=("kl_horizon",),
        unread=lambda a: a.kl_target is None,
        why="algorithm.kl_target is not set: nothing steers kl_coef",
        instead="set kl_target",
    ),
    _Idle(
        keys=("reference",),
        unread=lambda a: a.kl_coef == 0 and ("teacher_logprobs" not in a.inputs or bool(a.teachers)),
        why="algorithm.kl_coef is 0 and algorithm.advantages is {advantages}, which "
        "reads no reference (nor where there are algorithm.teachers)",
        instead="set kl_coef, or advantages: distill without teachers",
    ),
    _Idle(
        keys=("teachers", "teacher_by"),
        unread=lambda a: "teacher_logprobs" not in a.inputs,
        why="algorithm.advantages is {advantages}, which reads no teacher",
        instead="set advantages: distill",
    ),
    _Idle(
        keys=("correction_floor", "correction_cap"),
        unread=lambda a: a.correction in ("none", "token_is"),
        why="algorithm.correction is {correction}, which has no bounds",
        instead="set correction: token_tis",
    ),
    _Idle(
        keys=("masked_share_warning",),
        unread=lambda a: a.correction not in _MASKING and a.opsm_delta is None,
        why="algorithm.correction is {correction} and algorithm.opsm_delta is not set: no mask drops anything",
        instead="choose a correction that masks",
    ),
    _Idle(
        keys=("loss_normaliser",),
        unread=lambda a: a.aggregation != "seq_mean_token_sum_norm",
        why="algorithm.aggregation is {aggregation}, which has no constant",
        instead="set aggregation: seq_mean_token_sum_norm",
    ),
)


_RANGES: tuple[tuple[str, tuple[str, ...], str, Callable[[float], bool], str], ...] = (
    (
        "advantage_kwargs",
        ("gae", "reinforce", "reinforce_pp"),
        "gamma",
        lambda x: 0 <= x <= 1,
        "from 0 to 1",
    ),
    ("advantage_kwargs", ("gae",), "lam", lambda x: 0 <= x <= 1, "from 0 to 1"),
    ("advantage_kwargs", ("gae",), "length_alpha", lambda x: x > 0, "above 0"),
    ("policy_kwargs", ("sapo",), "tau_positive", lambda x: x > 0, "above 0"),
    ("policy_kwargs", ("sapo",), "tau_negative", lambda x: x > 0, "above 0"),
    ("policy_kwargs", ("clip_cov", "kl_cov"), "fraction", lambda x: 0 < x <= 1, "above 0, at most 1"),
    ("policy_kwargs", ("kl_cov",), "coef", lambda x: x >= 0, "that is not negative"),
    ("policy_kwargs", ("dppo",), "delta_low", lambda x: x > 0, "above 0"),
    ("policy_kwargs", ("dppo",), "delta_high", lambda x: x > 0, "above 0"),
    ("policy_kwargs", ("dppo",), "k", lambda x: x >= 0, "that is not negative"),
)
"""(section, choices, setting, whether a number is allowed, what is expected)."""


def _idle(recipe: Recipe) -> Iterator[str]:
    values = dict(recipe.algorithm)
    for rule in _IDLE:
        for key in rule.keys if rule.unread(recipe.algorithm) else ():
            default = AlgorithmConfig.model_fields[key].get_default(call_default_factory=True)
            if values[key] != default:
                why = rule.why.format_map(values)
                yield (
                    f"algorithm.{key} is {values[key]} but {why}. "
                    f"Set algorithm.{key}: {_yaml(default)}, or {rule.instead}."
                )


def _of_kl(recipe: Recipe) -> Iterator[str]:
    config = recipe.algorithm
    if config.kl_coef > 0 and config.kl_in == "loss" and config.kl_estimator == "k1":
        yield (
            f"algorithm.kl_estimator is k1 and algorithm.kl_coef is {config.kl_coef}: as a loss term "
            "k1 has an expected gradient of 0. Use k2, k3, k3_st or k3_unbiased, or set kl_in: reward."
        )
    if config.kl_in == "reward" and config.kl_estimator in ("k3_st", "k3_unbiased"):
        yield (
            f"algorithm.kl_estimator is {config.kl_estimator} and algorithm.kl_in is reward: a reward has no "
            "gradient, which is all that this estimator changes. Use k1, k2 or k3."
        )
    if config.kl_in == "reward" and config.kl_coef and config.advantages in _BLIND_TO_TOKEN_REWARDS:
        yield (
            f"algorithm.kl_in is reward, but algorithm.advantages is {config.advantages}: "
            f"{_BLIND_TO_TOKEN_REWARDS[config.advantages]}. Set kl_in: loss."
        )
    if config.reference_reset_every and recipe.model.lora is not None:
        yield (
            f"algorithm.reference_reset_every is {config.reference_reset_every} and model.lora is set: with LoRA the "
            "reference is the frozen base with its adapters off, which cannot take the policy's weights. "
            "Set reference_reset_every: 0, or remove model.lora."
        )


def _of_ranges(recipe: Recipe) -> Iterator[str]:
    config = recipe.algorithm
    chosen = {
        "advantage_kwargs": (config.advantages, config.advantage_kwargs),
        "policy_kwargs": (config.policy, config.policy_kwargs),
    }
    for section, names, setting, holds, expected in _RANGES:
        name, settings = chosen[section]
        value = settings.get(setting)
        if name in names and isinstance(value, int | float) and not holds(value):
            yield f"algorithm.{section}.{setting} is {value}, expected a number {expected}."


def _of_policy(recipe: Recipe) -> Iterator[str]:
    config = recipe.algorithm
    if clips := [key for key in _CLIPS if key in config.policy_kwargs]:
        yield (
            f"algorithm.policy_kwargs has {', '.join(clips)}, which has a key of its own: "
            f"set algorithm.{clips[0]} instead."
        )
    window = config.policy_kwargs.get("window")
    if (
        config.policy == "clip_cov"
        and isinstance(window, list | tuple)
        and sorted(set(window)) != list(window)
    ):
        yield f"algorithm.policy_kwargs.window is {window}, expected two rising numbers: none lie between these."
    if config.policy == "kl_cov" and "window" in config.policy_kwargs:
        yield (
            "algorithm.policy_kwargs has window, but algorithm.policy is kl_cov, which takes the largest "
            "covariances. Remove it, or set policy: clip_cov."
        )


def _of_estimator(recipe: Recipe) -> Iterator[str]:
    config, settings = recipe.algorithm, recipe.algorithm.advantage_kwargs
    if config.advantages == "gae" and settings.get("length_alpha") is not None and "lam" in settings:
        yield (
            f"algorithm.advantage_kwargs is {settings}: length_alpha gives every trajectory a lam of its "
            "own, 1 - 1 / (length_alpha x tokens). Remove lam, or set length_alpha: null."
        )
    if settings.get("bootstrap_truncated") and config.advantages == "gae" and config.mask_truncated:
        yield (
            "algorithm.advantage_kwargs.bootstrap_truncated is true and so is algorithm.mask_truncated: the rows "
            "that the first is about are left out of the loss. Set one of the two to false."
        )
    if "teacher_logprobs" in config.inputs:
        yield from _of_teachers(config)
    if config.advantage_inputs and ":" not in config.advantages:
        yield (
            f"algorithm.advantage_inputs is {list(config.advantage_inputs)} but algorithm.advantages is "
            f"{config.advantages}, of which is known what it reads. Remove the first, or name a function of your own."
        )
    if config.advantages == "gdpo":
        yield from _of_parts(recipe)


def _of_teachers(config: AlgorithmConfig) -> Iterator[str]:
    if bool(config.teachers) != (config.teacher_by is not None):
        yield (
            f"algorithm.teachers is {config.teachers} and algorithm.teacher_by is {_yaml(config.teacher_by)}: several "
            "teachers and the prompt column that names a row's teacher need each other. Set both, or neither."
        )
    if config.reference is None and not config.teachers:
        yield (
            f"algorithm.advantages is {config.advantages} but algorithm.reference is not set: the teacher would "
            "be the model before training. Set algorithm.reference to the folder or hub name of the teacher, or "
            "algorithm.teachers to several."
        )
    if config.reference_reset_every and not config.teachers:
        yield (
            f"algorithm.advantages is {config.advantages} and algorithm.reference_reset_every is "
            f"{config.reference_reset_every}: the policy would become its own teacher. Set reference_reset_every: 0."
        )


def _of_parts(recipe: Recipe) -> Iterator[str]:
    rewards = recipe.task.rewards
    if recipe.task.scenarios:
        yield (
            "algorithm.advantages is gdpo and task.scenarios is given: it reads the parts of the reward one by one, "
            "and scenarios have different ones. Choose another estimator, or train on one of them."
        )
    if scheduled := [reward.use for reward in rewards if reward.is_scheduled]:
        yield (
            f"task.rewards gives {scheduled[0]} a first_step or last_step, but algorithm.advantages is gdpo, which "
            "reads the parts of the reward one by one in every step. Remove the two, or choose another estimator."
        )
    if gates := [reward.use for reward in rewards if reward.gate]:
        yield (
            f"task.rewards has the gate {gates[0]}, but algorithm.advantages is gdpo, which reads the other rewards "
            "one by one: a gate closes only their sum. Close them in the reward functions, or choose another estimator."
        )
    weights = recipe.algorithm.advantage_kwargs.get("weights")
    if isinstance(weights, list | tuple) and len(weights) != len(rewards):
        yield (
            f"algorithm.advantage_kwargs.weights has {len(weights)} numbers but task.rewards has {len(rewards)} "
            "parts: give one for each, or none, which takes the weights of task.rewards."
        )


def _of_groups(recipe: Recipe) -> Iterator[str]:
    config, size = recipe.algorithm, recipe.schedule.samples_per_prompt
    k = config.advantage_kwargs.get("k")
    if config.advantages == "pass_at_k" and isinstance(k, int | float) and not 1 <= k < size:
        yield (
            f"algorithm.advantage_kwargs.k is {k}, but schedule.samples_per_prompt is {size}: expected a number "
            "from 1 to one less than that, as subsets of k samples are compared. Raise the last, or change k."
        )
    for name, environment in recipe.task.environments.items():
        if environment.least_graded(size) > size:
            yield (
                f"{recipe.task.key_of(name)}.environment.min_group is {environment.min_group}, but "
                f"schedule.samples_per_prompt is {size}: every group would be skipped. Raise the last, or lower the "
                "first."
            )
    if size > 1:
        return
    if ":" not in config.advantages and config.advantages not in ONE_BY_ONE:
        yield (
            f"schedule.samples_per_prompt is 1, but algorithm.advantages is {config.advantages}, which compares the "
            "samples of a prompt: every advantage would be 0. Raise the first, or choose one of "
            f"{', '.join(sorted(ONE_BY_ONE))}."
        )
    if recipe.schedule.drop_zero_variance:
        yield (
            "schedule.samples_per_prompt is 1 and schedule.drop_zero_variance is true: the rewards of one sample are "
            "always equal, so every group would be discarded. Raise the first, or set the second to false."
        )
    if config.shaping is not None and config.shaping.kimi_coef is not None:
        yield (
            "schedule.samples_per_prompt is 1 and algorithm.shaping.kimi_coef is set: lengths are compared within a "
            "group, the reward would be 0. Raise the first, or set kimi_coef: null."
        )


def _of_shaping(recipe: Recipe) -> Iterator[str]:
    config = recipe.algorithm.shaping
    if config is None:
        return
    if config.overlong_share is None and config.overlong_coef != 1:
        yield (
            f"algorithm.shaping.overlong_coef is {config.overlong_coef} but algorithm.shaping.overlong_share is not "
            "set: there is no penalty to weigh. Set overlong_share, for example to 0.2."
        )
    if config.correct_above != 0.5 and config.cosine is None and config.kimi_coef is None:
        yield (
            f"algorithm.shaping.correct_above is {config.correct_above} but neither cosine nor kimi_coef is set, which "
            "alone ask who is correct. Set one of them, or remove correct_above."
        )
    blind = _BLIND_TO_REWARDS.get(recipe.algorithm.advantages)
    if config.is_on and blind is not None:
        yield (
            f"algorithm.shaping is set but algorithm.advantages is {recipe.algorithm.advantages}, {blind}: no shaped "
            "reward reaches it. Set algorithm.shaping: null, or choose another estimator."
        )


def _of_critic(recipe: Recipe) -> Iterator[str]:
    config, steps = recipe.critic, recipe.schedule.num_steps
    has_critic = "values" in recipe.algorithm.inputs
    given = [key for key, value in config if value != CriticConfig.model_fields[key].default]
    if given and not has_critic:
        yield (
            f"critic.{given[0]} is {_yaml(dict(config)[given[0]])} but algorithm.advantages is "
            f"{recipe.algorithm.advantages}, which has no critic. Remove it, or set algorithm.advantages: gae (or, "
            "with an estimator of your own, advantage_inputs: [values])."
        )
    if has_critic and config.pretrain_steps >= steps:
        yield (
            f"critic.pretrain_steps is {config.pretrain_steps} and schedule.num_steps is {steps}: only the "
            "critic would be trained, the policy never. Raise the second, or lower the first, for example to "
            f"critic.pretrain_steps={steps // 5}."
        )
    for name, section in (("critic", config), ("learner", recipe.learner)):
        if section.min_lr_ratio and section.lr_schedule == "constant":
            yield (
                f"{name}.min_lr_ratio is {section.min_lr_ratio} but {name}.lr_schedule is constant, which never falls. "
                f"Set {name}.lr_schedule: linear or cosine, or remove the first."
            )


def _of_engine(recipe: Recipe) -> Iterator[str]:
    config = recipe.algorithm
    for key, off in recipe.engine.narrow_keys.items():
        if config.correction == "none" and config.old_from == "learner":
            yield (
                f"engine.{key} is fp8 but algorithm.correction is none: the engine samples from another distribution "
                "than the learner has, and nothing weighs the difference. Set algorithm.correction: token_tis "
                f"(or another), or engine.{key}: {off}."
            )


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)
