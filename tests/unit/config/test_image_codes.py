"""What a recipe may not say of the images that its policy draws: refused at load, with both keys."""

import pytest
from pydantic import ValidationError

from rlhf.config.schema import Recipe
from rlhf.image_codes import ImageCodes

CODES = {"first_id": 100, "num_codes": 16, "begin_id": 99, "num_tokens": 16, "null_id": 0}
GUIDED = CODES | {"guidance": 2.0}
TASK = {"train": {"file": "a"}, "rewards": [{"use": "a:b"}]}
CONFIG = {"model_type": "qwen3", "vocab_size": 128}


def recipe(codes, **sections) -> Recipe:
    sampling = {"max_tokens": 24, "max_prompt_tokens": 32, "image_codes": codes} | sections.pop(
        "sampling", {}
    )
    values = {"name": "a", "model": {"config": CONFIG}, "task": TASK, "engine": {"kind": "hf"}}
    return Recipe.model_validate(values | {"sampling": sampling} | sections)


def test_the_rule_says_what_the_recipe_says():
    assert recipe(GUIDED).sampling.image_codes.rule == ImageCodes(**GUIDED)
    assert not recipe(CODES).sampling.image_codes.rule.is_guided


@pytest.mark.parametrize(
    ("codes", "sections", "says"),
    [
        (CODES | {"begin_id": 101}, {}, r"image_codes.begin_id is 101, which is one of the codes 100 to 115"),
        (CODES | {"null_id": 115}, {}, r"image_codes.null_id is 115, which is one of the codes"),
        (CODES | {"null_id": 99}, {}, r"begin_id and null_id are both 99"),
        (CODES | {"num_codes": 29}, {}, r"first_id \+ num_codes - 1 is 128, but .* 0 to 127 \(vocab_size"),
        (CODES | {"begin_id": 200}, {}, r"begin_id is 200, but the model's vocabulary has ids 0 to 127"),
        (CODES, {"sampling": {"max_tokens": 15}}, r"num_tokens is 16 but sampling.max_tokens is 15"),
        (CODES, {"eval": {"max_tokens": 8}}, r"num_tokens is 16 but eval.max_tokens is 8"),
        (CODES, {"engine": {"kind": "vllm"}}, r"engine.kind is vllm: vLLM samples .* Set engine.kind: hf"),
        (CODES, {"engine": {}}, r"engine.kind is auto"),
        (CODES, {"task": TASK | {"environment": {"use": "a:b"}}}, r"and so is task.environment"),
        (GUIDED, {"sampling": {"keep_routing": True}}, r"guidance is 2 and sampling.keep_routing is true"),
        (GUIDED, {"learner": {"microbatch_tokens": 100}}, r"is 56 but learner.microbatch_tokens is 100: .*guidance 2"),
        (CODES | {"guidance": -1}, {}, r"greater than or equal to 0"),
        (CODES | {"scale": 2}, {}, r"scale"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(codes, sections, says):
    with pytest.raises(ValidationError, match=says):
        recipe(codes, **sections)


def test_without_guidance_a_row_needs_its_own_room_alone():
    assert (
        recipe(CODES, learner={"microbatch_tokens": 100}, sampling={"keep_routing": True}).longest_row == 56
    )
