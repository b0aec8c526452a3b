"""All planted bugs. Another one is another entry in a module of `planted`."""

from tests.mutations.mutation import Mutation
from tests.mutations.planted import (
    advantages,
    corrections,
    estimates,
    losses,
    policy,
    preferences,
    rankings,
    tokens,
    weights,
)

MUTATIONS: tuple[Mutation, ...] = (
    *weights.BUGS,
    *advantages.BUGS,
    *policy.BUGS,
    *losses.BUGS,
    *corrections.BUGS,
    *estimates.BUGS,
    *preferences.BUGS,
    *rankings.BUGS,
    *tokens.BUGS,
)
