"""Which part of a graded sample each rule of a selection reads."""

import json

import pytest

from rlhf.config.reject import PairsConfig, SelectConfig
from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError, DataError
from rlhf.offline.collect import DONE, IDENTITY
from rlhf.offline.rules import graded_rules

GRADED = (
    {"use": "m:right"},
    {"use": "m:share", "weight": 0.0, "kwargs": {"language": "en"}, "limit_s": 9},
    {"use": "m:share", "weight": 0.0, "kwargs": {"language": "zh"}},
    {"use": "m:long", "weight": 0.0, "when": {"level": 1}},
)


@pytest.fixture
def samples(tmp_path):
    def write(environment=None, is_complete=True):
        rewards = [RewardConfig(**one).model_dump(mode="json") for one in GRADED]
        asked = {"task": {"rewards": rewards, "environment": environment}}
        (tmp_path / IDENTITY).write_text(json.dumps(asked))
        if is_complete:
            (tmp_path / DONE).write_text("{}")
        return tmp_path

    return write


def test_filters_are_found_by_function_arguments_and_condition_whatever_their_bounds(samples):
    config = SelectConfig(
        filters=[
            {"use": "m:long", "when": {"level": 1}, "at_most": 3},
            {"use": "m:share", "kwargs": {"language": "zh"}, "at_least": 0.5, "limit_s": 1},
            {"use": "m:right", "at_least": 1},
        ],
        rank_by="m.share#2",
    )
    rules = graded_rules(samples(), config)
    assert dict(rules.filters) == dict(zip(("m.long", "m.share#2", "m.right"), config.filters, strict=True))
    assert rules.config is config


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ([{"use": "m:other", "at_least": 1}], r"filters\[0\].use is 'm:other' .* by m.right, m.share, m.share#2, "),
        ([{"use": "m:share", "at_least": 1}], r"filters\[0\].use is 'm:share' with kwargs \{\}"),
        ([{"use": "m:long", "at_least": 1}], r"when \{\}, but"),
        ([{"use": "m:right", "at_least": 0}, {"use": "m:right", "at_most": 1}], r"filters\[1\].* alone \(once\)"),
    ],
)  # fmt: skip
def test_what_the_samples_were_not_graded_with_is_refused(samples, filters, says):
    with pytest.raises(ConfigError, match=says):
        graded_rules(samples(), SelectConfig(filters=filters))


def test_the_other_rules_are_those_of_a_stage_that_draws(samples):
    with pytest.raises(ConfigError, match=r"rank_by is 'm.none', expected .* one of m.right, m.share"):
        graded_rules(samples(), SelectConfig(rank_by="m.none"))
    episodes = samples(environment={"use": "envs.x:play"})
    with pytest.raises(ConfigError, match=r"select.pairs is given"):
        graded_rules(episodes, SelectConfig(pairs=PairsConfig()))
    assert graded_rules(episodes, SelectConfig(rank_by="environment/steps")).filters == {}


def test_samples_that_are_not_complete_are_refused(samples):
    with pytest.raises(DataError, match=r"no complete collection"):
        graded_rules(samples(is_complete=False), SelectConfig())
