"""`rlhf check`: what a recipe names is loaded and tried on answers whose worth is known, before a minute of training."""
