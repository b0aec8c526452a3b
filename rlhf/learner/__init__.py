"""The FSDP2 learner: one object per rank, real collectives on any device, blind to the algorithm."""
