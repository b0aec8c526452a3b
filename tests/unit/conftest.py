"""Property tests: the same examples every run, and no deadlines: a shared machine's clock says nothing."""

from hypothesis import settings

from tests.live_vllm import live_vllm

__all__ = ["live_vllm"]

settings.register_profile("rlhf", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("rlhf")
