import pytest

from tests.unit.telemetry.synthetic import write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", num_steps=8, samples_per_step=4)
