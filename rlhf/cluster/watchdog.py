"""Every wait across processes has a deadline and a name; a hang is reported with the actor's Python stack."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlhf.errors import DeadlineError, EngineError, JudgeError, LearnerError, RlhfError, ServiceError

_ERRORS: Mapping[str, type[RlhfError]] = {
    "engine": EngineError,
    "learner": LearnerError,
    "service": ServiceError,
    "judge": JudgeError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An actor and the name that errors call it by."""

    handle: Any
    name: str
    kind: str
    """`engine`, `learner`, `service` or `judge`: decides the error type of its death."""
    node_id: str = ""
    pid: int = 0
    stack_file: str = ""


async def answer(reference: Any, *, actor: Named, call: str, limit_s: float) -> Any:
    """The value behind `reference`, or an error that names actor, call and cause.

    Raises DeadlineError after `limit_s` seconds, the actor's own RlhfError, or EngineError / LearnerError if it died.
    """
    try:
        return await asyncio.wait_for(_value(reference), limit_s)
    except RayError as error:  # first: what an actor raised may be a TimeoutError, too
        raise translate(error, actor=actor, call=call) from error
    except TimeoutError:
        stack = await stack_of(actor)
        raise DeadlineError(
            f"{actor.name} did not answer {call} within {limit_s:g} s (see timeouts in the recipe). "
            f"Its Python stack was:\n{stack}"
        ) from None


def translate(error: RayError, *, actor: Named, call: str) -> Exception:
    """Ray's wrapper -> our error, with the actor and the call named."""
    kind = _ERRORS[actor.kind]
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RlhfError):
            return cause
        return kind(
            f"{actor.name} failed in {call}: {type(cause).__name__}: {cause}\n{_last_lines(str(error))}"
        )
    if isinstance(error, RayActorError):
        return kind(f"{actor.name} died during {call}: {_last_lines(str(error), 6)}")
    return kind(f"{actor.name}: {call} was lost: {error}")


async def stack_of(actor: Named) -> str:
    """Where a hung actor is: its threads, by a signal that needs no cooperation; its coroutines, if it can tell."""
    if not actor.pid:
        return "(unknown: the actor had not started)"
    strategy = NodeAffinitySchedulingStrategy(node_id=actor.node_id, soft=False)
    dump = _dump.options(num_cpus=0, scheduling_strategy=strategy).remote(actor.pid, actor.stack_file)
    looks = [_within(dump, 20)]
    if actor.kind in ("engine", "service"):
        looks.append(_within(actor.handle.tasks.remote(), 5))
    return "\n".join(await asyncio.gather(*looks))


async def _within(reference: Any, limit_s: float) -> str:
    try:
        return str(await asyncio.wait_for(_value(reference), limit_s))
    except (TimeoutError, RayError) as error:
        return f"(could not be read: {type(error).__name__})"


@ray.remote  # type: ignore[untyped-decorator]
def _dump(pid: int, stack_file: str) -> str:
    path = Path(stack_file)
    before = path.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while path.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.05)
    return path.read_text()[before:]


async def _value(reference: Any) -> Any:
    return await reference


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
