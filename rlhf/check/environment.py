"""`rlhf check` of a recipe with an environment: rows played by scripted policies, in the processes of training."""

import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlhf.check import environment_findings as judge
from rlhf.check.leftovers import changed_files, files_below
from rlhf.check.playing import PHASES, Play, Stage, stage
from rlhf.check.report import Finding, Report, num_of
from rlhf.check.scripts import ScriptWriter
from rlhf.check.stand_in import write_byte_tokenizer
from rlhf.config.environment import EnvironmentConfig
from rlhf.config.schema import Recipe
from rlhf.data.characters import KINDS, write_character_tokenizer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError, LoadError, ModelError
from rlhf.materials import dialect_for, load_environment, renderer_for
from rlhf.types import Prompt

NUM_ROWS = 16
"""Rows that are played without --rows."""
_ROOMY = 8
"""Bytes that a token stands for, at most."""
_NUM_SCHEMA_CHARACTERS = 2000

Open = Callable[[], AbstractAsyncContextManager[Stage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A sample's episodes: all of it, and again in a fresh process in the opposite order."""

    first: list[Play]
    again: list[Play]
    seconds: float


async def check_environment(
    recipe: Recipe, prompts: Sequence[Prompt], report: Report, *, code_dir: Path, num_rows: int | None
) -> None:
    """Play a sample of the rows by every script, twice, and say what is wrong with the environment."""
    config = recipe.task.environment
    assert config is not None
    rows = _sample(prompts, NUM_ROWS if num_rows is None else num_rows)
    report.say("episodes", f"{len(rows)} of {num_of(len(prompts), 'row')} are played", rows=len(rows))
    with tempfile.TemporaryDirectory(prefix="rlhf-check-") as scratch:
        found = _dialect(recipe, config, scratch, report)
        if found is None:
            return
        dialect, config = found
        writer = ScriptWriter(dialect.chat, recipe.task)
        temp_dir = os.path.join(scratch, "tmp")
        os.mkdir(temp_dir)
        # Programs in the sandbox may be another user's.
        os.chmod(scratch, 0o711)
        load = load_environment(recipe, code_dir)

        def fresh() -> AbstractAsyncContextManager[Stage]:
            return stage(load, dialect=dialect, config=config, writer=writer, temp_dir=temp_dir)

        files, children = files_below(Path()), _children()
        try:
            tried = await _try(fresh, rows)
        except LoadError as error:
            report.findings.append(Finding(kind="environment does not load", row="", reason=str(error)))
            return
        report.say("reference", f"answered as {writer.template!r}", template=writer.template)
        _say_tools(tried.first, report)
        _say_episodes(tried, report)
        report.findings += _judge(tried.first, has_rewards=bool(recipe.task.rewards))
        report.findings += await _not_the_same(tried, fresh)
        report.findings += _left_behind(
            changed_files(files, files_below(Path())), os.listdir(temp_dir), _children() - children
        )


async def _try(fresh: Open, rows: Sequence[Prompt]) -> _Tried:
    began = time.perf_counter()
    async with fresh() as playing:
        await playing.fit_reference(rows)
        first = await playing.play_rows(rows)
    again: list[Play] = []
    if not any(play.is_late for play in first):
        async with fresh() as playing:
            again = await playing.replay(first[::-1])
    return _Tried(first=first, again=again, seconds=time.perf_counter() - began)


def _judge(plays: Sequence[Play], *, has_rewards: bool) -> list[Finding]:
    return [
        *judge.failures(plays),
        *judge.hanging(plays),
        *judge.no_room(plays),
        *judge.scores(plays, has_rewards=has_rewards),
        *judge.tools(plays),
        *judge.unread_calls(plays),
    ]


async def _not_the_same(tried: _Tried, fresh: Open) -> list[Finding]:
    """Rows that went another way the second time, and whether what was played before them is the cause."""
    again = {play.key: play for play in tried.again}
    pairs = [(play, again[play.key]) for play in tried.first if play.key in again]
    parted = [(one, said) for one, other in pairs if (said := judge.difference(one, other))]
    if not parted:
        return []
    one, said = parted[0]
    # Alone, as the first episode of a process.
    alone: list[Play] = []
    for _ in range(2):
        async with fresh() as playing:
            alone.append(await playing.play(one.prompt, one.script))
    leaks = not judge.difference(*alone)
    kind = judge.LEAKS if leaks else judge.CHANGES
    rows = {play.prompt.id: f"{play.script.name}: {text}" for play, text in reversed(parted)}
    why = "alone it goes the same way each time" if leaks else "same seed, same actions"
    return [
        Finding(kind=kind, row=row, reason=f"{text} ({why})", is_fatal=leaks)
        for row, text in reversed(rows.items())
    ]


def _left_behind(files: str, temporary: Sequence[str], processes: set[int]) -> list[Finding]:
    found = []
    if files:
        found.append(f"files of the working directory changed: {files}")
    if temporary:
        named = ", ".join(sorted(temporary)[:3])
        found.append(f"{num_of(len(temporary), 'temporary file')} or folders are left, such as {named}")
    if processes:
        found.append(f"{num_of(len(processes), 'process')} still run")
    return [Finding(kind="left behind", row="", reason=reason, is_fatal=False) for reason in found]


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _sample(prompts: Sequence[Prompt], num_rows: int) -> list[Prompt]:
    chosen = sorted(random.Random(0).sample(range(len(prompts)), min(num_rows, len(prompts))))
    return [prompts[index] for index in chosen]


def _dialect(
    recipe: Recipe, config: EnvironmentConfig, scratch: str, report: Report
) -> tuple[Dialect, EnvironmentConfig] | None:
    """How turns become tokens, as the recipe has it, or with a tokenizer of bytes; None where that is impossible."""
    renderer = _renderer(recipe, scratch)
    is_own = renderer is not None
    if renderer is None:
        write_byte_tokenizer(scratch)
        renderer = Renderer(model_folder=scratch)
        limits = config.limits.model_copy(update={"max_tokens": _ROOMY * config.limits.max_tokens})
        config = config.model_copy(update={"limits": limits, "tool_syntax": "auto"})
    try:
        dialect = dialect_for(config, renderer)
    except (ModelError, ConfigError) as error:
        report.findings.append(Finding(kind="chat template", row="", reason=str(error)))
        return None
    text = (
        "can be extended turn by turn" if is_own else "is not here: played with tokens of bytes, and ChatML"
    )
    report.say("chat template", text, is_own=is_own)
    return dialect, config


def _renderer(recipe: Recipe, scratch: str) -> Renderer | None:
    """The recipe's own, where its tokenizer is on this machine."""
    model = recipe.model
    tags = KINDS.get(model.tokenizer or "")
    if tags is not None:
        size = int((model.config or {}).get("vocab_size", 1 << 16))
        write_character_tokenizer(scratch, tags=tags, vocabulary_size=size)
        return renderer_for(recipe, scratch)
    source = model.tokenizer or model.path
    return renderer_for(recipe, model.path or scratch) if source and Path(source).is_dir() else None


def _say_tools(plays: Sequence[Play], report: Report) -> None:
    schemas = {tool["function"]["name"]: tool for play in plays for tool in play.times.tools}
    if not schemas:
        report.say("tools", "none", schemas=[])
        return
    raw = next((call.raw for play in plays for call in judge.written_calls(play)), None)
    text = f"called as {raw!r:.200}" if raw else "their calls are not read"
    report.say("tools", text, schemas=list(schemas.values()))
    ends: dict[str, Counter[str]] = {name: Counter() for name in schemas}
    said: dict[str, str] = {}
    for play in plays:
        for name, message in judge.calls(play):
            end = message.failure or "answered"
            ends.setdefault(name, Counter())[end] += 1
            said.setdefault(name, "")
            if message.failure:
                said[name] = f"; such as {message.content!r:.120}"
    for name, schema in schemas.items():
        shown = json.dumps(schema["function"], ensure_ascii=False)[:_NUM_SCHEMA_CHARACTERS]
        counts = ", ".join(f"{end} {num_of(n, 'time')}" for end, n in ends[name].items()) or "not called"
        report.say(f"tool {name}", f"{shown}; {counts}{said.get(name, '')}", calls=dict(ends[name]))


def _say_episodes(tried: _Tried, report: Report) -> None:
    plays = tried.first
    played = [play for play in plays if play.trajectory is not None]
    stops = Counter(play.trajectory.stop for play in played if play.trajectory is not None)
    ends = ", ".join(f"{stop} {count}" for stop, count in stops.most_common())
    num_played = len(plays) + len(tried.again)
    report.say(
        "episodes",
        f"{len(plays)}, each played {'twice' if tried.again else 'once'}: {ends}",
        stops=dict(stops),
    )
    values: dict[str, list[float]] = {}
    for play in plays:
        if play.value is not None:
            values.setdefault(play.script.name, []).append(play.value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    shown = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()) or "no episode has one"
    report.say("score", f"mean {shown}", means=means)
    report.say("time", *_times([*plays, *tried.again], num_played, tried.seconds))


def _times(plays: Sequence[Play], num_played: int, seconds: float) -> tuple[str]:
    text = f"{num_of(num_played, 'episode')} in {seconds:.1f} s"
    for name in PHASES:
        found = sorted(taken for play in plays for taken in play.times.seconds[name])
        if found:
            text += f"; {name} {1000 * found[len(found) // 2]:.1f} ms, at most {1000 * found[-1]:.1f}"
    return (text,)
