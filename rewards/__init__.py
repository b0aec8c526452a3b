"""Content: reward functions that recipes name as `rewards.module:function`. No torch, Ray or vLLM here."""
