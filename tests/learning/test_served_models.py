"""Models beside the policy: a served reward model whose judge RL never sees, and several teachers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf.data.characters import write_character_tokenizer
from tests.toy import MODEL, column, digits, metrics, rows, toy_recipe, train

pytestmark = pytest.mark.slow

LAST_MESSAGE = "{{ messages[-1]['content'] }}"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,:;!?+-*/()"


WRITES = {"digits": "0123456789", "letters": "abcdefgh"}
"""What each teacher writes, and the last character of its prompts."""


def by_subject(seed: int = 0, size: int = 64) -> list[dict[str, str]]:
    """Rows of the toy task with prompts of the characters that their teacher writes."""
    draw = random.Random(seed)
    subjects = [("digits", "letters")[i % 2] for i in range(size)]
    return [
        {**row, "prompt": "".join(draw.choices(WRITES[subject], k=12)), "subject": subject}
        for row, subject in zip(rows(seed, size), subjects, strict=True)
    ]


def text(draw: random.Random) -> str:
    """Up to 16 characters, of which any share is digits."""
    share = draw.random()
    length = draw.randint(1, 16)
    return "".join(draw.choice("0123456789" if draw.random() < share else CHARACTERS) for _ in range(length))


def train_reward_model(folder: Path, *, num_steps: int = 150, pairs: int = 32) -> Path:
    """A sequence classifier that learned from pairs which text has the larger share of digits."""
    draw = random.Random(0)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**MODEL, num_labels=1, pad_token_id=0)
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    write_character_tokenizer(folder, tags=(), vocabulary_size=MODEL["vocab_size"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(num_steps):
        texts = [sorted((text(draw), text(draw)), key=digits, reverse=True) for _ in range(pairs)]
        flat = [one for pair in texts for one in pair]
        batch = tokenizer(
            flat, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False
        )
        scores = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        better, worse = scores.view(pairs, 2).unbind(1)
        optimizer.zero_grad()
        (-logsigmoid(better - worse).mean()).backward()
        optimizer.step()
    network.save_pretrained(folder)
    tokenizer.chat_template = LAST_MESSAGE
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, *, num_steps: int, **sections: Any) -> list[dict[str, Any]]:
    recipe = toy_recipe(folder, schedule={"num_steps": num_steps}, engine={"kind": "hf"}, **sections)
    code, output = train(recipe, "checkpoint.every=0", "eval.every=0")
    assert code == 0, output
    return metrics(folder / "run")


def test_rl_on_a_served_reward_model_raises_its_score_and_that_of_a_judge_it_never_sees(
    tmp_path: Path,
) -> None:
    model = train_reward_model(tmp_path / "rm")
    endpoint = {"url": "service://rm", "model": "rm"}
    asked = {"endpoint": endpoint, "with_thought": True}
    judge = {"use": f"{Path(__file__).parents[1] / 'toy.py'}:digits", "weight": 0.0}
    steps = run(
        tmp_path,
        num_steps=12,
        task={
            "rewards": [
                {"use": "rewards.reward_model:ServedScorer", "limit_s": 60, "kwargs": asked},
                judge,
            ]
        },
        services={"rm": {"model": str(model), "dtype": "float32"}},
    )
    scores, judged = (
        column(steps, f"reward/{name}/mean") for name in ("reward_model.ServedScorer", "toy.digits")
    )
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 1
    assert sum(judged[-3:]) > 1.7 * sum(judged[:3])


def train_teacher(folder: Path, subject: str, *, num_steps: int = 60) -> Path:
    """A language model that goes on with its subject's characters after its prompts."""
    draw = random.Random(1)
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODEL), dtype=torch.float32)
    write_character_tokenizer(folder, tags=(), vocabulary_size=MODEL["vocab_size"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [row["prompt"] for row in by_subject() if row["subject"] == subject]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(num_steps):
        texts = [prompt + "".join(draw.choices(WRITES[subject], k=16)) for prompt in draw.sample(prompts, 16)]
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.zero_grad()
        network(**batch, labels=labels).loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    return folder


def test_a_student_comes_near_two_teachers_on_their_own_prompts(tmp_path: Path) -> None:
    teachers = {name: str(train_teacher(tmp_path / name, name)) for name in WRITES}
    steps = run(
        tmp_path,
        num_steps=24,
        algorithm={
            "advantages": "distill",
            "aggregation": "token_mean",
            "teachers": teachers,
            "teacher_by": "subject",
        },
        task={"train": {"generator": f"{__file__}:by_subject"}},
    )
    for name in teachers:
        gap = column(steps, f"update/teacher_kl/{name}")
        assert sum(gap[-3:]) < 0.75 * sum(gap[:3]), (name, gap)
