import pytest

from rlhf.cluster import launch
from rlhf.config.schema import PlacementConfig
from rlhf.errors import PlacementError


@pytest.fixture
def tries(monkeypatch):
    """How often Ray is asked to start; nothing is started, and nothing of others is swept away."""
    found = []
    monkeypatch.setattr(launch, "_sweep", lambda: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    return found


def failing(tries, said):
    def init(**_):
        tries.append(1)
        raise Exception(said)

    return init


def test_a_machine_too_busy_to_start_ray_is_named_after_several_tries(tmp_path, monkeypatch, tries):
    monkeypatch.setattr("ray.init", failing(tries, "The current node timed out during startup."))
    session = launch.ray_session(PlacementConfig(num_cpus=1), code_dir=tmp_path)
    with pytest.raises(PlacementError, match=r"Ray did not start within 30 s, in 3 tries"), session:
        pass
    assert len(tries) == 3


def test_what_else_ray_says_is_not_tried_again(tmp_path, monkeypatch, tries):
    monkeypatch.setattr("ray.init", failing(tries, "no space left"))
    session = launch.ray_session(PlacementConfig(num_cpus=1), code_dir=tmp_path)
    with pytest.raises(Exception, match="no space left"), session:
        pass
    assert len(tries) == 1
