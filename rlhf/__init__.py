"""RL post-training for language and vision-language models: Ray, vLLM and FSDP2, on a laptop or a cluster."""

__version__ = "0.1.0"
