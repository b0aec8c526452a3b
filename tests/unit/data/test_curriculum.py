import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf.config.task import CurriculumConfig
from rlhf.data.curriculum import Curriculum
from rlhf.data.prompts import PromptStream
from tests.fakes import make_prompt

groups = st.lists(st.tuples(st.integers(0, 12), st.lists(st.booleans(), max_size=8)), max_size=8)


def curriculum(seed: int = 0, **fields: float) -> Curriculum:
    return Curriculum(CurriculumConfig(**fields), seed=seed)


def measured(rates: dict[str, float], **fields: float) -> Curriculum:
    """A curriculum that saw ten attempts at each prompt in epoch 0."""
    made = curriculum(**fields)
    for prompt_id, rate in rates.items():
        made.record(prompt_id, epoch=0, solved=[place < 10 * rate for place in range(10)])
    return made


@given(seen=groups, seed=st.integers(0, 99))
def test_pass_rate_is_the_share_of_attempts_each_epoch_counting_half_the_next(seen, seed):
    made, shuffled = curriculum(), curriculum()
    for epoch, solved in seen:
        made.record("p", epoch=epoch, solved=solved)
    for epoch, solved in random.Random(seed).sample(seen, len(seen)):
        shuffled.record("p", epoch=epoch, solved=solved)
    last = max((epoch for epoch, _ in seen), default=0)
    weights = [(0.5 ** (last - epoch), solved) for epoch, solved in seen]
    total = sum(weight * len(solved) for weight, solved in weights)
    if total == 0:
        assert made.pass_rate("p") is None
    else:
        expected = sum(weight * sum(solved) for weight, solved in weights) / total
        assert made.pass_rate("p") == pytest.approx(expected, abs=1e-12)
    assert shuffled.pass_rate("p") == made.pass_rate("p")


def test_only_prompts_outside_the_band_are_passed_over():
    rates = {"never": 0.0, "low": 0.2, "half": 0.5, "high": 0.8, "always": 1.0}
    made = measured(rates, low=0.2, high=0.8, revisit=0.0)
    skipped = [name for name in [*rates, "unseen"] if made.skips(name, epoch=1)]
    assert skipped == ["never", "always"]


def test_a_prompt_is_revisited_with_the_given_chance_by_seed_and_epoch_alone():
    made, again, other = (measured({"p": 1.0}, revisit=0.25) for _ in range(3))
    other = Curriculum(CurriculumConfig(revisit=0.25), seed=1)
    other.record("p", epoch=0, solved=[True])
    draws = [[c.skips("p", epoch=e) for e in range(2000)] for c in (made, again, other)]
    assert draws[0] == draws[1] != draws[2]
    assert sum(draws[0]) / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_prompt_whose_rate_comes_back_into_the_band_is_asked_again():
    made = measured({"p": 0.0}, revisit=0.0)
    assert made.skips("p", epoch=1)
    made.record("p", epoch=5, solved=[True, False])
    assert not made.skips("p", epoch=6)


def test_attempts_without_a_verdict_measure_nothing():
    made = curriculum()
    made.record("p", epoch=0, solved=[])
    assert made.pass_rate("p") is None
    assert made.metrics() == {"curriculum/skipped": 0.0}


def test_metrics_are_rates_of_measured_prompts_and_skips_since_the_last_call():
    made = measured({"a": 0.0, "b": 0.5, "c": 1.0}, revisit=0.0)
    for name in ("a", "b", "c"):
        made.skips(name, epoch=1)
    expected = {
        "curriculum/skipped": 2.0,
        "curriculum/pass_rate": 0.5,
        "curriculum/outside_share": pytest.approx(2 / 3),
    }
    assert made.metrics() == expected
    assert made.metrics()["curriculum/skipped"] == 0


def test_state_goes_through_json_unchanged():
    made, again = measured({"a": 0.1, "b": 0.7}), curriculum()
    again.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert again.state_dict() == made.state_dict()
    assert again.pass_rate("b") == 0.7


def test_band_must_not_be_empty():
    with pytest.raises(ValidationError, match=r"low is 0\.8 and high is 0\.2"):
        CurriculumConfig(low=0.8, high=0.2)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_stream_goes_on_when_every_prompt_would_be_passed_over(count):
    source = PromptStream(
        [make_prompt(i) for i in range(count)], seed=0, curriculum=CurriculumConfig(revisit=0.0)
    )
    for _ in range(count):
        source.trained(source.next()[0], [True, True])
    for _ in range(5):
        source.trained(source.next()[0], [True])
    assert source.discarded == {"curriculum": 5 * count}
    assert source.num_fetched == count + 5 * (count + 1)
    assert source.num_trained == count + 5
    assert source.in_flight == []


def test_a_stream_resumes_with_what_was_measured():
    def make() -> PromptStream:
        prompts = [make_prompt(i) for i in range(12)]
        return PromptStream(prompts, seed=0, curriculum=CurriculumConfig(revisit=0.3))

    def ask(source: PromptStream, times: int) -> list[str]:
        asked = []
        for _ in range(times):
            index, prompt = source.next()
            asked.append(prompt.id)
            hard = int(prompt.id[1:]) % 3
            source.discard(index, "zero_variance", [hard == 0, hard < 2])
        return asked

    whole, first = make(), make()
    expected = ask(whole, 60)
    begun, resumed = ask(first, 25), make()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + ask(resumed, 35) == expected
    assert resumed.state_dict() == whole.state_dict()
    assert expected[30:].count("p1") > expected[30:].count("p0")
