"""The keys of the sandbox that programs of the model run in (`sandbox`)."""

from typing import Literal

from rlhf.config.section import Section

TierName = Literal["namespaces", "landlock", "uid", "read-only"]


class SandboxConfig(Section):
    """How strongly the model's programs must be held (docs/sandbox.md)."""

    minimum: TierName = "landlock"
    """Below it nothing runs. `uid` and `read-only` leave this machine's files readable and need `unsafe`."""
    tier: TierName | None = None
    """Exactly this tier; default: the strongest there is."""
    unsafe: Literal["", "i-know"] = ""
    python: str = ""
    """Interpreter (3.11 or later) that programs run in; default: the one that runs rlhf."""
    remote: str = ""
    """URL of a sandbox server that runs everything instead of this machine."""
