import pytest

from rlhf.check.grading import GradedRow
from rlhf.check.judging import Tally
from rlhf.check.probes import ProbeSet
from rlhf.config.rewards import RewardConfig
from rlhf.data.records import parse_row
from rlhf.rollout.reward_totals import Part, compose
from rlhf.types import RewardResult
from tests.unit.check.checking import SUMS, checked, use

EVERY_ROW = [f"rows.jsonl:{i}" for i in range(len(SUMS))]
HIDDEN = {"gold only in think", "gold before </think>", "gold in an unfinished think"}
FIRST, LAST = "options with the gold first", "options with the gold last"
HEDGED = {FIRST, LAST, "gold among candidates"}
NAMED = "rewarded without the answer: "


@pytest.mark.parametrize(
    ("grader", "kinds"),
    [
        ("right", set()),
        ("abstaining", set()),
        ("ranked", set()),
        ("any_text", {"gold not graded right"}),
        ("anything", {"gold not graded right"}),
        ("anywhere", {NAMED + probe for probe in HIDDEN | HEDGED}),
        ("in_think", {NAMED + "gold only in think", NAMED + "gold in an unfinished think"}),
        ("candidates", {NAMED + FIRST, NAMED + LAST}),
        ("last_word", {NAMED + LAST}),
        ("half_for_silence", {NAMED + "empty", NAMED + "white space"}),
    ],
)
def test_check_names_what_a_grader_pays_for(grader, kinds, tmp_path):
    found = checked(tmp_path, use(grader))
    assert set(found.fatal) == kinds
    assert found.code == (1 if kinds else 0)
    for rows in found.fatal.values():
        assert rows == EVERY_ROW
    if not kinds:
        assert found.says("golds") == "10 of 10 graded right"
        assert found.says("wrong answers") == "none of their kinds is paid"
        assert not found.warned


def test_only_the_constant_probes_expose_a_grader_with_swapped_arguments(tmp_path):
    rows = [{"prompt": f"Q{i}", "answer": answer} for i, answer in enumerate(["21", "31", "41", "yes sir"])]
    found = checked(tmp_path, use("part_of_gold"), rows=rows)
    assert found.fatal == {
        "constant answer rewarded where the gold is another": ["rows.jsonl:0", "rows.jsonl:1", "rows.jsonl:2"]
    }
    (reason, *_) = found.reasons("constant answer rewarded where the gold is another")
    assert reason == "graders.part_of_gold pays '1', the gold is '21'"


def test_a_constant_answer_that_most_rows_have_is_a_warning(tmp_path):
    rows = [{"prompt": f"Is {i} even?", "answer": "yes" if i % 4 else "no"} for i in range(12)]
    found = checked(tmp_path, use("right"), rows=rows)
    assert found.code == 0
    assert found.says("constant answers") == "answering always 'yes' earns 75.0% of the rows"
    assert set(found.warned) == {"constant answer"}


@pytest.mark.parametrize("gold", ["A", "(B)", "d", "H", "Paris", "-3", "0.5", "1,000", "x = 2"])
def test_every_kind_of_gold_is_offered_among_others(gold, tmp_path):
    rows = [{"prompt": "Which?", "answer": gold}, {"prompt": "And which?", "answer": "London"}]
    assert "rows.jsonl:0" in checked(tmp_path, use("candidates"), rows=rows).fatal[NAMED + FIRST]


def test_format_and_length_rewards_are_facts_not_faults(tmp_path):
    rewards = [{"use": "rewards.response_format:think_answer", "weight": 0.1}, use("shorter", weight=0.2)]
    rows = [{"prompt": row["prompt"]} for row in SUMS]
    found = checked(tmp_path, *rewards, rows=rows, needs_reference=False)
    assert found.code == 0, found.fatal
    assert found.says("golds") == "no row has one that a reward knows"
    lines = found.says("reward response_format.think_answer")
    assert "does not tell golds from wrong answers" in lines
    assert "wrong answer in the gold's format 1, empty 0, white space 0, tags around nothing 0" in lines


def test_rewards_that_know_no_gold_are_not_judged_by_the_gold_beside_one_that_does(tmp_path):
    rewards = [
        use("right"),
        {"use": "rewards.response_format:think_answer", "weight": 0.1},
        use("shorter", weight=0.2),
    ]
    found = checked(tmp_path, *rewards)
    assert found.code == 0, found.fatal
    assert found.says("golds") == "10 of 10 graded right"
    assert found.found["facts"]["reward graders.right"]["knows_gold"]
    assert not found.found["facts"]["reward graders.shorter"]["knows_gold"]


def test_a_sum_that_pays_silence_more_than_the_gold_fails(tmp_path):
    found = checked(tmp_path, use("right", weight=0.1), use("shorter"))
    assert NAMED + "empty" in found.fatal
    assert "the rewards add up to 1, for the gold to" in found.reasons(NAMED + "empty")[0]


def test_rows_and_rewards_meet_by_when(tmp_path):
    rows = [
        *({"prompt": f"{i}+1", "answer": str(i + 1), "source": "math"} for i in range(4)),
        {"prompt": "Write a poem.", "source": "chat"},
        {"prompt": "Lost.", "source": "nobody"},
    ]
    rewards = [
        use("right", when={"source": "math"}),
        use("shorter", when={"source": "chat"}),
        use("boxed", when={"source": "typo"}),
    ]
    found = checked(tmp_path, *rewards, rows=rows, needs_reference=False)
    assert found.fatal == {"not gradable": ["rows.jsonl:5"]}
    assert "no reward applies to it; its columns are ['source']" in found.reasons("not gradable")[0]
    assert found.warned == {"applies to no row": ["graders.boxed: see its `when`"]}
    assert found.says("golds") == "4 of 5 graded right; 2 rows without one"
    assert found.says("reward graders.right").startswith("applies to 4 of 6 rows")


def test_a_gold_that_the_rows_reward_does_not_pay_is_named_among_right_ones(tmp_path):
    rows = [dict(row) for row in SUMS]
    rows[3] = {"prompt": "What is 4?", "answer": "4", "gold_doubt": "its row says 5"}
    found = checked(
        tmp_path, {"use": "rewards.math_answer:grade"}, use("right"), rows=[*rows, {"prompt": "?"}]
    )
    assert found.fatal["not gradable"] == ["rows.jsonl:10"]
    assert found.says("golds") == "10 of 11 graded right"
    assert found.warned["gold in doubt (its own row speaks against it)"] == ["rows.jsonl:3"]


def test_a_reward_that_raises_on_some_rows_is_named_with_them(tmp_path):
    found = checked(tmp_path, use("raises_on_some"))
    assert found.fatal == {"not gradable": ["rows.jsonl:4", "rows.jsonl:8"]}
    assert (
        found.reasons("not gradable")[0]
        == "graders.raises_on_some: error (error: ValueError: cannot parse 5)"
    )
    assert found.says("golds") == "8 of 10 graded right"


def test_a_reward_that_raises_on_an_empty_answer_is_named(tmp_path):
    found = checked(tmp_path, use("raises_on_empty"))
    assert set(found.fatal) == {"reward fails on an answer"}
    (reason, *_) = found.reasons("reward fails on an answer")
    assert (
        reason
        == "graders.raises_on_empty on empty, white space: error (error: IndexError: list index out of range)"
    )
    optional = checked(tmp_path, use("right"), use("raises_on_empty", optional=True))
    assert optional.code == 0
    assert "reward fails on an answer" in optional.warned


def test_an_answer_to_which_a_reward_does_not_apply_is_no_fault(tmp_path):
    found = checked(tmp_path, use("right"), use("no_text", weight=0.1, optional=True))
    assert found.code == 0, found.fatal
    assert "not_applicable" in found.says("reward graders.no_text")


def test_missing_columns_are_named_by_row_and_reward(tmp_path):
    rows = [{**row, "tests": [row["answer"]]} if i else row for i, row in enumerate(SUMS)]
    found = checked(tmp_path, use("right"), use("needs_column", weight=0.5, gate=False), rows=rows)
    (row,) = found.fatal["not gradable"]
    assert row == "rows.jsonl:0"
    assert (
        "graders.needs_column needs the columns ['tests'], it has no ['tests']"
        in found.reasons("not gradable")[0]
    )


def test_gold_completions_and_templates_say_what_is_right(tmp_path):
    program = "```python\ndef add(a, b):\n    return a + b\n```"
    row = {"prompt": "Write add.", "reference": "[]", "gold_completion": f"<think>easy</think>So:\n{program}"}
    assert checked(tmp_path, use("code"), rows=[row]).code == 0
    found = checked(tmp_path, use("boxed"))
    assert found.says("golds") == "0 of 10 graded right"
    assert (
        found.says("hint")
        == r"with task.gold_template: '\\boxed{{reference}}' the first golds are graded right"
    )
    mended = checked(tmp_path, use("boxed"), gold_template=r"\boxed{{reference}}")
    assert mended.code == 0, mended.fatal


def test_a_sample_of_rows_is_the_same_every_time(tmp_path):
    first, again = (checked(tmp_path, use("anywhere"), num_rows=3) for _ in range(2))
    assert first.found["facts"]["sample"]["lines"] == ["3 of 10 rows are graded (--rows)"]
    assert first.fatal == again.fatal
    assert {len(rows) for rows in first.fatal.values()} == {3}


@pytest.mark.parametrize(("grader", "rows"), [("hangs_on_one", ["rows.jsonl:6"])])
def test_a_hanging_reward_is_named_with_the_row(grader, rows, tmp_path):
    found = checked(tmp_path, use(grader, limit_s=1.5))
    assert found.fatal == {"not gradable": rows}
    assert found.reasons("not gradable")[0].startswith(
        f"graders.{grader}: timeout (error: no answer within limit_s"
    )
    assert found.says("golds") == "9 of 10 graded right"


@pytest.mark.slow
def test_grading_stops_when_too_many_workers_had_to_be_killed(tmp_path):
    found = checked(tmp_path, use("hangs_on_wrong", limit_s=0.2), rows=SUMS)
    (kind,) = found.fatal
    assert "grading stopped" in kind
    assert "reward workers had to be killed" in found.reasons(kind)[0]


def test_a_gold_graded_twice_with_two_values_is_named_with_its_row():
    def part(*values: float) -> Part:
        results = [RewardResult(value=value) for value in values]
        return Part(name="a.f", reward=RewardConfig(use="a:f"), results=results)

    prompt = parse_row({"prompt": "?", "answer": "7"}, location="r:0", columns={}, key="k")
    probes = ProbeSet.from_prompts([prompt], template="{reference}").of(prompt)[:3]
    parts = (part(0.5, 0.0, 0.0),)
    totals = tuple(compose(parts, 3))
    tally = Tally(["a.f"], needs_reference=True)
    tally.add(
        GradedRow(index=0, prompt=prompt, probes=probes, parts=parts, alone=(part(1.0),), totals=totals)
    )
    (finding,) = tally.unsteady(["a.f"])
    assert (
        finding.reason
        == "a.f: a gold graded twice gets two values, on 1 of 1 rows; for example row r:0: 1, then 0.5"
    )
