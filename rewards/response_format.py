"""Rewards the shape of a completion: one think block, one answer, nothing else."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def think_answer(completion: str) -> float:
    """1.0 for exactly `<think>...</think><answer>...</answer>`, both non-empty, space around; else 0.0."""
    text = completion.strip()
    if not text.startswith(THINK_OPEN):
        return 0.0
    return answer_after_think(text[len(THINK_OPEN) :])


def answer_after_think(completion: str) -> float:
    """As `think_answer` for templates that end in an opened `<think>`: `...</think><answer>...</answer>`."""
    thought, _, rest = completion.partition(THINK_CLOSE)
    rest = rest.strip()
    if not (rest.startswith(ANSWER_OPEN) and rest.endswith(ANSWER_CLOSE)):
        return 0.0
    answer = rest[len(ANSWER_OPEN) : -len(ANSWER_CLOSE)]
    tags = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
    is_nested = any(tag in part for tag in tags for part in (thought, answer))
    return 1.0 if thought.strip() and answer.strip() and not is_nested else 0.0
