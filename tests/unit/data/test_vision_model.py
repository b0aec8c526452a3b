"""Pixels are processed once while they are kept, and what is kept has a bound."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rlhf.data.image_tokens import find_runs, rope_positions
from rlhf.data.vision_model import ImageProcessor, find_vision, part_of
from rlhf.errors import DataError, ModelError
from tests.tiny import picture, save_tiny, save_tiny_vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision"))


def processor(folder: Path, **settings) -> ImageProcessor:
    vision = find_vision(folder)
    assert vision is not None
    return ImageProcessor(vision, **settings)


def test_text_model_sees_nothing(tmp_path: Path):
    assert find_vision(save_tiny(tmp_path)) is None


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (16, 64), (200, 150), (5, 7)])
def test_number_of_tokens_is_that_of_the_pixels(folder: Path, tmp_path: Path, size: tuple[int, int]):
    images = processor(folder)
    path = picture(tmp_path, 0, size)
    time, height, width = images.pixels(path).grid
    assert images.num_tokens(path) == time * height * width // 4
    assert images.pixels(path).values.shape[0] == time * height * width


def test_pixels_are_kept_up_to_the_bound(folder: Path, tmp_path: Path):
    paths = [picture(tmp_path, seed) for seed in range(4)]
    size = processor(folder).pixels(paths[0]).values.nbytes
    images = processor(folder, cache_mb=2.5 * size / 2**20)
    first = images.pixels(paths[0])
    assert images.pixels(paths[0]) is first
    images.pixels(paths[1])
    assert images.pixels(paths[0]) is first
    images.pixels(paths[2])  # the second goes, used longest ago
    assert images.pixels(paths[0]) is first
    for path in paths[1:]:
        images.pixels(path)
    assert images.pixels(paths[0]) is not first
    assert torch.equal(images.pixels(paths[0]).values, first.values)


def test_an_extreme_shape_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"\(600 x 2\)"):
        processor(folder).num_tokens(picture(tmp_path, 0, (600, 2)))


def test_folder_without_image_processor_is_refused(tmp_path: Path):
    folder = save_tiny_vision(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"expected its preprocessor_config.json"):
        processor(folder)


def test_positions_are_those_of_transformers(folder: Path):
    model = AutoModelForImageTextToText.from_pretrained(folder).model
    draw = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    for _ in range(20):
        rows, grids, expected = [], [], []
        for _ in range(3):
            row: list[int] = []
            own = []
            for _ in range(number(0, 4)):
                height, width = number(1, 4), number(1, 4)
                row += [10] * number(0, 3) + [3] + [5] * (height * width) + [4]
                own.append((1, 2 * height, 2 * width))
            row += [10] * number(1, 5)
            rows.append(row)
            grids += own
            ids = torch.tensor([row])
            seen = torch.tensor(own) if own else None
            expected.append(model.get_rope_index(ids, (ids == 5).int(), seen)[0][:, 0])
        lengths = torch.tensor([len(row) for row in rows])
        segment_ids = torch.repeat_interleave(torch.arange(3), lengths)
        runs = find_runs(torch.tensor([token for row in rows for token in row]) == 5, segment_ids)
        positions = torch.cat([torch.arange(int(n)) for n in lengths])
        found = rope_positions(positions, segment_ids, runs, grids=grids, merge=2)
        assert torch.equal(found, torch.cat(expected, 1))


def test_parts_are_told_by_name():
    assert part_of("visual.blocks.0.attn.qkv.weight") == "vision"
    assert part_of("model.visual.merger.mlp.0.weight") == "projector"
    assert part_of("model.visual.deepstack_merger_list.0.norm.weight") == "projector"
    assert part_of("lm_head.weight") == part_of("model.language_model.norm.weight") == "text"
