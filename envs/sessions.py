"""A session in the sandbox as a tool uses it: limits that end a step before the episode's own, text for the model."""

from rlhf.errors import SandboxError
from rlhf.interfaces import Context
from rlhf.sandbox.execution import Execution, Limits

_OF_THE_CALL = 0.8
"""Share of the call's limit that the step may take: the sandbox ends it, not the episode, which would lose the call."""
_CPU = 0.25
"""CPU share of that: the sandbox gives every CPU second four of the wall, so that a busy machine fails nobody."""


def step_limits(context: Context, *, memory_mb: int, processes: int = 32) -> Limits:
    """The limits of one step: those of a tool call in this episode."""
    wall_s = _OF_THE_CALL * min(context.limits.tool_s, context.limits.step_s)
    disk_mb = context.limits.disk_mb
    return Limits(
        cpu_s=_CPU * wall_s,
        wall_s=wall_s,
        memory_mb=memory_mb,
        processes=processes,
        disk_mb=disk_mb,
        file_mb=disk_mb,
        output_kb=max(1, 4 * context.limits.max_tool_result_bytes >> 10),
    )


def shown(execution: Execution, *, max_bytes: int) -> str:
    """Both outputs, cut in the middle, then how the step ended if not well. SandboxError when the sandbox failed."""
    if execution.status == "broken":
        raise SandboxError(f"the sandbox failed in a step: {execution.detail}")
    output = shortened(execution.stdout + execution.stderr, max_bytes)
    return "\n".join(filter(None, [output.rstrip("\n"), ending(execution)])) or "(no output)"


def ending(execution: Execution) -> str:
    """How a step ended that did not end well; nothing of one that did."""
    if execution.succeeded:
        return "(output cut)" if execution.truncated else ""
    if execution.status == "exited":
        return f"(exit code {execution.exit_code})"
    return f"({execution.status}: {execution.detail or execution.signal})"


def shortened(data: bytes, max_bytes: int) -> str:
    """The text, with a visible mark where its middle was left out."""
    if len(data) <= max_bytes:
        return data.decode(errors="replace")
    half = max_bytes // 2
    head, tail = data[:half].decode(errors="replace"), data[-half:].decode(errors="replace")
    return f"{head}\n[... {len(data) - 2 * half} bytes left out ...]\n{tail}"
