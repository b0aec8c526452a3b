"""One episode's own process: it plays the environment and asks its runner for the model's turns.

Everything that a user wrote runs here and only here. The process is forked from one that has imported the
environment (`zygote`); it talks JSON lines with the runner, which kills it when a phase takes too long.
"""

import asyncio
import contextlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.context import EpisodeContext
from rlhf.episodes.line import Line
from rlhf.episodes.played import Loaded
from rlhf.episodes.program import Endpoint, ProgramEnvironment
from rlhf.errors import EpisodeError
from rlhf.interfaces import EpisodeOver
from rlhf.types import Message, Prompt, Step, StopReason, message_of

TRACEBACK_CHARACTERS = 3000
_MAX_FILES = 4096
"""That an episode's process may have open."""


def play(line: "Line", folder: str, environment: Loaded) -> NoReturn:
    """The whole life of an episode's process, in a folder of its own."""
    make, kind = environment
    start = line.start()
    _bound(start.limits)
    os.chdir(folder)
    context = EpisodeContext(start, folder=folder, link=line)
    try:
        if kind == "function":
            end = asyncio.run(_Function(line, context).play(make()))
        else:
            end = _Object(line, context, make, scores_truncated=start.scores_truncated).play()
    except BaseException as error:  # noqa: BLE001 -- whatever a user's code raises is the runner's to judge
        end = {"do": "failed", "error": _short(error), "trace": _trace(error)}
    line.drop_checkpoint()
    line.tell(end)
    os._exit(0)


def _bound(limits: EpisodeLimits) -> None:
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    memory = held + (limits.memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.disk_mb << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _MAX_FILES if most == resource.RLIM_INFINITY else min(most, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # A file over its limit is an error that can be told, not a death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


class _Object:
    """Plays an object with reset, step and perhaps score and close."""

    def __init__(
        self, line: Line, context: EpisodeContext, make: Callable[[], Any], *, scores_truncated: bool
    ) -> None:
        self._line = line
        self._context = context
        self._make = make
        self._environment: Any = None
        self._scores_truncated = scores_truncated

    def play(self) -> dict[str, Any]:
        try:
            end = self._interact()
        except BaseException as error:
            # What failed first is what is told.
            _print(error)
            with contextlib.suppress(BaseException):
                self._close()
            raise
        self._close()
        return end

    def _close(self) -> None:
        with self._context.phase("close", self._context.limits.score_s):
            if hasattr(self._environment, "close"):
                _now(self._environment.close())

    def _interact(self) -> dict[str, Any]:
        context, limits = self._context, self._context.limits
        with context.phase("reset", limits.setup_s):
            environment = self._environment = self._make()
            is_program = not hasattr(environment, "step") and hasattr(environment, "play")
            found = None if is_program else _now(environment.reset(context.prompt, context))
        if is_program:
            return self._run(environment)
        opening = _opening(found, context.prompt)
        tools = [tool.schema for tool in getattr(environment, "tools", ())]
        stop = self._turns(environment, opening, tools)
        score: dict[str, float] | None = {}
        if self._scores_truncated or stop in ("stop", "env_done"):
            with context.phase("score", limits.score_s):
                score = _score(_now(environment.score(context)) if hasattr(environment, "score") else 0.0)
        return {"do": "done", "stop": stop, "score": score, "scalars": context.scalars}

    def _run(self, program: ProgramEnvironment) -> dict[str, Any]:
        """Run a program that asks the model at an endpoint, and score what it leaves."""
        context = self._context
        endpoint = Endpoint(**self._line.ask({"do": "serve"}))
        finished = asyncio.run(program.play(endpoint, context))
        said = self._line.ask({"do": "messages"})
        context.note(*map(message_of, said["messages"]))
        if context.state is finished:
            context.state = replace(finished, ended=said["ended"])
        with context.phase("score", context.limits.score_s):
            score = _score(_now(program.score(context)))
        return {
            "do": "done",
            "stop": "episode_timeout" if finished.exit_code is None else "stop",
            "score": score,
            "scalars": context.scalars,
            "exit_code": finished.exit_code,
            "stderr": finished.stderr[-TRACEBACK_CHARACTERS:],
        }

    def _turns(self, environment: Any, new: Sequence[Message], tools: Sequence[Any]) -> StopReason:
        context, limits = self._context, self._context.limits
        seconds: Sequence[float] = ()
        num_calls = num_invalid = 0
        try:
            while True:
                context.note(*new)
                action = self._sample(new, seconds, tools)
                context.note(action)
                num_calls += len(action.tool_calls)
                if num_calls > limits.max_tool_calls:
                    return "max_tool_calls"
                if not getattr(environment, "keeps_checkpoints", False):
                    context.checkpoint()
                with context.phase("step", limits.step_s):
                    step = _step(_now(environment.step(action, context)))
                self._line.drop_checkpoint()
                if step.reward:
                    self._line.tell({"do": "reward", "value": _number(step.reward)})
                if step.terminated:
                    return "stop" if tools and not action.tool_calls else "env_done"
                if step.truncated:
                    return "env_truncated"
                num_invalid = num_invalid + 1 if step.is_invalid else 0
                if num_invalid >= limits.max_parse_errors:
                    return "parse_error"
                new, seconds = _answering(step.messages, action), step.seconds
        except EpisodeOver as over:
            if over.last is not None:
                context.note(over.last)
            return over.stop

    def _sample(self, new: Sequence[Message], seconds: Sequence[float], tools: Sequence[Any]) -> Message:
        answer = self._line.ask(
            {
                "do": "sample",
                "thread": 0,
                "messages": [asdict(message) for message in new],
                "seconds": list(seconds),
                "tools": list(tools),
            }
        )
        return _answer(answer)


class _Function:
    """Plays an async function (prompt, model, context) that owns its loop, or an object with one as `play`."""

    def __init__(self, line: Line, context: EpisodeContext) -> None:
        self._line = line
        self._context = context
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def play(self, owner: Any) -> dict[str, Any]:
        reader = threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True)
        reader.start()
        stop: StopReason = "stop"
        function = getattr(owner, "play", owner)
        try:
            score = _score(await function(self._context.prompt, ThreadModel(self), self._context))
        except EpisodeOver as over:
            score, stop = {}, over.stop
        except BaseException as error:
            _print(error)
            with contextlib.suppress(BaseException):
                await self._close(owner)
            raise
        await self._close(owner)
        return {"do": "done", "stop": stop, "score": score, "scalars": self._context.scalars}

    async def _close(self, owner: Any) -> None:
        with self._context.phase("close", self._context.limits.score_s):
            if hasattr(owner, "close") and inspect.isawaitable(closed := owner.close()):
                await closed

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        number = len(self._waiting)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._line.tell({**message, "id": number})
        return await future

    def note(self, *messages: Message) -> None:
        self._context.note(*messages)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            answer = self._line.hear()
            loop.call_soon_threadsafe(self._waiting[answer["id"]].set_result, answer)


class ThreadModel:
    """interfaces.Model over the runner."""

    def __init__(self, episode: _Function, thread: int = 0) -> None:
        self._episode = episode
        self._thread = thread

    async def __call__(self, *new: Message, max_tokens: int | None = None) -> Message:
        """Show the model messages and have it answer. EpisodeOver when a limit does not allow it."""
        self._episode.note(*new)
        message = {"do": "sample", "messages": [asdict(m) for m in new], "max_tokens": max_tokens}
        answer = _answer(await self._episode.ask({**message, "thread": self._thread}))
        self._episode.note(answer)
        return answer

    async def rewrite(self, messages: Sequence[Message]) -> None:
        """Go on from these messages instead."""
        plain = [asdict(message) for message in messages]
        await self._episode.ask({"do": "rewrite", "thread": self._thread, "messages": plain})

    async def fork(self) -> "ThreadModel":
        """Another conversation that begins with what this one has said."""
        answer = await self._episode.ask({"do": "fork", "thread": self._thread})
        return ThreadModel(self._episode, answer["thread"])


def _answer(answer: Mapping[str, Any]) -> Message:
    if "ended" in answer:
        last = answer.get("message")
        raise EpisodeOver(answer["ended"], None if last is None else message_of(last))
    return message_of(answer["message"])


def _now(value: Any) -> Any:
    """A coroutine's result, or the value itself."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def _opening(found: Any, prompt: Prompt) -> Sequence[Message]:
    if found is None:
        return prompt.messages
    if isinstance(found, str):
        return (Message(role="user", content=found),)
    messages = tuple(found)
    if not messages or not all(isinstance(m, Message) for m in messages):
        raise EpisodeError(
            f"reset returned {found!r:.200}, expected messages, a text, or None for the prompt's own"
        )
    if messages[-1].role == "assistant":
        raise EpisodeError("reset ended with the assistant's message, expected the user's or a tool's")
    return messages


def _step(found: Any) -> Step:
    if not isinstance(found, Step):
        raise EpisodeError(f"step returned {found!r:.200}, expected an rlhf.types.Step")
    if not (found.messages or found.terminated or found.truncated):
        raise EpisodeError(
            "step returned no message and did not end the episode: the model has nothing to answer"
        )
    return found


def _answering(messages: Sequence[Message], action: Message) -> Sequence[Message]:
    """The messages, if they answer every call once."""
    wanted = [call.id for call in action.tool_calls]
    answered = [m.tool_call_id for m in messages if m.role == "tool"]
    if sorted(wanted) != sorted(map(str, answered)):
        raise EpisodeError(
            f"step answered the calls {answered}, expected one tool message for each of {wanted}"
        )
    if any(m.role == "assistant" for m in messages):
        raise EpisodeError("step returned an assistant's message: those are the model's alone")
    return messages


def _score(found: Any) -> dict[str, float] | None:
    """The score and its parts; None stays None: not gradable."""
    if found is None:
        return None
    if not isinstance(found, Mapping):
        return {"score": _number(found)}
    if "score" not in found:
        raise EpisodeError(
            f"score returned {sorted(found)}, expected `score` among them; the others are logged"
        )
    return {str(name): _number(value) for name, value in found.items()}


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise EpisodeError(f"a reward is {value!r:.100}, expected a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise EpisodeError(f"a reward is {number}, expected a finite number")
    return number


def _short(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # noqa: BLE001 -- a user's __str__ may raise anything
        return type(error).__name__


def _print(error: BaseException) -> None:
    """Into the episode's output, which is told of a process that has to be killed."""
    with contextlib.suppress(OSError):
        os.write(2, _trace(error).encode(errors="replace"))


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
    except Exception:  # noqa: BLE001
        return ""


if sys.platform != "linux":
    raise EpisodeError("environments need Linux: their processes are forked and kept by the kernel")
