"""A Python interpreter in the sandbox: variables and files live through the episode.

Reads any row with a `prompt`, and the `reference` that the final answer is compared with (mathematically, as it comes).
A call may take 0.8 of `limits.tool_s` (set that to 120 for real work), and a quarter of that in CPU seconds; then it is
interrupted, and the model is told. What it prints is cut at `limits.max_tool_result_bytes`.

    task: {environment: {use: "envs.python_tool:PythonTool", limits: {tool_s: 120}}}
"""

from collections.abc import Mapping
from typing import Any

from envs.answers import Grade, load_grade, score_answer
from envs.sessions import shown, step_limits
from rlhf.interfaces import Context
from rlhf.sandbox.session import Session
from rlhf.types import Prompt

_LOST = "(the interpreter was ended: its variables are gone, its files are still there)"


class PythonTool:
    """Tool `python`. Scores the final answer by `grade`: (completion, reference, **options) -> value."""

    uses_sandbox = True

    def __init__(
        self,
        *,
        grade: str | Grade = "rewards.math_answer:grade",
        options: Mapping[str, Any] | None = None,
        memory_mb: int = 1024,
    ) -> None:
        self._grade = load_grade(grade)
        self._options = dict(options or {})
        self._memory_mb = memory_mb
        self._session: Session | None = None
        self._num_calls = 0

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages."""
        self._context = context

    def python(self, code: str) -> str:
        """Run Python code. Variables and files are kept between calls; the last expression's value is shown.

        Args:
            code: the code, without a fence around it
        """
        context = self._context
        self._num_calls += 1
        if self._session is None:
            limits = step_limits(context, memory_mb=self._memory_mb)
            self._session = Session(context.sandbox, "python", limits=limits)
        execution = self._session.exec(code)
        text = shown(execution, max_bytes=context.limits.max_tool_result_bytes)
        return f"{text}\n{_LOST}" if self._session.lost_state else text

    def score(self, context: Context) -> float:
        """The value of the final answer."""
        context.log(python_calls=self._num_calls)
        return score_answer(context, self._grade, self._options)

    def close(self) -> None:
        """End the interpreter."""
        if self._session is not None:
            self._session.close()
