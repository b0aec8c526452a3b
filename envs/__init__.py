"""Content: environments that recipes name as `envs.module:attribute`. No torch, Ray or vLLM here."""
