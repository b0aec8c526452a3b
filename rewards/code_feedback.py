"""Rows to train a reward model of compiler feedback on: `python -m rewards.code_feedback FROM.jsonl TO.jsonl`."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewards.code_tests import CompilerFeedback
from rlhf.errors import DataError
from rlhf.types import Message, Prompt


def feedback_rows(rows: Iterable[Mapping[str, Any]], **kwargs: Any) -> Iterator[dict[str, Any]]:
    """{prompt, completion, feedback, outcome, detail} of each row {prompt, completion, tests}.

    `kwargs` are those of `CompilerFeedback`. A row that cannot be graded is an error: it would teach a falsehood.
    """
    feedback = CompilerFeedback(**kwargs)
    for index, row in enumerate(rows):
        missing = [name for name in ("prompt", "completion", "tests") if name not in row]
        if missing:
            raise DataError(f"row {index} has no {missing[0]!r}; expected prompt, completion and tests.")
        prompt = Prompt(id=str(row.get("id", index)), messages=_messages(row["prompt"]))
        result = feedback(row["completion"], row["tests"], prompt)
        yield {
            "prompt": row["prompt"],
            "completion": row["completion"],
            "feedback": result.value,
            "outcome": result.outcome,
            "detail": dict(result.detail),
        }


def _messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    return tuple(Message(**message) for message in prompt)


def export(source: Path, target: Path, **kwargs: Any) -> int:
    """Grade the JSON lines {prompt, completion, tests} of `source` into `target`; how many there were."""
    count = 0
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for row in feedback_rows((json.loads(line) for line in lines if line.strip()), **kwargs):
            out.write(json.dumps(row) + "\n")
            count += 1
    return count


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
