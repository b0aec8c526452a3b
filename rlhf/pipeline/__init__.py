"""A pipeline of stages: what depends on what, what is done, and running the rest."""
