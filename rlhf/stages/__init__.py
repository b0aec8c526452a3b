"""What runs before, between and after RL, each in a process of its own."""
