"""Several teachers of one student."""

from functools import partial

from tests.mutations.mutation import Mutation

_TESTS = ("tests/unit/algorithms/test_teachers.py",)
teachers = partial(Mutation, file="rlhf/algorithms/teachers.py", tests=_TESTS)

BUGS = (
    teachers("a row's teacher is another", "batch.teacher_ids == index", "batch.teacher_ids != index"),
    teachers("every teacher scores every row", "batch.teacher_ids == index", "batch.teacher_ids >= 0"),
    teachers("a teacher without rows is asked", "if rows.numel():", "if True:"),
    teachers(
        "a teacher's scores land on other tokens",
        "found[batch.token_index(rows)] =",
        "found[batch.token_index(rows).flip(0)] =",
    ),
    teachers(
        "teacher minus student", "(student - batch.teacher_logprobs)", "(batch.teacher_logprobs - student)"
    ),
    teachers(
        "teacher KL of the sampler where the learner's is known",
        "batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs",
        "batch.rollout_logprobs",
    ),
    teachers(
        "teacher KL over prompt tokens, too",
        "trained = batch.loss_mask & (batch.positions > 0)",
        "trained = batch.positions > 0",
    ),
    teachers(
        "teacher KL over first tokens, too",
        "trained = batch.loss_mask & (batch.positions > 0)",
        "trained = batch.loss_mask",
    ),
    teachers("teacher KL over the others' rows, too", "trained & (of_token == i)", "trained"),
    teachers("teacher KL of the next teacher", "of_token == i", "of_token == i + 1"),
)
