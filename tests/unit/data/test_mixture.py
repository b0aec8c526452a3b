import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.task import CurriculumConfig, ScenarioConfig, SourceConfig
from rlhf.data.mixture import PromptMixture, Turns
from rlhf.data.prompts import of_scenario
from rlhf.errors import CheckpointError, DataError
from tests.fakes import make_prompt

BAND = CurriculumConfig(low=0.3, high=0.7, revisit=0.2)


def scenario(weight=1.0, **keys):
    return ScenarioConfig(train=SourceConfig(file="a"), rewards=[{"use": "a:b"}], weight=weight, **keys)


def mixture(sizes=None, *, seed=0, curriculum=None, prompts_per_step=8, **scenarios):
    scenarios = scenarios or {"b": scenario(3), "a": scenario(1)}
    sizes = sizes or dict.fromkeys(scenarios, 5)
    prompts = [p for name, n in sizes.items() for p in of_scenario([make_prompt(i) for i in range(n)], name)]
    return PromptMixture(
        prompts, scenarios, prompts_per_step=prompts_per_step, seed=seed, curriculum=curriculum
    )


def turns(weights, count, *, prompts_per_step=8):
    made = Turns(lambda _: weights, prompts_per_step=prompts_per_step)
    return [made.turn(index) for index in range(count)]


def test_every_step_has_its_shares_where_they_are_whole_numbers():
    for weights, per_step in (((3, 1), 8), ((0.5, 0.3, 0.2), 10), ((1, 1, 1), 9), ((5, 1, 1, 1), 16)):
        found = turns(weights, 40 * per_step)
        for step in range(40):
            counts = Counter(found[step * per_step : (step + 1) * per_step])
            assert [counts[i] for i in range(len(weights))] == [
                round(w / sum(weights) * per_step) for w in weights
            ]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_no_scenario_is_ever_more_than_two_prompts_from_its_share(weights):
    counts = [0] * len(weights)
    for done, chosen in enumerate(turns(weights, 400), 1):
        counts[chosen] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - done * weight / sum(weights)) < 2


def test_turns_do_not_depend_on_the_order_in_which_they_are_asked_for():
    backwards = Turns(lambda _: (2, 1), prompts_per_step=4)
    assert [backwards.turn(index) for index in reversed(range(30))][::-1] == turns((2, 1), 30)


def test_weights_that_change_with_the_step_change_its_shares():
    made = mixture(a=scenario(weight_points=[(0, 0), (4, 1)]), b=scenario(weight_points=[(0, 1), (4, 0)]))
    steps = [Counter(made.scenario(8 * step + i) for i in range(8)) for step in range(6)]
    assert [step["a"] for step in steps] == [0, 2, 4, 6, 8, 8]


def test_every_scenario_has_epochs_of_its_own():
    made = mixture({"a": 3, "b": 10})
    ids = {"a": [], "b": []}
    for _ in range(80):
        _, prompt = made.next()
        ids[prompt.scenario].append(prompt.id)
    for name, size in (("a", 3), ("b", 10)):
        epochs = [ids[name][i : i + size] for i in range(0, len(ids[name]) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1


def test_prompts_of_scenarios_are_told_apart_by_id_and_column():
    first, other = of_scenario([make_prompt(1)], "a")[0], of_scenario([make_prompt(1)], "b")[0]
    assert (first.id, other.id) == ("a/p1", "b/p1")
    assert (first.scenario, first.columns["scenario"]) == ("a", "a")
    assert of_scenario([make_prompt(1)], "") == [make_prompt(1)]
    with pytest.raises(DataError, match=r"task\.scenarios\.a: row p1 has a column `scenario`, 'old'"):
        of_scenario([make_prompt(1, scenario="old")], "a")


def test_what_the_curriculum_passes_over_is_replaced_within_its_scenario():
    made = mixture({"a": 6, "b": 6}, curriculum=BAND.model_copy(update={"revisit": 0.0}))
    found = []
    for _ in range(200):
        index, prompt = made.next()
        found.append(prompt)
        # Of scenario b only one prompt has a pass rate within the band.
        half = prompt.scenario == "a" or prompt.id.endswith("/p0")
        made.trained(index, [True, not half])
    late = found[100:]
    assert Counter(prompt.scenario for prompt in late) == {"a": 25, "b": 75}
    # When a whole epoch's worth was passed over, the next one is rolled out as it comes.
    assert Counter(prompt.id for prompt in late)["b/p0"] > 40
    metrics = made.metrics()
    assert metrics["scenario/b/skipped"] > 100
    assert metrics["scenario/a/skipped"] == 0
    assert metrics["scenario/b/pass_rate"] == pytest.approx((5 + 0.5) / 6)


def test_discarded_groups_are_told_by_scenario_since_the_last_time():
    made = mixture()
    for _ in range(8):
        index, prompt = made.next()
        if prompt.scenario == "b":
            made.discard(index, "zero_variance")
    assert made.discarded == {"zero_variance": 6}
    assert made.metrics() == {"scenario/a/discarded": 0, "scenario/b/discarded": 6}
    assert made.metrics() == {"scenario/a/discarded": 0, "scenario/b/discarded": 0}


def test_a_resumed_mixture_goes_on_as_one_that_never_stopped():
    whole, stopped = mixture(curriculum=BAND), mixture(curriculum=BAND)
    expected, found = [], []
    for made, seen in ((whole, expected), (stopped, found)):
        for number in range(60):
            if made is stopped and number % 7 == 3:
                state = json.loads(json.dumps(made.state_dict()))
                made = mixture(curriculum=BAND)
                made.load_state_dict(state)
            index, prompt = made.next()
            seen.append((index, prompt.id))
            made.trained(index, [number % 3 == 0, number % 2 == 0])
    assert found == expected


@pytest.mark.parametrize(
    "other",
    [
        {"a": scenario(1), "b": scenario(2)},
        {"a": scenario(1), "c": scenario(3)},
        {"a": scenario(1), "b": scenario(weight_points=[(0, 3)])},
    ],
)
def test_state_of_another_mixture_is_refused(other):
    state = mixture().state_dict()
    with pytest.raises(CheckpointError, match="another mixture"):
        mixture(**other).load_state_dict(state)
    with pytest.raises(CheckpointError, match="other prompts or another seed"):
        mixture(seed=1).load_state_dict(state)


def test_prompts_per_step_matters_only_where_weights_change():
    mixture(prompts_per_step=4).load_state_dict(mixture().state_dict())
    points = {"a": scenario(weight_points=[(0, 3)]), "b": scenario()}
    with pytest.raises(CheckpointError, match=r"schedule\.prompts_per_step"):
        mixture(prompts_per_step=4, **points).load_state_dict(mixture(**points).state_dict())


def test_a_scenario_without_prompts_is_refused():
    with pytest.raises(DataError, match=r"task\.scenarios\.a\.train has no prompts"):
        mixture({"b": 3})


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["next", "next", "trained", "discard", "save", "crash"]), st.integers(0, 10))
)


@given(actions=ACTIONS, count=st.integers(1, 5), curriculum=st.sampled_from([None, BAND]))
def test_nothing_is_lost_and_nothing_trained_twice_over_crashes(actions, count, curriculum):
    sizes = {"a": count, "b": 2 * count}
    source, original = mixture(sizes, curriculum=curriculum), {}
    trained, held, again = Counter(), [], []
    saved = (json.dumps(source.state_dict()), Counter())
    for action, pick in actions:
        if action == "next":
            index, prompt = source.next()
            assert prompt.scenario == source.scenario(index)
            if curriculum is None:
                assert original.setdefault(index, prompt.id) == prompt.id
            assert index == (again.pop(0) if again else source.num_fetched - 1)
            held.append(index)
        elif action in ("trained", "discard") and held:
            index = held.pop(pick % len(held))
            solved = [place < pick % 3 for place in range(2)]
            source.trained(index, solved) if action == "trained" else source.discard(index, "reason", solved)
            trained[index] += 1
        elif action == "save":
            saved = (json.dumps(source.state_dict()), trained.copy())
        elif action == "crash":
            source, held = mixture(sizes, curriculum=curriculum), []
            source.load_state_dict(json.loads(saved[0]))
            trained, again = saved[1].copy(), source.in_flight
    assert set(trained.values()) <= {1}
    assert set(source.in_flight).isdisjoint(trained)
    assert len(source.in_flight) + len(trained) == source.num_fetched
    for index in trained:
        with pytest.raises(ValueError, match="not in flight"):
            source.trained(index)
