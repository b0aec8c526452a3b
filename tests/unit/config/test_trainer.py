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
        (DpoConfig, {"loss": {"sigmid": 1}}, "names 'sigmid', .* did you mean 'sigmoid'"),
        (DpoConfig, {"loss": {"aot": 1}}, "sorts the pairs of a batch, so it depends on how that is split"),
        (DpoConfig, {"loss": {"sft": 1}}, "has no loss on pairs"),
        (DpoConfig, {"loss": {"sigmoid": 1, "sft": 1}, "sft_coef": 0.5}, "they are the same term"),
        (DpoConfig, {"loss": {"sigmoid": 1, "robust": 1}}, "label_smoothing is 0"),
        (DpoConfig, {"loss": {"sigmoid": 0}}, "greater than 0"),
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


def test_several_losses_have_weights_and_the_sft_term_is_one_of_them():
    mixed = DpoConfig(source=FILE, loss={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0})
    assert (mixed.losses, mixed.sft_weight) == ({"sigmoid": 0.8, "bco_pair": 0.2}, 1.0)
    single = DpoConfig(source=FILE, sft_coef=0.5)
    assert (single.losses, single.sft_weight) == ({"sigmoid": 1.0}, 0.5)
