"""`sampling.image_codes`: a policy that draws images as tokens, in one sequence with its text."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.section import Count, Section
from rlhf.image_codes import ImageCodes

if TYPE_CHECKING:
    from rlhf.config.schema import Recipe


class ImageCodesConfig(Section):
    """Which ids are image tokens, and how they are drawn: among each other alone, as text is.

    An image begins where `begin_id` ends a prompt or is drawn, has `num_tokens` codes, and text follows. Needs
    `engine.kind: hf`, and codes in the vocabulary of the model.
    """

    first_id: Count
    num_codes: PositiveInt
    """Size of the codebook: its ids are first_id ... first_id + num_codes - 1."""
    begin_id: Count
    """The token before an image."""
    num_tokens: PositiveInt
    """Tokens of an image, height times width."""
    null_id: Count
    """What stands for every token of text in the unconditional row, often the pad token."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Scale s of classifier-free guidance: the logits of a code are u + s (c - u), c those of the row and u those of
    the unconditional one. 1: off. The learner scores the same distribution: twice the work."""

    @property
    def rule(self) -> ImageCodes:
        """The same for engine and learner."""
        return ImageCodes(**self.model_dump())

    @model_validator(mode="after")
    def _is_consistent(self) -> "ImageCodesConfig":
        for name, found in {"begin_id": self.begin_id, "null_id": self.null_id}.items():
            if self.rule.is_code(found):
                raise ValueError(
                    f"sampling.image_codes.{name} is {found}, which is one of the codes {self.first_id} to "
                    f"{self.rule.stop_id - 1} (first_id, num_codes). Give it an id of its own."
                )
        if self.begin_id == self.null_id:
            raise ValueError(
                f"sampling.image_codes.begin_id and null_id are both {self.begin_id}: where an image begins must be "
                "seen in the unconditional row, too. Give them two ids."
            )
        return self


def image_codes_problem(recipe: "Recipe") -> str | None:
    """What of a recipe does not go together with the images that its policy draws; None where nothing is wrong."""
    codes = recipe.sampling.image_codes
    if codes is None:
        return None
    for kind, most in (("sampling", recipe.sampling.max_tokens), ("eval", recipe.eval.max_tokens)):
        if most is not None and codes.num_tokens > most:
            return (
                f"sampling.image_codes.num_tokens is {codes.num_tokens} but {kind}.max_tokens is {most}: no image "
                "would be finished. Raise the last."
            )
    size = (recipe.model.config or {}).get("vocab_size")
    if isinstance(size, int) and (problem := vocabulary_problem(codes, size)) is not None:
        return problem
    if recipe.engine.kind != "hf":
        return (
            f"sampling.image_codes is given and engine.kind is {recipe.engine.kind}: vLLM samples from the logits of "
            "one row, and can neither mix them with those of an unconditional row nor change what may be drawn where "
            "an image begins. Set engine.kind: hf."
        )
    if recipe.task.environments:
        name, _ = next(iter(recipe.task.environments.items()))
        return (
            f"sampling.image_codes is given and so is {recipe.task.key_of(name)}.environment: environments read turns "
            "of text. Remove one of the two."
        )
    return _of_guidance(recipe, codes)


def _of_guidance(recipe: "Recipe", codes: ImageCodesConfig) -> str | None:
    if not codes.rule.is_guided:
        return None
    if recipe.sampling.keep_routing is not False:
        return (
            f"sampling.image_codes.guidance is {codes.guidance:g} and sampling.keep_routing is "
            f"{str(recipe.sampling.keep_routing).lower()}: the experts of unconditional rows are not recorded. Set "
            "keep_routing: false, or guidance: 1."
        )
    if 2 * recipe.longest_row > recipe.learner.microbatch_tokens:
        return (
            f"sampling.max_prompt_tokens + sampling.max_tokens is {recipe.longest_row} but learner.microbatch_tokens "
            f"is {recipe.learner.microbatch_tokens}: with sampling.image_codes.guidance {codes.guidance:g} a row and "
            "its unconditional one must fit in a micro-batch. Raise the last or lower the first."
        )
    return None


def vocabulary_problem(codes: ImageCodesConfig, size: int) -> str | None:
    """What of the ids is not in a vocabulary of `size`; None where all are."""
    last = {
        "first_id + num_codes - 1": codes.rule.stop_id - 1,
        "begin_id": codes.begin_id,
        "null_id": codes.null_id,
    }
    for name, found in last.items():
        if found >= size:
            return (
                f"sampling.image_codes: {name} is {found}, but the model's vocabulary has ids 0 to {size - 1} "
                "(vocab_size in its config). Correct it, or choose a model with a larger vocabulary."
            )
    return None
