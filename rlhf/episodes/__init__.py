"""The token-exact middle: from a prompt to trajectories whose ids are exactly what an engine saw."""
