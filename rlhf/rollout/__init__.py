"""Making groups of trajectories and judging them. Importing this package loads nothing: reward workers live in it."""
