"""Rollout engines: vLLM, a plain transformers reference, and canned tokens. Tokens in, tokens out."""
