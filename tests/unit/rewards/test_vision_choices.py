import json
from pathlib import Path

import pytest

from rewards.vision_choices import (
    GroupChoice,
    agreement,
    by_scores,
    choice_queries,
    choice_truth,
    orders_of,
    read_choices,
)
from rlhf.errors import DataError


def choice(for_a: int, for_b: int, name: str = "c", **groups: tuple[str, ...]) -> GroupChoice:
    images = {"a": (f"{name}-a1", f"{name}-a2"), "b": (f"{name}-b1", f"{name}-b2"), **groups}
    return GroupChoice(id=name, query=f"query {name}", votes={"aesthetic": (for_a, for_b)}, **images)


def made_choices() -> list[GroupChoice]:
    """20 queries on which 10 people vote 10:0, 9:1, ... 1:9, 0:10, and so on around."""
    return [choice(10 - i % 11, i % 11, f"q{i}") for i in range(20)]


def row_of(made: GroupChoice) -> dict:
    votes = {aspect: {"a": a, "b": b} for aspect, (a, b) in made.votes.items()}
    return {"id": made.id, "query": made.query, "a": list(made.a), "b": list(made.b), "votes": votes}


def written(folder: Path, suffix: str, choices: list[GroupChoice]) -> Path:
    file = folder / f"choices.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(json.dumps(row_of(made)) for made in choices) + "\n")
    else:
        lines = [
            f'{c.id},"{c.query}",{"|".join(c.a)},{" | ".join(c.b)},{c.votes["aesthetic"][0]},{c.votes["aesthetic"][1]}'
            for c in choices
        ]
        file.write_text("\n".join(["id,query,a,b,aesthetic_a,aesthetic_b", *lines]))
    return file


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_twenty_queries_come_back_as_they_were_written(tmp_path, suffix):
    assert read_choices(written(tmp_path, suffix, made_choices())) == made_choices()


@pytest.mark.parametrize(
    ("for_a", "for_b", "majority", "confidence"),
    [(10, 0, "a", 1.0), (0, 3, "b", 1.0), (7, 3, "a", 0.4), (2, 3, "b", 0.2), (5, 5, "tie", 0.0)],
)
def test_confidence_is_how_far_people_agree(for_a, for_b, majority, confidence):
    made = choice(for_a, for_b)
    assert made.majority("aesthetic") == majority
    assert made.confidence("aesthetic") == pytest.approx(confidence)


def test_agreement_counts_each_choice_by_confidence():
    choices = [choice(10, 0), choice(7, 3), choice(2, 8), choice(5, 5)]
    found = agreement(choices, ["a", "b", "tie", "a"], "aesthetic")
    assert found.score == pytest.approx((1.0 * 1 + 0.4 * 0 + 0.6 * 0.5) / 2.0)
    assert (found.confidence, found.num_choices, found.num_divided) == (pytest.approx(2.0), 4, 1)


def test_people_agree_with_themselves_and_not_with_their_opposite():
    choices = made_choices()
    own = [made.majority("aesthetic") for made in choices]
    other = [{"a": "b", "b": "a", "tie": "tie"}[verdict] for verdict in own]
    assert agreement(choices, own, "aesthetic").score == 1.0
    assert agreement(choices, other, "aesthetic").score == 0.0
    assert agreement(choices, ["tie"] * 20, "aesthetic").score == pytest.approx(0.5)
    assert agreement(choices, own, "aesthetic").num_divided == 2


def test_agreement_needs_a_choice_on_which_people_are_not_divided():
    with pytest.raises(DataError, match="evenly divided"):
        agreement([choice(5, 5)], ["a"], "aesthetic")
    with pytest.raises(DataError, match="no votes on 'accuracy', it has: aesthetic"):
        agreement([choice(5, 4)], ["a"], "accuracy")
    with pytest.raises(ValueError, match="1 verdicts on 2"):
        agreement([choice(5, 4)] * 2, ["a"], "aesthetic")


def test_a_model_prefers_the_group_that_scores_higher_on_average():
    scores = {"c-a1": 1.0, "c-a2": 3.0, "c-b1": 2.5, "c-b2": 1.0}
    asked = []

    def scores_of(query, ids):
        asked.append(query)
        return [scores[name] for name in ids]

    assert by_scores(choice(1, 0), scores_of) == "a"
    assert by_scores(choice(1, 0, b=("c-a2",), a=("c-b1",)), scores_of) == "b"
    assert by_scores(choice(1, 0), lambda _, ids: [0.0] * len(ids)) == "tie"
    assert set(asked) == {"query c"}


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")]])
def test_a_model_that_does_not_score_every_image_is_an_error(scores):
    with pytest.raises(DataError, match="choice 'c'"):
        by_scores(choice(1, 0), lambda _, __: scores)


def test_an_order_holds_every_image_of_the_preferred_group_over_every_other():
    (order,) = orders_of([choice(3, 7)], "aesthetic", lambda _, ids: range(len(ids)), fingerprint="f")
    assert order.items == ("c-b1", "c-b2", "c-a1", "c-a2")
    assert (order.query_id, order.query, order.shape, order.fingerprint) == ("c", "query c", (2, 2), "f")
    assert order.pairs == ((0, 2), (0, 3), (1, 2), (1, 3))
    assert order.ref_scores == (0.0, 1.0, 2.0, 3.0)


def test_groups_of_different_sizes_make_one_row():
    (order,) = orders_of([choice(9, 1, b=("x", "y", "z"))], "aesthetic", lambda _, ids: [0.0] * len(ids))
    assert order.shape == (1, 5)
    assert order.pairs == tuple((i, j) for i in (0, 1) for j in (2, 3, 4))


def test_choices_without_enough_agreement_make_no_order():
    choices = [choice(5, 5, "even"), choice(6, 4, "weak"), choice(9, 1, "strong")]

    def ids_of(least: float) -> list[str]:
        orders = orders_of(choices, "aesthetic", lambda _, ids: [0.0] * len(ids), least_confidence=least)
        return [order.query_id for order in orders]

    assert ids_of(0.0) == ["weak", "strong"]
    assert ids_of(0.5) == ["strong"]


def test_a_csv_may_leave_an_aspect_out_and_ids_are_line_numbers_then(tmp_path):
    file = tmp_path / "choices.csv"
    file.write_text("query,a,b,beauty_a,beauty_b,accuracy_a,accuracy_b\na cat,1.jpg,2.jpg,3,4,,\n")
    (found,) = read_choices(file)
    assert (found.id, found.votes) == ("2", {"beauty": (3, 4)})


GOOD = {"query": "a cat", "a": ["1"], "b": ["2"], "votes": {"beauty": {"a": 1, "b": 2}}}


@pytest.mark.parametrize(
    "change",
    [
        {"query": ""},
        {"query": None},
        {"a": "1"},
        {"a": []},
        {"a": [1]},
        {"b": ["1"]},
        {"b": None},
        {"votes": {}},
        {"votes": None},
        {"votes": {"beauty": {"a": 1}}},
        {"votes": {"beauty": {"a": 1, "b": 2, "tie": 1}}},
        {"votes": {"beauty": {"a": 0, "b": 0}}},
        {"votes": {"beauty": {"a": -1, "b": 2}}},
        {"votes": {"beauty": {"a": 1.5, "b": 2}}},
        {"votes": {"beauty": {"a": True, "b": 2}}},
    ],
)
def test_a_row_that_is_no_choice_is_named_by_its_line(tmp_path, change):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"id": "x"} | change))
    with pytest.raises(DataError, match="line 3"):
        read_choices(file)


@pytest.mark.parametrize("missing", ["query", "a", "b", "votes"])
def test_a_row_without_a_key_is_refused(tmp_path, missing):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({key: value for key, value in GOOD.items() if key != missing}))
    with pytest.raises(DataError, match=f"line 1.*{missing}"):
        read_choices(file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.jsonl", "{"),
        ("c.jsonl", "[1]"),
        ("c.jsonl", ""),
        ("c.jsonl", "\n".join([json.dumps(GOOD | {"id": "x"})] * 2)),
        ("c.csv", "query,a,b\nq,1,2\n"),
        ("c.csv", "query,a,b,beauty_a\nq,1,2,3\n"),
        ("c.csv", "query,a,b,beauty_a,beauty_b\nq,1,2,3\n"),
        ("c.csv", "query,a,b,beauty_a,beauty_b\nq,1,2,3,4,5\n"),
        ("c.csv", "query,a,b,beauty_a,beauty_b\nq,1,2,three,4\n"),
        ("c.csv", "query,a,b,beauty_a,beauty_b\nq,1,1,3,4\n"),
        ("c.csv", "query,a,b,beauty_a,beauty_b\nq,1,2,,\n"),
        ("c.txt", "x"),
    ],
)
def test_a_file_without_choices_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        read_choices(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_choices(tmp_path / "none.csv")


def test_choices_are_queries_and_truth_of_an_evaluation(tmp_path):
    again = GroupChoice(id="x", query="query q0", a=("q0-a1",), b=("q0-b1",), votes={"aesthetic": (2, 8)})
    file = str(
        written(tmp_path, "jsonl", [choice(10, 0, "q0"), choice(3, 7, "q1"), choice(5, 5, "q2"), again])
    )
    queries = choice_queries(file)
    assert [(query.id, query.text) for query in queries] == [(f"q{i}", f"query q{i}") for i in range(3)]
    truth = choice_truth(file)
    assert truth.relevant(queries[1], ["q1-a1", "q0-a1", "q1-b2", "nowhere"]) == [True, False, True, False]
    ids = ["q0-a2", "q0-b2", "q0-a1", "q1-a1", "q1-b1", "q2-a1", "nowhere"]
    assert truth.taste(ids) == pytest.approx([1.0, -1.0, 0.2, -0.4, 0.4, 0.0, 0.0])


def test_truth_of_choices_knows_its_queries_and_its_aspect(tmp_path):
    file = str(written(tmp_path, "jsonl", [choice(10, 0, "q0")]))
    with pytest.raises(DataError, match="no votes on 'accuracy'"):
        choice_truth(file, "accuracy")
    (other,) = choice_queries(str(written(tmp_path, "csv", [choice(1, 0, "q1")])))
    with pytest.raises(DataError, match="no choice is about the query 'query q1'"):
        choice_truth(file).relevant(other, [])
