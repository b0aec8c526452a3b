"""Any MCP server as an environment: its tools, and a grade of the final answer.

    environment: {use: "envs.adapters.mcp:mcp_tools", kwargs: {command: [python, server.py], allow: [search]}}

Reads any row with a `prompt`, and what its grader needs: `reference`, for the graders named here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.answers import load_grade, score_answer
from rlhf.episodes.mcp import MCP
from rlhf.episodes.tool_environment import ToolEnvironment
from rlhf.interfaces import Context


def mcp_tools(
    command: Sequence[str] = (),
    *,
    score: str | None = "envs.answers:is_reference",
    options: Mapping[str, Any] | None = None,
    system: str | None = None,
    **server: Any,
) -> ToolEnvironment:
    """The tools of a server that `command` starts for each episode, or of one at `url=`.

    `score` grades the last turn: `module:attribute` of (completion, reference, **options) -> value; none: the
    recipe's rewards alone judge. `system` goes before the prompt. `server`: `url`, `allow`, `environment`, as
    rlhf.episodes.mcp.MCP takes them. A relative path in `command` is one in the episode's own empty folder.
    """
    graded: Callable[[Context], float] | None = None
    if score is not None:
        grade = load_grade(score)

        def graded(context: Context) -> float:
            return score_answer(context, grade, options or {})

    return ToolEnvironment([MCP(command, **server)], score=graded, system=system)


def warm_up(**kwargs: Any) -> None:
    """Import the package before the first deadline runs, and refuse at the start what no episode could use."""
    mcp_tools(**kwargs)
