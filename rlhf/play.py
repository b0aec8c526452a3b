"""`rlhf play`: a person takes the model's place in a recipe's environment, or in a question with one answer."""

import asyncio
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.config.schema import Recipe
from rlhf.episodes.chat import ChatRenderer, Rendered, Schema
from rlhf.episodes.conversation import Dialect, EpisodeEnded
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.parsing import Parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner, SingleTurn, limits_of
from rlhf.episodes.schema_values import arguments_for
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.interfaces import GenerateRequest, RolloutFunction
from rlhf.materials import dialect_for, load_environment, load_task, renderer_for, worker_settings
from rlhf.processes import local_services
from rlhf.rollout.scoring import RewardPool
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.types import (
    Completion,
    Message,
    Prompt,
    Role,
    Sampling,
    Segment,
    ToolCall,
    Trajectory,
    TrajectoryGroup,
)

_STYLES: Mapping[Role, str] = {"system": "magenta", "user": "cyan", "tool": "yellow", "assistant": "green"}
_ENDINGS = {
    "ok": "the episode came to its end",
    "truncated": "a limit: graded as it stands",
    "error": "not graded, never trained on",
}
_STANDARD_INPUT = 0


class HeardChat(ChatRenderer):
    """A renderer that remembers what it last made tokens of."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer)
        self.new: Sequence[Message] = ()
        self.tools: Sequence[Schema] = ()

    def start(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> Rendered:
        """As the other's; what is new is all of it."""
        self.new, self.tools = self._renderer.with_system_prompt(messages), tools
        return super().start(messages, tools)

    def extend(self, new: Sequence[Message], tools: Sequence[Schema] = (), *, after: int) -> Rendered:
        """As the other's."""
        self.new, self.tools = new, tools
        return super().extend(new, tools, after=after)


class Person:
    """An interfaces.Sampler that shows what is new and reads the turn from standard input."""

    def __init__(self, renderer: Renderer, console: Console) -> None:
        self.renderer = renderer
        self._console = console
        self._lines = _Lines(console)
        self._one_by_one = asyncio.Lock()
        self._chat: HeardChat | None = None
        self._parse: Parse | None = None
        self._limits: EpisodeLimits | None = None
        self._num_turns = 0
        self._num_calls = 0
        self._are_tools_shown = False

    def join(self, dialect: Dialect, limits: EpisodeLimits) -> Dialect:
        """The dialect of an environment whose messages this person is shown as they become tokens."""
        self._chat, self._parse, self._limits = HeardChat(self.renderer), dialect.parse, limits
        return replace(dialect, chat=self._chat, parse=self._read)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One turn, typed: a line, or several of which all but the last end in a backslash.

        EpisodeEnded at the end of the input.
        """
        new = () if self._chat is None else self._chat.new
        async with self._one_by_one:
            self._show(request, new)
            ids = await self._turn(request.sampling)
        if ids[-1] not in request.sampling.stop_token_ids:
            self._say(f"cut after {len(ids)} tokens, the most that this turn may have")
        completion = Completion(
            token_ids=ids,
            logprobs=(0.0,) * len(ids),
            versions=(0,) * len(ids),
            finish_reason="stop" if ids[-1] in request.sampling.stop_token_ids else "length",
        )
        return [completion] * len(request.seeds)

    async def _turn(self, sampling: Sampling) -> tuple[int, ...]:
        while True:
            text = await self._lines.turn()
            if text is None:
                raise EpisodeEnded("cancelled")
            try:
                ids = self.renderer.encode_completion(text, where="what you typed")
            except DataError as error:
                self._say(f"{error} Type it again.")
                continue
            ends = [place for place, token in enumerate(ids, 1) if token in sampling.stop_token_ids]
            return ids[: min([*ends, sampling.max_tokens])]

    def _show(self, request: GenerateRequest, new: Sequence[Message]) -> None:
        if self._chat is None or self._limits is None:
            self._console.print(Text("".join(self.renderer.pieces(request.prompt_token_ids))), soft_wrap=True)
            self._say(f"at most {request.sampling.max_tokens} tokens")
            return
        if self._chat.tools and not self._are_tools_shown:
            self._are_tools_shown = True
            self._show_tools(self._chat, self._chat.tools)
        for message in new:
            self._console.print(_message_text(message), soft_wrap=True)
        self._num_turns += 1
        calls = f", call {self._num_calls} of {self._limits.max_tool_calls}" if self._chat.tools else ""
        self._say(
            f"turn {self._num_turns} of {self._limits.max_turns}{calls}, context {len(request.prompt_token_ids)} of "
            f"{self._limits.max_tokens} tokens, at most {request.sampling.max_tokens} in this turn"
        )

    def _show_tools(self, chat: ChatRenderer, tools: Sequence[Schema]) -> None:
        for tool in tools:
            self._console.print(Text.assemble(("tool ", "yellow"), _signature(tool)), soft_wrap=True)
        call = _example_call(tools[0])
        try:
            text = chat.text(
                chat.turn(Message(role="assistant", content="", tool_calls=(call,)), tools)
            ).strip()
        except (ModelError, ValueError):
            text = ""
        assert self._parse is not None
        found = self._parse(text, tools=tools).tool_calls
        is_read = len(found) == 1 and found[0].name == call.name and found[0].error is None
        self._say(
            f"a call is written so: {text}"
            if is_read
            else "the chat template does not write calls as they are read here (task.environment.tool_syntax)"
        )

    def _read(self, text: str, *, is_thinking: bool = False, tools: Sequence[Schema] = ()) -> Message:
        assert self._parse is not None
        message = self._parse(text, is_thinking=is_thinking, tools=tools)
        for call in message.tool_calls:
            self._num_calls += 1
            self._say(f"read as a call: {_call_text(call)}")
        return message

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)


class _Lines:
    """Standard input, read by a thread that nobody waits for: an interrupt ends the command at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._read_lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_reading = False

    async def turn(self) -> str | None:
        """What is typed next; None at the end of the input."""
        if not self._is_reading:
            self._is_reading = True
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._follow, args=(loop,), daemon=True).start()
        lines: list[str] = []
        while True:
            self._console.print("." if lines else ">", end=" ")
            line = await self._read_lines.get()
            if line is None:
                self._console.print()
                return None
            if not os.isatty(_STANDARD_INPUT):
                self._console.print(Text(line), soft_wrap=True)
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        held = b""
        # A loop that is closed: the command has ended.
        with contextlib.suppress(RuntimeError):
            with contextlib.suppress(OSError):
                while data := os.read(_STANDARD_INPUT, 1 << 16):
                    *whole, held = (held + data).split(b"\n")
                    for line in whole:
                        loop.call_soon_threadsafe(self._read_lines.put_nowait, line.decode(errors="replace"))
            if held:
                loop.call_soon_threadsafe(self._read_lines.put_nowait, held.decode(errors="replace"))
            loop.call_soon_threadsafe(self._read_lines.put_nowait, None)


async def play(recipe: Recipe, *, code_dir: Path, row: int) -> int:
    """Play one row of task.train and show its tokens, masks and rewards; 1 where the environment failed.

    Rows of scenarios are counted on, in the order in which the recipe names them.
    """
    async with local_services(recipe) as served:
        return await _play(served, code_dir=code_dir, row=row)


async def _play(recipe: Recipe, *, code_dir: Path, row: int) -> int:
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    train, _ = load_task(recipe)
    if row >= len(train):
        raise ConfigError(
            f"--row is {row}, but task.train has {len(train)} rows: give 0 to {len(train) - 1}."
        )
    task = recipe.task.alone(train[row].scenario)
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare_model_folder(recipe.model, f"{scratch}/model", seed=recipe.seed)
        renderer = renderer_for(recipe, folder)
        pool = RewardPool(
            recipe.task.all_rewards, num_workers=1, code_dir=str(code_dir), settings=worker_settings(recipe)
        )
        host: EnvironmentHost | None = None
        runner: EpisodeRunner | None = None
        try:
            rollout: RolloutFunction = SingleTurn(Person(renderer, console), renderer=renderer)
            if task.environment is not None:
                host = EnvironmentHost(load_environment(recipe, code_dir, train[row].scenario))
                await host.start()
                rollout = runner = _runner(task.environment, host, Person(renderer, console), train[row])
            name = recipe.name if task.environment is None else task.environment.use
            console.rule(f"{name}, row {row} ({train[row].id})", style="dim")
            group = await _episode(recipe, renderer, rollout, pool, train[row])
        except EpisodeEnded:
            console.print("the input ended before an answer")
            return 0
        finally:
            await pool.close()
            if runner is not None:
                await runner.close()
            if host is not None:
                await host.close()
    _show(console, group, renderer)
    return 1 if group.trajectories[0].stop in ("env_error", "policy_error") else 0


def _runner(
    config: EnvironmentConfig, host: EnvironmentHost, person: Person, prompt: Prompt
) -> EpisodeRunner:
    # People think longer than models.
    limits = config.limits.model_copy(update={"episode_s": 86_400.0})
    dialect = person.join(dialect_for(config, person.renderer), limits_of(prompt, limits))
    config = config.model_copy(update={"limits": limits, "retries": 0})
    return EpisodeRunner(person, host, dialect=dialect, config=config)


async def _episode(
    recipe: Recipe, renderer: Renderer, rollout: RolloutFunction, pool: RewardPool, prompt: Prompt
) -> TrajectoryGroup:
    sampling = Sampling(max_tokens=recipe.sampling.max_tokens, stop_token_ids=renderer.stop_token_ids)
    (trajectory,) = await rollout(prompt, seeds=[recipe.seed], sampling=sampling)
    check_record(trajectory)
    group = TrajectoryGroup(index=0, prompt=prompt, trajectories=(trajectory,))
    (reward,) = await pool.score(group)
    return replace(group, trajectories=(replace(trajectory, reward=reward),))


def _show(console: Console, group: TrajectoryGroup, renderer: Renderer) -> None:
    (trajectory,) = group.trajectories
    for number, segment in enumerate(trajectory.segments):
        share = f"{segment.num_sampled} of {len(segment.token_ids)} tokens sampled"
        console.rule(f"segment {number} ({segment.reason}): {share}, «so»", style="dim")
        console.print(Text.assemble(*_pieces(segment, renderer)), soft_wrap=True)
    console.rule(style="dim")
    table = Table("", "", show_header=False)
    for name, value in _result(group.prompt, trajectory):
        table.add_row(name, value)
    console.print(table)


def _result(prompt: Prompt, trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    how = "you ended it" if trajectory.stop == "cancelled" else _ENDINGS[trajectory.status]
    yield "stop", f"{trajectory.stop} ({how})"
    if trajectory.error:
        yield "error", _printable(trajectory.error)
    reward = trajectory.reward
    if reward is not None:
        yield "reward", "not gradable" if reward.value is None else f"{reward.value:g}"
        yield "outcome", reward.outcome
        yield from ((f"  {name}", f"{value:g}") for name, value in reward.parts.items())
        known = {trajectory.stop, trajectory.error[:500]}
        yield from ((f"  {name}", _printable(str(v))) for name, v in reward.detail.items() if v not in known)
    sampled = [turn for turn in trajectory.turns if turn.finish is not None]
    yield from ((f"  turn {n}", f"{turn.reward:g}") for n, turn in enumerate(sampled, 1) if turn.reward)
    yield from ((f"logged {name}", f"{scalar:g}") for name, scalar in trajectory.scalars.items())
    if prompt.reference is not None:
        yield "reference", _printable(prompt.reference)


def _pieces(segment: Segment, renderer: Renderer) -> Iterator[tuple[str, str]]:
    """The segment's text, what was sampled between marks that need no colour to be seen."""
    tokens = zip(renderer.pieces(segment.token_ids), segment.loss_mask, strict=True)
    for is_sampled, run in groupby(tokens, key=lambda token: token[1]):
        text = _printable("".join(piece for piece, _ in run))
        yield (f"«{text}»", "bold green") if is_sampled else (text, "dim")


def _message_text(message: Message) -> Text:
    who = message.role if message.name is None else f"{message.role} {message.name}"
    style = "red" if message.is_error else _STYLES[message.role]
    calls = "".join(f" {_call_text(call)}" for call in message.tool_calls)
    return Text.assemble((f"{who}: ", style), _printable(message.content + calls))


def _call_text(call: ToolCall) -> str:
    if call.error is not None:
        return f"{call.error} in {_printable(call.raw or call.name)}"
    arguments = ", ".join(f"{name}={value!r}" for name, value in (call.arguments or {}).items())
    return _printable(f"{call.name}({arguments})")


def _signature(tool: Schema) -> str:
    function = tool["function"]
    schema = function.get("parameters") or {}
    needed, parameters = schema.get("required") or (), schema.get("properties") or {}
    shown = ", ".join(
        f"{name}{'' if name in needed else '?'}: {_kind(found)}" for name, found in parameters.items()
    )
    described = {name: found for name, found in parameters.items() if isinstance(found, Mapping)}
    told = [f"    {name}: {d['description']}" for name, d in described.items() if d.get("description")]
    return "\n".join([f"{function['name']}({shown})  {function.get('description', '')}".rstrip(), *told])


def _kind(schema: Any) -> str:
    """The type of a parameter in JSON schema's words."""
    if not isinstance(schema, Mapping):
        return "any"
    if "enum" in schema:
        return " | ".join(map(repr, schema["enum"]))
    kinds = schema.get("type") or [_kind(option) for option in schema.get("anyOf") or ()] or "any"
    return kinds if isinstance(kinds, str) else " | ".join(kinds)


def _example_call(tool: Schema) -> ToolCall:
    return ToolCall(id="call00000", name=tool["function"]["name"], arguments=arguments_for(tool, word="..."))


def _printable(text: str) -> str:
    """The text, unable to steer the terminal."""
    return text.replace("\x1b", "␛")
