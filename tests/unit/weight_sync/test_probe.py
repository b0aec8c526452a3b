import pytest

from rlhf.errors import SyncError
from rlhf.weight_sync.probe import check_probe, probe_gap, probe_sequences


def test_sequences_are_fixed_by_the_seed_and_avoid_special_tokens():
    sequences = probe_sequences(50, seed=1, num=3, length=100, avoid=(0, 1, 2))
    assert sequences == probe_sequences(50, seed=1, num=3, length=100, avoid=(0, 1, 2))
    assert [len(s) for s in sequences] == [100] * 3
    assert {t for s in sequences for t in s} <= set(range(3, 50))


def test_gap_is_the_largest_difference():
    assert probe_gap([[-1.0, -2.0], [-3.0]], [[-1.1, -2.0], [-2.5]]) == pytest.approx(0.5)


def test_probe_reports_the_worst_engine():
    metrics = check_probe([[-1.0]], [[[-1.0]], [[-1.05]]], tolerance=0.1, version=3)
    assert metrics["sync/probe_gap"] == pytest.approx(0.05)


@pytest.mark.parametrize("value", [-1.5, float("nan")])
def test_gap_above_tolerance_names_engine_version_and_difference(value):
    with pytest.raises(SyncError, match=r"version 3 arrived intact in engine 1.*differ.*(0\.5|nan)"):
        check_probe([[-1.0]], [[[-1.0]], [[value]]], tolerance=0.1, version=3)
