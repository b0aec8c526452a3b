import psutil
import pytest

from tests.unit.check.checking import checked, use


@pytest.mark.parametrize(
    ("grader", "says", "is_fatal"),
    [
        ("dice", "graded again, it gives other values, on 10 of 10 rows", True),
        ("moody_judge", "graded again, it gives other values, on 10 of 10 rows", False),
        ("first_wins", "its values depend on the order of the siblings, on 10 of 10 rows", True),
        ("centred", "its values depend on the other completions of the call, on 10 of 10 rows", False),
    ],
)
def test_contract_names_the_promise_that_a_reward_breaks(grader, says, is_fatal, tmp_path):
    found = checked(tmp_path, use(grader))
    reasons = [reason for reason in found.reasons("contract") if says in reason]
    assert reasons
    assert f"graders.{grader}: " in reasons[0]
    assert ("contract" in found.fatal) == is_fatal


def test_contract_names_a_reward_that_remembers_the_sample_before(tmp_path):
    found = checked(tmp_path, use("counting"))
    assert "contract" in found.fatal
    assert any("graders.counting: " in reason for reason in found.reasons("contract"))


def test_contract_warns_of_files_processes_and_threads_that_grading_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(psutil.Process().children(recursive=True))
    found = checked(tmp_path, use("leaves_things"), num_rows=4)
    said = " | ".join(found.reasons("contract"))
    assert "files of the working directory changed while rewards were graded: left-" in said
    assert "processes" in said
    assert "contract" in found.warned
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("grader", ["right", "ranked", "shorter"])
def test_sound_rewards_keep_the_contract(grader, tmp_path):
    found = checked(tmp_path, use("right"), use(grader, weight=0.1))
    assert not found.reasons("contract")
    assert "10 rows graded again" in found.says("contract")
