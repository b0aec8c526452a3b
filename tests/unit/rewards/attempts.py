"""Completions and prompts for reward tests, and the completions that must never pay."""

from collections.abc import Sequence
from typing import Any

from rlhf.types import (
    NOT_SAMPLED,
    FinishReason,
    Message,
    Prompt,
    RewardResult,
    Segment,
    Trajectory,
    TrajectoryGroup,
    Turn,
)


def prompt_of(question: str = "How much is 1 + 1?", *, reference: str | None = "2", **columns: Any) -> Prompt:
    """A prompt of one user message."""
    return Prompt(
        id="p", messages=(Message(role="user", content=question),), reference=reference, columns=columns
    )


def attempt(completion: str, *, tokens: Sequence[int] = (), stop: FinishReason = "stop") -> Trajectory:
    """A trajectory that says `completion` in one turn, after a prompt of two tokens."""
    sampled = len(tokens)
    segment = Segment(
        token_ids=(1, 2, *tokens),
        loss_mask=(False, False, *[True] * sampled),
        rollout_logprobs=(0.0,) * (2 + sampled),
        versions=(NOT_SAMPLED, NOT_SAMPLED, *[0] * sampled),
    )
    turn = Turn(message=Message(role="assistant", content=completion), segment=0, start=2, stop=2 + sampled)
    return Trajectory(segments=(segment,), turns=(turn,), stop=stop, sample_index=0, seed=0)


def group_of(prompt: Prompt, *completions: str) -> TrajectoryGroup:
    """All attempts at one prompt."""
    return TrajectoryGroup(index=0, prompt=prompt, trajectories=tuple(map(attempt, completions)))


def worthless(prompt: Prompt) -> dict[str, str]:
    """Completions that no reward for a form may pay, by name."""
    question = prompt.messages[-1].content
    return {
        "empty": "",
        "white space": " \n\t \u200b\n",
        "tags only": "<think></think><answer></answer>",
        "open tags": "<think><answer>",
        "one tag": "<think>" * 100,
        "one word": "the " * 200,
        "one character": "a" * 2000,
        "one sentence": "This is it. " * 60,
        "punctuation": "... , ! ?" * 20,
        "the prompt": question,
        "the prompt twice": f"{question}\n{question}",
        "the prompt in tags": f"<think></think><answer>{question}</answer>",
    }


def cannot_grade(completion: str, reference: str | None) -> RewardResult:
    """A grader that finds every row ungradable."""
    return RewardResult(value=None, outcome="error", detail={"error": "no gold"})


def is_reference(completion: str, reference: str | None) -> float:
    """A grader that returns a plain number."""
    return float(completion.strip() == reference)
