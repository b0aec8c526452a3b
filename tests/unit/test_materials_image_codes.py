"""Image codes that do not suit the model, its tokenizer or the prompts are refused before any process starts."""

import pytest

from rlhf.config.loading import load_recipe
from rlhf.errors import ConfigError, DataError
from rlhf.materials import gather_materials
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from tests.tiny import VISION, save_tiny
from tests.toy import toy_recipe

CODES = {"first_id": 100, "num_codes": 16, "begin_id": 99, "num_tokens": 9, "null_id": 0}


def materials(folder, *, template="{prompt}<boi>", model=None, **codes):
    path = toy_recipe(
        folder,
        model=model or {"tokenizer": "characters+codes"},
        task={"template": template},
        sampling={"image_codes": CODES | codes},
        engine={"kind": "hf"},
    )
    recipe = load_recipe(path)
    started = prepare_model_folder(recipe.model, folder / "model", seed=0)
    return gather_materials(recipe, RunFolder(folder / "run"), started)


def test_the_rule_reaches_the_run_and_codes_are_single_ids(tmp_path):
    found = materials(tmp_path)
    assert found.image_codes == found.recipe.sampling.image_codes.rule
    assert found.renderer.encode_completion("<boi><c0><c15>", where="x")[:3] == (99, 100, 115)
    assert found.renderer.decode([99, 100, 115, 1]) == "<boi><c0><c15>"


@pytest.mark.parametrize(
    ("template", "says"),
    [("{prompt}<boi> go", "goes on after the token that begins"), ("<c3>{prompt}", "holds image codes")],
)
def test_prompts_with_images_are_refused(tmp_path, template, says):
    with pytest.raises(DataError, match=rf"prompt .* {says}.*image_codes.*begin_id \(99\)"):
        materials(tmp_path, template=template)


def test_the_end_of_an_answer_is_no_code(tmp_path):
    with pytest.raises(ConfigError, match="id 1 ends an answer"):
        materials(tmp_path, first_id=1, num_codes=2)


def test_a_model_that_sees_pixels_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sees images as pixels \(model_type 'qwen2_vl'\)"):
        materials(tmp_path, model={"config": VISION, "tokenizer": "characters+codes"})


def test_codes_beyond_the_vocabulary_of_a_folder_are_refused(tmp_path):
    model = {"config": None, "path": str(save_tiny(tmp_path / "tiny")), "tokenizer": None}
    with pytest.raises(ConfigError, match="ids 0 to 95"):
        materials(tmp_path, model=model, template="{prompt}")
