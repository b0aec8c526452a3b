import pytest
from pydantic import ValidationError

from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig

FILE = {"file": "rows.jsonl"}


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        (SftConfig, {"num_steps": 3, "num_epochs": 1}, "give exactly one"),
        (SftConfig, {"num_steps": None}, "give exactly one"),
        (SftConfig, {"batch_size": 6, "num_ranks": 4}, "is not a multiple of num_ranks x microbatch_size"),
        (SftConfig, {"lr_schedule": "constant", "min_lr_ratio": 0.1}, "never falls"),
        (SftConfig, {"source": []}, "empty list"),
        (SftConfig, {"repeat": [2]}, "use num_epochs"),
        (SftConfig, {"source": [FILE, FILE], "repeat": [2]}, "repeat has 1 numbers, source 2 entries"),
        (DpoConfig, {"label_smoothing": 0.1}, "sigmoid, which does not read it"),
        (DpoConfig, {"loss": "robust"}, "label_smoothing is 0"),
        (DpoConfig, {"loss": "aot"}, "Input should be"),
        (RewardModelConfig, {"beta": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_sections_refuse_what_cannot_be_meant(section, values, says):
    with pytest.raises(ValidationError, match=says):
        section(**({"source": FILE} | values))


def test_epochs_stand_in_place_of_the_default_steps_also_when_read_again():
    config = SftConfig(source=FILE, num_epochs=2)
    assert config.num_steps is None
    assert SftConfig(**config.model_dump()) == config
    assert SftConfig(source=FILE).num_steps == 100


def test_sources_have_a_key_each():
    config = SftConfig(source=[FILE, FILE])
    assert list(config.sources) == ["sft.source[0]", "sft.source[1]"]
