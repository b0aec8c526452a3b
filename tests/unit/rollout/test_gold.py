import asyncio
import json
from pathlib import Path

import pytest

from rewards.math_answer import gsm8k_row
from rlhf.config.rewards import RewardConfig
from rlhf.data.records import parse_row
from rlhf.rollout.gold import GoldReport, check_gold
from rlhf.rollout.scoring import RewardPool
from rlhf.types import Prompt

ROOT = Path(__file__).parents[3]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
MATH = RewardConfig(use="rewards.math_answer:grade")
FORMAT = RewardConfig(use="rewards.response_format:think_answer", weight=0.1)


def prompt_of(identity: int, answer: str) -> Prompt:
    row = gsm8k_row({"question": "How many?", "answer": answer})
    return parse_row(row, location=f"rows.jsonl:{identity}", columns={}, key="task.train")


def check(prompts: list[Prompt], *rewards: RewardConfig) -> GoldReport:
    async def run() -> GoldReport:
        pool = RewardPool(rewards, code_dir=str(ROOT), max_ungradable=1.0)
        try:
            return await check_gold(prompts, pool)
        finally:
            await pool.close()

    return asyncio.run(run())


def test_check_gold_reports_every_kind_of_wrong_gold_with_its_row() -> None:
    answers = ["9*8 = 72\n#### 72", "9*8 = 72\n#### abc", "9*8 = 72", "9*8 = 72\n####", "9*8 = 72\n#### 73"]
    report = check([prompt_of(i, answer) for i, answer in enumerate(answers)], MATH, FORMAT)
    assert not report.is_sound
    assert [f.prompt_id for f in report.wrong] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert "'abc', not a number" in report.wrong[0].reason
    assert [f.prompt_id for f in report.doubtful] == [f"rows.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert "never mentions its gold 73" in report.doubtful[-1].reason


def test_check_gold_reports_a_reference_the_reward_refuses() -> None:
    prompt = parse_row({"prompt": "?", "reference": "1/0"}, location="r:0", columns={}, key="k")
    (finding,) = check([prompt], MATH).wrong
    assert finding.prompt_id == "r:0"
    assert "does not equal itself" in finding.reason


@pytest.mark.parametrize(
    ("code", "wrong", "probes"),
    [
        (
            "def grade(completion, reference): return float(reference in completion)",
            0,
            {"gold only in think"},
        ),
        ("def grade(completion): return 1.0", 1, set()),
        ("def grade(completion, reference): return 0.0", 1, set()),
        (
            "def grade(completion): return float('no such' not in completion)",
            0,
            {"empty", "copied prompt", "gold only in think"},
        ),
    ],
)
def test_check_gold_exposes_a_reward_that_pays_for_nothing(
    code: str, wrong: int, probes: set[str], tmp_path: Path
) -> None:
    (tmp_path / "lax.py").write_text(code)
    report = check([prompt_of(0, "It is 72\n#### 72")], RewardConfig(use=f"{tmp_path / 'lax.py'}:grade"))
    assert len(report.wrong) == wrong
    assert {name for name, findings in report.rewarded_probes.items() if findings} == probes
    assert not report.is_sound


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside this checkout (../shared/data/gsm8k)")
def test_check_gold_passes_all_of_gsm8k_in_a_minute() -> None:
    prompts = [
        parse_row(gsm8k_row(json.loads(line)), location=f"{name}:{i}", columns={}, key="task.train")
        for name in ("train.jsonl", "test.jsonl")
        for i, line in enumerate((GSM8K / name).read_text().splitlines())
    ]
    report = check(prompts, MATH, FORMAT)
    assert report.num_prompts == 8792
    assert report.is_sound
    assert len(report.doubtful) == 10
    assert report.seconds < 60
