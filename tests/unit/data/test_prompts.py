import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.task import CurriculumConfig, SourceConfig
from rlhf.data.prompts import PromptStream, load_prompts
from rlhf.errors import CheckpointError, DataError
from rlhf.types import Message, Prompt


def prompts(count):
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=str(i)),)) for i in range(count)]


def stream(count=5, seed=0, **options):
    return PromptStream(prompts(count), seed=seed, **options)


def write(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return SourceConfig(file=str(file))


def test_row_without_reference_is_refused_only_when_needed(tmp_path):
    source = write(tmp_path, {"prompt": "a", "answer": "1"}, {"prompt": "b"})
    assert len(load_prompts(source, key="task.train", require_reference=False)) == 2
    with pytest.raises(DataError, match=r"task\.train: row rows\.jsonl:1 has no reference answer"):
        load_prompts(source, key="task.train", require_reference=True)


def test_duplicate_ids_name_both_rows(tmp_path):
    source = write(tmp_path, {"prompt": "a", "id": 1}, {"prompt": "b"}, {"prompt": "c", "id": 1})
    with pytest.raises(DataError, match=r"rows rows\.jsonl:0 and rows\.jsonl:2 have the same id '1'"):
        load_prompts(source, key="task.train", require_reference=False)


def test_bad_rows_are_collected_where_asked_for(tmp_path):
    source = write(
        tmp_path,
        {"prompt": "a", "answer": "1"},
        {"prompt": 5},
        {"prompt": "b", "answer": "2", "id": "rows.jsonl:0"},
    )
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('\n{"prompt":\n[1]\n{"prompt": "c"}')
    bad = []
    prompts = load_prompts(source, key="task.train", require_reference=True, bad_rows=bad)
    assert [prompt.id for prompt in prompts] == ["rows.jsonl:0"]
    assert [location for location, _ in bad] == [f"rows.jsonl:{i}" for i in (1, 2, 3, 4, 5)]
    says = ["expected text or a list", "same id", "is not JSON", "is a list", "no reference answer"]
    assert all(what in str(error) for what, (_, error) in zip(says, bad, strict=True))


def test_a_source_of_bad_rows_only_is_an_error_all_the_same(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl:0.*expected text"):
        load_prompts(write(tmp_path, {"prompt": 5}), key="k", require_reference=False, bad_rows=[])


def test_every_epoch_shows_every_prompt_once_in_another_order():
    source = stream(count=20)
    epochs = [[source.next()[1].id for _ in range(20)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(p.id for p in prompts(20))
    assert epochs[0] != epochs[1]


def test_order_follows_from_the_seed():
    orders = [
        [source.next()[1].id for _ in range(20)] for source in (stream(20, 1), stream(20, 1), stream(20, 2))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_settling_twice_or_before_admission_is_an_error():
    source = stream()
    index, _ = source.next()
    source.trained(index)
    for bad in (index, 1):
        with pytest.raises(ValueError, match=f"admission {bad} is not in flight"):
            source.trained(bad)


def test_discards_are_counted_by_reason():
    source = stream()
    for reason in ("zero_variance", "zero_variance", "errors"):
        source.discard(source.next()[0], reason)
    assert source.discarded == {"zero_variance": 2, "errors": 1}
    assert source.num_trained == 0


def test_state_of_other_prompts_or_seed_is_refused():
    state = stream(count=5).state_dict()
    for other in (stream(count=6), stream(count=5, seed=1)):
        with pytest.raises(CheckpointError, match="other prompts or another seed"):
            other.load_state_dict(state)


def test_state_does_not_grow_with_the_run():
    source = stream()
    sizes = set()
    for _ in range(1000):
        source.trained(source.next()[0])
        sizes.add(len(json.dumps(source.state_dict()["settled"])))
    assert sizes == {2}


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["next", "trained", "discard", "save", "crash"]), st.integers(0, 10))
)


BAND = CurriculumConfig(low=0.3, high=0.7, revisit=0.2)


@given(actions=ACTIONS, count=st.integers(1, 7), curriculum=st.sampled_from([None, BAND]))
def test_nothing_is_lost_and_nothing_trained_twice_over_crashes(actions, count, curriculum):
    source, original = stream(count, curriculum=curriculum), {}
    trained, held, again = Counter(), [], []
    saved = (json.dumps(source.state_dict()), Counter())
    for action, pick in actions:
        if action == "next":
            index, prompt = source.next()
            assert original.setdefault(index, prompt.id) == prompt.id
            assert index == (again.pop(0) if again else max(source.num_fetched - 1, 0))
            held.append(index)
        elif action in ("trained", "discard") and held:
            index = held.pop(pick % len(held))
            solved = [place < pick % 3 for place in range(2)]
            source.trained(index, solved) if action == "trained" else source.discard(index, "reason", solved)
            trained[index] += 1
        elif action == "save":
            saved = (json.dumps(source.state_dict()), trained.copy())
        elif action == "crash":
            source, held = stream(count, curriculum=curriculum), []
            source.load_state_dict(json.loads(saved[0]))
            trained, again = saved[1].copy(), source.in_flight
    assert set(trained.values()) <= {1}
    passed_over = source.discarded.get("curriculum", 0)
    assert curriculum is not None or passed_over == 0
    assert set(source.in_flight).isdisjoint(trained)
    assert len(source.in_flight) + len(trained) + passed_over == source.num_fetched
    assert source.num_trained + sum(source.discarded.values()) == len(trained) + passed_over
