"""Prompts: where they come from, how rows become them, in which order they are handed out."""
