"""`rlhf check`: what a recipe names, loaded and tried on answers whose worth is known."""
