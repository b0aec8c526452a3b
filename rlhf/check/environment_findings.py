"""What is wrong with an environment, as far as played episodes show it."""

import builtins
from collections.abc import Iterator, Sequence

from rlhf.check.playing import MAX_LATE, Play
from rlhf.check.report import Finding
from rlhf.check.scripts import EMPTY, REFERENCE, TOOLS
from rlhf.types import Message, ToolCall

CHANGES = "not deterministic"
LEAKS = "state leaks between episodes"
_REFUSALS = (ValueError, KeyError, OSError)
"""What a tool may raise for arguments that it does not want; also any exception that is not Python's own."""


def failures(plays: Sequence[Play]) -> Iterator[Finding]:
    """Episodes that the environment broke, or that could not be played: a row's alike ones as one."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for play in plays:
        if play.problem:
            found.setdefault((play.prompt.id, "an episode cannot be played", play.problem), []).append(
                play.script.name
            )
        elif play.failure:
            kind = f"environment fails in {play.times.last or 'its own process'}"
            found.setdefault((play.prompt.id, kind, play.failure), []).append(play.script.name)
    num_scripts = len({play.script.name for play in plays})
    for (row, kind, reason), scripts in found.items():
        always = kind.endswith("reset") or len(scripts) == num_scripts
        yield Finding(
            kind=kind, row=row, reason=reason if always else f"{reason} (with {', '.join(scripts)})"
        )


def hanging(plays: Sequence[Play]) -> Iterator[Finding]:
    """Rows on which something hung until its limit."""
    late = [play for play in plays if play.is_late]
    for play in late:
        if not play.failure and play.trajectory is not None:
            where = play.times.hung or play.times.last or "its own process"
            reason = f"{play.script.name}: {play.trajectory.stop}, in {where}"
            yield Finding(kind="environment hangs", row=play.prompt.id, reason=reason)
    if len(late) >= MAX_LATE:
        reason = f"{len(late)} episodes hung until a limit of task.environment.limits"
        yield Finding(kind="playing stopped, not every row was played", row="", reason=reason)


def no_room(plays: Sequence[Play]) -> Iterator[Finding]:
    """Rows whose first context leaves the model no token."""
    for play in plays:
        found = play.trajectory
        if (
            found is not None
            and found.stop == "max_tokens"
            and not found.num_sampled
            and play.script.name == EMPTY
        ):
            reason = "the first context alone has task.environment.limits.max_tokens: no turn can be sampled"
            yield Finding(kind="no room for a turn", row=play.prompt.id, reason=reason)


def scores(plays: Sequence[Play], *, has_rewards: bool) -> Iterator[Finding]:
    """Scores that say nothing; where rewards of the recipe judge, those of the environment may."""
    sound = [play for play in plays if play.ends_well]
    graded = [play.value for play in sound if play.value is not None]
    if sound and not graded:
        yield Finding(kind="no episode is gradable", row="", reason="score is always None")
    if has_rewards or len({play.script.name for play in sound}) < 2 or not graded:
        return
    if len(set(graded)) == 1:
        reason = f"it is {graded[0]:g} in all {len(graded)} episodes, whatever the policy does"
        yield Finding(kind="score is constant", row="", reason=reason, is_fatal=False)
    else:
        yield from _references(sound)


def _references(plays: Sequence[Play]) -> Iterator[Finding]:
    empty = {play.prompt.id: play.value for play in plays if play.script.name == EMPTY}
    worse = []
    gold = [play for play in plays if play.script.name == REFERENCE and play.value is not None]
    for play in gold:
        base = empty.get(play.prompt.id)
        if play.value is not None and base is not None and play.value <= base:
            reason = f"it earns {play.value:g}, an empty answer {base:g}"
            worse.append(
                Finding(
                    kind="reference earns no more than an empty answer",
                    row=play.prompt.id,
                    reason=reason,
                    is_fatal=False,
                )
            )
    if worse and len(worse) == len(gold):
        reason = (
            f"on all {len(worse)} rows; where it is no answer, give the right one in a column `gold_completion`, "
            "or its form in task.gold_template"
        )
        yield Finding(kind=worse[0].kind, row="", reason=reason, is_fatal=False)
    else:
        yield from worse


def tools(plays: Sequence[Play]) -> Iterator[Finding]:
    """Tools that broke, rather than refused, on arguments that their schema allows."""
    for play in plays:
        for name, message in calls(play):
            if (message.failure == "raised" and _is_fault(message.content)) or message.failure == "timeout":
                reason = f"{name}: {message.content.splitlines()[0]:.200}"
                yield Finding(
                    kind="tool raises on arguments that its schema allows",
                    row=play.prompt.id,
                    reason=reason,
                    is_fatal=False,
                )


def unread_calls(plays: Sequence[Play]) -> Iterator[Finding]:
    """Calls as the chat template writes them that are none to the parser."""
    called = [play for play in plays if play.script.name == TOOLS and play.trajectory is not None]
    if called and not any(call for play in called for call in written_calls(play)):
        reason = (
            "a call as the chat template writes it is not read as one: see task.environment.tool_syntax, or give "
            "another template in model.chat_template"
        )
        yield Finding(kind="calls are not read", row="", reason=reason, is_fatal=False)


def written_calls(play: Play) -> Iterator[ToolCall]:
    """What was read of the calls that were written rightly."""
    if play.script.name == TOOLS and play.trajectory is not None:
        for turn in play.trajectory.turns:
            yield from turn.message.tool_calls


def calls(play: Play) -> Iterator[tuple[str, Message]]:
    """What each tool answered that was called once."""
    if play.script.name == TOOLS:
        yield from ((message.name or "", message) for message in play.told if message.role == "tool")


def _is_fault(content: str) -> bool:
    kind = getattr(builtins, content.partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, _REFUSALS)


def difference(one: Play, other: Play) -> str:
    """Where two plays of one script on one row part; '' where they do not."""
    if one.problem or other.problem:
        return ""
    for number, (first, second) in enumerate(zip(one.told, other.told, strict=False)):
        if _said(first) != _said(second):
            return f"message {number} from the environment is {_apart(first.content, second.content)}"
    if len(one.told) != len(other.told):
        return f"{len(one.told)} messages from the environment, then {len(other.told)}"
    if _ending(one) != _ending(other):
        return f"it ends with {_ending(one)}, then with {_ending(other)}"
    return ""


def _said(message: Message) -> tuple[str, str, str | None]:
    return message.role, message.content, message.failure


def _ending(play: Play) -> str:
    assert play.trajectory is not None
    value = "no score" if play.value is None else f"{play.value:.9g}"
    of_turns = [turn.reward for turn in play.trajectory.turns if turn.reward]
    return f"{play.trajectory.stop} and {value}" + (f", turns {of_turns}" if of_turns else "")


def _apart(one: str, other: str) -> str:
    """Two texts from a little before where they part."""
    place = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    start = max(0, place - 20)
    return f"{one[start : start + 60]!r}, then {other[start : start + 60]!r}"
