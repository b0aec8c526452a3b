"""Names and the bundles they stand for, as parts of a recipe that lie below what the recipe itself says.

A published algorithm is more than a loss: a preset may set keys of other sections, too. Sources and where we
differ: docs/algorithms.md.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

Values = dict[str, Any]

PRESETS: Mapping[str, Mapping[str, Values]] = {
    "grpo": {},
    "deepseekmath_grpo": {"algorithm": {"kl_coef": 0.04, "kl_estimator": "k3"}},
    "r1_zero": {"algorithm": {"kl_coef": 0.001, "kl_estimator": "k3", "reference_reset_every": 400}},
    "deepseek_v3_2": {
        "algorithm": {
            "advantages": "dr_grpo",
            "kl_coef": 0.001,
            "kl_estimator": "k3_unbiased",
            "kl_ratio_from": "rollout",
            "opsm_delta": 0.1,
        },
        "sampling": {"keep_sampling_mask": True, "keep_routing": "auto"},
    },
    "dapo": {
        "algorithm": {
            "clip_high": 0.28,
            "aggregation": "token_mean",
            "shaping": {"overlong_share": 0.2},
        },
        "schedule": {"drop_zero_variance": True},
    },
    "dr_grpo": {"algorithm": {"advantages": "dr_grpo", "aggregation": "seq_mean_token_sum_norm"}},
    "gspo": {"algorithm": {"policy": "gspo"}},
    "cispo": {"algorithm": {"policy": "cispo", "aggregation": "token_mean"}},
    "rloo": {
        "algorithm": {
            "advantages": "rloo",
            "policy": "reinforce",
            "aggregation": "seq_mean_token_sum",
            "kl_coef": 0.03,
            "kl_in": "reward",
        }
    },
    "reinforce_pp": {
        "algorithm": {
            "advantages": "reinforce_pp",
            "whiten": True,
            "aggregation": "token_mean",
            "kl_coef": 0.001,
            "kl_in": "reward",
        }
    },
    "ppo": {
        "algorithm": {
            "advantages": "gae",
            "whiten": True,
            "aggregation": "token_mean",
            "kl_coef": 0.001,
            "kl_in": "reward",
        }
    },
    "vapo": {
        "algorithm": {
            "advantages": "gae",
            "advantage_kwargs": {"length_alpha": 0.05},
            "whiten": True,
            "clip_high": 0.28,
            "aggregation": "token_mean",
            "positive_nll_coef": 0.1,
        },
        "critic": {"lam": 1.0, "pretrain_steps": 50},
    },
}

_BELONG: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "advantages": ("grpo", ("advantage_kwargs",)),
    "policy": ("ppo", ("policy_kwargs", "clip_low", "clip_high", "dual_clip")),
    "correction": ("token_tis", ("correction_floor", "correction_cap")),
    "kl_in": ("loss", ("kl_estimator", "kl_ratio_from")),
    "kl_estimator": (None, ("kl_ratio_from",)),
}
"""A choice, its default, and its settings: a preset's settings are dropped with the choice they belong to."""
_OF_KL = ("kl_in", "kl_estimator", "kl_ratio_from", "reference_reset_every")


def preset_values(algorithm: Mapping[str, Any]) -> Mapping[str, Values]:
    """What the preset named in the section `algorithm` sets, by section.

    Where the recipe makes another choice of estimator, policy term, correction or KL, or switches the KL off, the
    preset's settings of that choice do not apply. Raises ValueError for a name that is not known.
    """
    name = algorithm.get("name", "grpo")
    if not isinstance(name, str):
        return {}
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"algorithm.name: found {name!r}. {hint}Known: {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    own = preset.get("algorithm", {})
    gone: set[str] = set()
    for choice, (default, settings) in _BELONG.items():
        ours = own.get(choice, default)
        if algorithm.get(choice, ours) != ours:
            gone.update(settings)
    if algorithm.get("kl_coef") == 0:
        gone.update(_OF_KL)
    sections = {**preset, "algorithm": {key: value for key, value in own.items() if key not in gone}}
    if "advantage_kwargs" in gone:
        sections.pop("critic", None)  # it served the preset's own estimator
    return sections


def lay_over(below: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """`values` with what only `below` says filled in, mappings in mappings included."""
    filled = {**below, **values}
    for key, under in below.items():
        over = values.get(key)
        if isinstance(under, Mapping) and isinstance(over, Mapping):
            filled[key] = lay_over(under, over)
    return filled


def lay_over_preset(values: Mapping[str, Any]) -> Values:
    """A recipe with its preset's keys filled in below its own, `algorithm` left to that section itself."""
    algorithm = values.get("algorithm", {})
    if not isinstance(algorithm, Mapping):
        return dict(values)
    below = {section: keys for section, keys in preset_values(algorithm).items() if section != "algorithm"}
    return lay_over(below, values)
