"""How strong the sandbox must be, and the strongest tier that this machine has."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf.errors import ConfigError, SandboxError
from rlhf.sandbox.execution import TIERS, Tier

TIER_VARIABLE = "RLHF_SANDBOX_TIER"
"""Environment variable that pins the tier, so that one machine can prove all of them."""
ISOLATED: tuple[Tier, ...] = ("namespaces", "landlock")
UNSAFE: Literal["i-know"] = "i-know"
REMOTE_SCHEMES = ("http://", "https://", "openenv+http://", "openenv+https://")
"""Of servers: Sandbox Fusion's without a prefix."""
WAYS: Mapping[Tier, str] = {
    "namespaces": "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0, or a container seccomp profile that permits unshare)",
    "landlock": "use a kernel with Landlock (5.13 or later)",
}
"""How to get the tiers that isolate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is accepted. Below `minimum` nothing runs: a weaker tier is never taken silently."""

    minimum: Tier = "landlock"
    unsafe: Literal["", "i-know"] = ""
    """Must be `i-know` for a minimum that leaves the host's files readable (`uid`, `read-only`)."""
    tier: Tier | None = None
    """Exactly this tier; none: the strongest there is."""
    python: str = ""
    """Interpreter (3.11 or later) that programs run in; none: the one that runs this."""
    remote: str = ""
    """URL of a sandbox server that runs everything instead of this machine: Sandbox Fusion's, or `openenv+http://...`."""

    def __post_init__(self) -> None:
        for key, tier in (("minimum", self.minimum), ("tier", self.tier)):
            if tier is not None and tier not in TIERS:
                raise ConfigError(f"sandbox.{key} is {tier!r}, expected one of {', '.join(TIERS)}.")
            if tier is not None and tier not in ISOLATED and self.unsafe != UNSAFE:
                raise ConfigError(
                    f"sandbox.{key} is {tier!r}, a tier in which programs can read this machine's files. "
                    f"Set sandbox.unsafe: {UNSAFE} if they may, or ask for one of {', '.join(ISOLATED)}."
                )

        if self.remote and not self.remote.startswith(REMOTE_SCHEMES):
            raise ConfigError(
                f"sandbox.remote is {self.remote!r}, expected a URL that starts with {', '.join(REMOTE_SCHEMES)}."
            )
        if self.remote and (self.tier or self.python):
            key = "tier" if self.tier else "python"
            raise ConfigError(
                f"sandbox.{key} and sandbox.remote are both set: a server holds programs in its own way and in its "
                f"own interpreter. Leave out one of the two."
            )

    @property
    def candidates(self) -> tuple[Tier, ...]:
        """The tiers that would do, strongest first."""
        enough = TIERS[: TIERS.index(self.minimum) + 1]
        pinned = os.environ.get(TIER_VARIABLE)
        if self.tier or not pinned:
            return (self.tier,) if self.tier else enough
        if pinned not in TIERS:
            raise ConfigError(f"{TIER_VARIABLE} is {pinned!r}, expected one of {', '.join(TIERS)}.")
        if pinned not in enough:
            raise ConfigError(
                f"{TIER_VARIABLE} is {pinned!r}, which is below sandbox.minimum, {self.minimum!r}. Unset the variable, "
                f"or set sandbox.minimum: {pinned}."
            )
        return tuple(tier for tier in TIERS if tier == pinned)


def strongest(policy: Policy, attempt: Callable[[Tier], str]) -> Tier:
    """The strongest tier against which `attempt` gives no reason. SandboxError with all reasons when none is left."""
    reasons: dict[Tier, str] = {}
    for tier in policy.candidates:
        reasons[tier] = attempt(tier)
        if not reasons[tier]:
            return tier
    raise SandboxError(refusal(reasons))


def refusal(reasons: Mapping[Tier, str]) -> str:
    """Why nothing runs, and the ways out."""
    found = "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items())
    return (
        f"No sandbox of the asked strength can be had here ({found}). Ways out: {WAYS['namespaces']} or "
        f"{WAYS['landlock']}; name a sandbox server in sandbox.remote; or accept a weaker tier with "
        f"sandbox.minimum: read-only and sandbox.unsafe: {UNSAFE}."
    )
