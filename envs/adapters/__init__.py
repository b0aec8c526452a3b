"""Environments that others have written, played as ours."""
