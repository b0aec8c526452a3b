"""A turn's calls carried out: exactly one tool message for each, in their order, whatever the model or a tool does."""

import asyncio
import inspect
import itertools
import logging
import re
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rlhf.episodes.context import EpisodeContext
from rlhf.episodes.tool_arguments import shortened
from rlhf.episodes.tool_text import cut, error_text, text_of
from rlhf.episodes.tools import Tool
from rlhf.errors import EpisodeError, SandboxError
from rlhf.types import CallFailure, Message, ToolCall

Answer = tuple[Message, float]
"""A tool message, and the seconds that it took."""
_LOG = logging.getLogger(__name__)
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_GRACE_S = 1.0
"""What an async tool has beyond its limit to notice that it was cancelled, before its process is killed."""
_NOT_READ: Mapping[str, str] = {
    "invalid_json": "the call could not be read: it is no valid JSON, was cut off, or gives a field twice",
    "not_an_object": "the call could not be read: expected a JSON object with a name and an object of arguments",
    "unknown_tool": "there is no such tool",
    "invalid_arguments": "the arguments could not be read: a field is given twice, or is not as expected",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A call that can be carried out."""

    index: int
    call: ToolCall
    tool: Tool
    arguments: Mapping[str, Any]
    limit_s: float


def run_calls(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool], *, context: EpisodeContext, num_before: int = 0
) -> list[Answer]:
    """One message for each call, in order; `num_before`: calls of the episode's earlier turns.

    Async tools and read-only ones that follow one another run at the same time; any other waits for those before it.
    A checkpoint is kept before them: where a call hangs and the process is killed, the kept one answers it with an
    error and carries the others out again. EpisodeError and SandboxError of a tool are
    raised, since no policy causes them; whatever else it raises is an answer.
    """
    answers: dict[int, Answer] = {}
    jobs: list[_Job] = []
    for index, call in enumerate(calls):
        prepared = _prepared(index, call, tools, context, num_before)
        if isinstance(prepared, _Job):
            jobs.append(prepared)
        else:
            answers[index] = prepared
    # Before async ones, too: one that blocks its loop is not given up but killed, and an older checkpoint that woke
    # then would answer an older turn.
    hung = context.checkpoint() if jobs else frozenset()
    for job in jobs:
        if job.call.id in hung:
            answers[job.index] = _timeout(job)
    for group in _groups([job for job in jobs if job.index not in answers]):
        answers.update(_run(group, context))
    return [answers[index] for index in range(len(calls))]


def _prepared(
    index: int, call: ToolCall, tools: Mapping[str, Tool], context: EpisodeContext, num_before: int
) -> _Job | Answer:
    """What is to be run for a call, or the message why nothing is."""
    limits = context.limits
    if index >= limits.max_parallel_calls:
        text = f"not run: a turn may have {limits.max_parallel_calls} calls, this is number {index + 1}"
        return _refusal(call, "over_limit", text)
    if num_before + index >= limits.max_tool_calls:
        return _refusal(call, "over_limit", f"not run: all {limits.max_tool_calls} calls are used up")
    if call.error is not None or call.arguments is None:
        error = call.error or "not_an_object"
        return _refusal(call, error, _NOT_READ[error])
    tool = tools.get(call.name)
    if tool is None:
        return _refusal(call, "unknown_tool", _no_tool(call.name, tools))
    read = tool.read(call.arguments, is_text=call.is_text)
    if read.problems:
        return _refusal(call, "invalid_arguments", "invalid arguments: " + "; ".join(read.problems))
    if read.num_coerced:
        context.log(coerced_arguments=context.scalars.get("coerced_arguments", 0.0) + read.num_coerced)
    limit_s = min(limits.tool_s, tool.timeout_s or limits.tool_s)
    return _Job(index=index, call=call, tool=tool, arguments=read.values, limit_s=limit_s)


def _no_tool(name: str, tools: Mapping[str, Tool]) -> str:
    near = get_close_matches(name[:64], tools, n=1)
    found = f"there is no tool {shortened(name)!r}" if name else "the call names no tool"
    return found + (
        f"; did you mean {near[0]!r}?" if near else f"; the tools are: {', '.join(tools) or 'none'}"
    )


def _groups(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Those that run together, one group after the other."""
    for together, group in itertools.groupby(jobs, key=lambda job: job.tool.is_async or job.tool.read_only):
        if together:
            yield list(group)
        else:
            yield from ([job] for job in group)


def _run(group: list[_Job], context: EpisodeContext) -> dict[int, Answer]:
    if len(group) == 1 and not group[0].tool.is_async:
        job = group[0]
        with context.phase(job.call.id, job.limit_s):
            return {job.index: _attempt(job, context)}
    try:
        found = asyncio.run(_together(group, context))
    except (SystemExit, KeyboardInterrupt) as error:
        # Of a task that a tool started: it ends the loop, whoever awaits it.
        return {job.index: _raised(job, error, context) for job in group}
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return {
        job.index: one for job, one in zip(group, found, strict=True) if not isinstance(one, BaseException)
    }


async def _together(group: Sequence[_Job], context: EpisodeContext) -> list[Answer | BaseException]:
    num_threads = sum(not job.tool.is_async for job in group)
    # Joined before the step ends: a process with threads cannot be forked.
    with ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="tool") as pool:
        waits = [
            _async(job, context) if job.tool.is_async else _threaded(job, context, pool) for job in group
        ]
        return await asyncio.gather(*waits, return_exceptions=True)


async def _threaded(job: _Job, context: EpisodeContext, pool: Executor) -> Answer:
    with context.phase(job.call.id, job.limit_s):
        return await asyncio.get_running_loop().run_in_executor(pool, _attempt, job, context)


async def _async(job: _Job, context: EpisodeContext) -> Answer:
    began = time.perf_counter()
    with context.phase(job.call.id, job.limit_s + _GRACE_S):
        try:
            async with asyncio.timeout(job.limit_s) as deadline:
                result = await _uncancelled(job.tool.run(**_given(job, context)))
            return _answer(job.call, text_of(result), context, began=began)
        except (EpisodeError, SandboxError):
            raise
        except BaseException as error:  # noqa: BLE001 -- a tool may raise anything
            return _timeout(job) if deadline.expired() else _raised(job, error, context, began)


async def _uncancelled(awaited: Awaitable[Any]) -> Any:
    """Its result; a CancelledError of its own making is an error like another."""
    try:
        return await awaited
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("the tool cancelled itself") from error


def _attempt(job: _Job, context: EpisodeContext) -> Answer:
    began = time.perf_counter()
    try:
        result = settled(job.tool.run(**_given(job, context)))
        return _answer(job.call, text_of(result), context, began=began)
    except (EpisodeError, SandboxError):
        raise
    except BaseException as error:  # noqa: BLE001 -- a tool may raise anything
        return _raised(job, error, context, began)


def settled(value: Any) -> Any:
    """What an awaitable comes to; any other value is itself."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def _given(job: _Job, context: EpisodeContext) -> dict[str, Any]:
    return {**job.arguments, **dict.fromkeys(job.tool.context_parameters, context)}


def _raised(job: _Job, error: BaseException, context: EpisodeContext, began: float | None = None) -> Answer:
    _LOG.debug("tool %s raised", job.tool.name, exc_info=error)
    text = error_text(error, folder=context.folder)
    return _answer(job.call, text, context, failure="raised", began=began)


def _timeout(job: _Job) -> Answer:
    text = f"TimeoutError: {job.call.name} was stopped, it had not answered within {job.limit_s:g} s"
    return _message(job.call, text, "timeout"), job.limit_s


def _refusal(call: ToolCall, failure: CallFailure, text: str) -> Answer:
    return _message(call, f"Error: {text}{'' if text.endswith('?') else '.'}", failure), 0.0


def _answer(
    call: ToolCall,
    text: str,
    context: EpisodeContext,
    *,
    failure: CallFailure | None = None,
    began: float | None = None,
) -> Answer:
    seconds = 0.0 if began is None else time.perf_counter() - began
    return _message(call, cut(text, context.limits.max_tool_result_bytes), failure), seconds


def _message(call: ToolCall, text: str, failure: CallFailure | None) -> Message:
    # What cannot be written in UTF-8 can be neither sent nor tokenised.
    return Message(
        role="tool",
        content=text.encode("utf-8", "replace").decode(),
        tool_call_id=call.id,
        name=_NO_NAME.sub("_", call.name[:64]) or "unknown",
        is_error=failure is not None,
        failure=failure,
    )
