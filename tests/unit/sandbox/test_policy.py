"""Which tier is taken: the strongest, the one pinned, or none, with every reason."""

import pytest

from rlhf.errors import ConfigError, SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Program, Tier
from rlhf.sandbox.policy import ISOLATED, TIER_VARIABLE, UNSAFE, Policy, strongest
from tests.unit.sandbox.conftest import policy


@pytest.mark.parametrize("tier", TIERS)
def test_variable_pins_the_tier(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIER_VARIABLE, tier)
    with Sandbox(Policy(minimum="read-only", unsafe=UNSAFE, python=policy(tier).python)) as sandbox:
        try:
            assert sandbox.tier == tier
        except SandboxError as error:
            pytest.skip(str(error))
        assert sandbox.run(Program(code="print(6 * 7)")).stdout == b"42\n"


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier not in ISOLATED])
def test_variable_cannot_go_below_the_minimum(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIER_VARIABLE, tier)
    with pytest.raises(ConfigError, match=f"{TIER_VARIABLE} is '{tier}'.*sandbox.minimum"):
        assert Policy().candidates


def test_variable_must_name_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIER_VARIABLE, "docker")
    with pytest.raises(ConfigError, match=r"'docker', expected one of namespaces, landlock"):
        assert Policy().candidates


def test_recipe_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIER_VARIABLE, "namespaces")
    assert Policy(tier="landlock").candidates == ("landlock",)


def test_strongest_that_can_be_had_is_taken() -> None:
    tried: list[Tier] = []

    def attempt(tier: Tier) -> str:
        tried.append(tier)
        return "" if tier == "landlock" else "not here"

    assert strongest(Policy(), attempt) == "landlock"
    assert tried == ["namespaces", "landlock"]


def test_refusal_names_every_reason_and_the_ways_out() -> None:
    with pytest.raises(SandboxError) as caught:
        strongest(Policy(), lambda tier: f"{tier} is missing")
    message = str(caught.value)
    assert "namespaces: namespaces is missing; landlock: landlock is missing" in message
    assert all(word in message for word in ("userns", "5.13", "sandbox.remote", "sandbox.unsafe"))
    assert "uid" not in message.partition("Ways out")[0]
