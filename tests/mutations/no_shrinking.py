"""Pytest plugin of a run on a mutant: stop at the first counterexample, and refuse another checkout's package."""

from pathlib import Path

import pytest
from hypothesis import Phase, settings


def pytest_sessionstart(session: pytest.Session) -> None:
    import rlhf

    if not Path(rlhf.__file__).is_relative_to(session.config.rootpath):
        pytest.exit(f"rlhf comes from {rlhf.__file__}, expected the mutant's copy", returncode=3)
    # After the conftest files have loaded theirs, before any test module reads it.
    brief = settings(settings.default, phases=(Phase.explicit, Phase.generate))
    settings.register_profile("mutant", brief)
    settings.load_profile("mutant")
