"""Twelve attacks on every tier: what is stopped is stopped, and what would not be is told."""

import os

import pytest

from rlhf.sandbox.execution import Tier
from rlhf.sandbox.policy import ISOLATED
from rlhf.sandbox.self_test import ATTACKS, TierReport, examine
from tests.unit.sandbox.conftest import policy

OPEN_BELOW = {
    "uid": {"read a host file", "write outside the scratch folder", "list host processes"},
    "read-only": {"read a host file", "list host processes"},
}


def report(tier: Tier, *, without: tuple[str, ...] = ()) -> TierReport:
    """Of this tier, or a skip with the reason."""
    found = examine(tier, python=policy(tier).python, without=without)
    if found.unavailable:
        pytest.skip(f"{tier}: {found.unavailable}")
    return found


@pytest.mark.parametrize("tier", ISOLATED)
def test_isolating_tier_stops_every_attack(tier):
    assert report(tier) == TierReport(tier=tier, stopped=tuple(ATTACKS))


@pytest.mark.parametrize("tier", OPEN_BELOW)
def test_weak_tier_says_what_it_lets_through(tier):
    found = report(tier)
    assert set(found.escaped) <= OPEN_BELOW[tier]
    assert "read a host file" in found.escaped
    assert set(found.stopped) == set(ATTACKS) - set(found.escaped)


@pytest.mark.parametrize(
    ("without", "escaped"),
    [
        ("network", {"UDP to the host", "Unix socket of the host"}),
        ("landlock", {"read a host file", "write outside the scratch folder", "list host processes"}),
        ("namespaces", {"new user namespace"}),
        ("watcher", {"100 MB in 50 files"}),
    ],
)
def test_attack_that_a_removed_mechanism_stopped_is_told(without, escaped):
    if os.getuid() and without == "watcher":
        pytest.skip("without root's user ids the watcher is the only limit of processes")
    found = set(report("landlock", without=(without,)).escaped)
    assert escaped & found
    assert found <= escaped


def test_reason_why_a_tier_is_missing_is_short():
    missing = examine("landlock", python="/no/such/python")
    assert missing == TierReport(tier="landlock", unavailable=missing.unavailable)
    assert missing.unavailable.startswith("its launcher cannot be started ([Errno 2]")
    assert "Ways out" not in missing.unavailable
