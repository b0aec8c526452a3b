import importlib.util

import pytest

from rlhf.engines import choice
from rlhf.errors import DependencyError


@pytest.fixture
def old_processor(monkeypatch, tmp_path):
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags : fpu sse4_2 avx\n")
    monkeypatch.setattr(choice, "CPU_FLAGS", flags)
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")


@pytest.mark.parametrize("kind", ["hf"])
def test_engine_that_is_asked_for_is_taken(kind):
    assert choice.choose_engine(kind)[0] == kind


@pytest.mark.usefixtures("old_processor")
def test_processor_without_avx2_gets_the_hf_engine_and_hears_why():
    engine, reason = choice.choose_engine("auto")
    assert engine == "hf"
    assert "lacks AVX2" in reason


@pytest.mark.usefixtures("old_processor")
def test_vllm_asked_for_where_it_cannot_run_is_refused():
    with pytest.raises(DependencyError, match="lacks AVX2"):
        choice.choose_engine("vllm")


def test_auto_takes_vllm_exactly_where_nothing_stands_in_its_way():
    assert choice.choose_engine("auto")[0] == ("vllm" if choice.vllm_obstacle() is None else "hf")
