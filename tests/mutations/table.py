"""All planted bugs. Another one is another entry in a module of `planted`."""

from tests.mutations.mutation import Mutation
from tests.mutations.planted import advantages, weights

MUTATIONS: tuple[Mutation, ...] = (*weights.BUGS, *advantages.BUGS)
