"""All planted bugs. Another one is another entry in a module of `planted`."""

from tests.mutations.mutation import Mutation
from tests.mutations.planted import (
    advantages,
    alignment,
    bundles,
    corrections,
    estimates,
    estimators,
    losses,
    policy,
    preferences,
    rankings,
    recurrences,
    replay,
    sequences,
    shaping,
    teachers,
    tokens,
    weights,
)

MUTATIONS: tuple[Mutation, ...] = (
    *weights.BUGS,
    *advantages.BUGS,
    *estimators.BUGS,
    *sequences.BUGS,
    *recurrences.BUGS,
    *shaping.BUGS,
    *policy.BUGS,
    *losses.BUGS,
    *corrections.BUGS,
    *estimates.BUGS,
    *preferences.BUGS,
    *rankings.BUGS,
    *alignment.BUGS,
    *teachers.BUGS,
    *tokens.BUGS,
    *replay.BUGS,
    *bundles.BUGS,
)
