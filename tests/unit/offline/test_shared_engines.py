import asyncio
import contextlib
from pathlib import Path

import pytest

from rlhf.config.loading import load_recipe
from rlhf.errors import SyncError
from rlhf.materials import Materials
from rlhf.offline import shared_engines
from rlhf.offline.shared_engines import SharedEngines
from rlhf.run_folder import RunFolder

ROOT = Path(__file__).parents[3]


class Engines:
    """Notes what it loads; cannot load a folder called `torn`."""

    def __init__(self):
        self.loaded, self.is_open = [], True

    async def update(self, info):
        if info["path"].endswith("torn"):
            raise SyncError("it holds half of the tensors")
        self.loaded.append((Path(info["path"]).name, info["version"]))

    def __getattr__(self, name):
        async def nothing(*_):
            assert name in ("pause", "begin_update", "finish_update", "resume")

        return nothing


@pytest.fixture
def started(monkeypatch):
    """Every set of engines that was started."""
    engines = []

    @contextlib.asynccontextmanager
    async def open_engines(materials):
        assert materials.recipe.sync.kind == "disk"
        engines.append(Engines())
        yield engines[-1]
        engines[-1].is_open = False

    monkeypatch.setattr(shared_engines, "open_engines", open_engines)
    monkeypatch.setattr(shared_engines, "ray_session", lambda *_, **__: contextlib.nullcontext())
    return engines


def model(folder, config="{}"):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    recipe = load_recipe(str(ROOT / "recipes/cpu/quickstart.yaml"), [])
    return Materials(
        recipe=recipe, folder=RunFolder(folder), model_folder=str(folder), renderer=None, train=[], heldout=[],
        device="cpu", engine_kind="vllm",
    )  # fmt: skip


def take_turns(models, code_dir):
    async def run():
        async with SharedEngines(code_dir) as shared:
            return [await shared.of(one) for one in models]

    return asyncio.run(run())


def test_one_shape_shares_engines_and_another_gets_its_own(tmp_path, started):
    same = [model(tmp_path / name, '{"a": 1, "transformers_version": "' + name + '"}') for name in "abc"]
    found = take_turns([*same, model(tmp_path / "wide", '{"a": 2}')], tmp_path)
    assert found == [started[0]] * 3 + [started[1]]
    assert started[0].loaded == [("b", 1), ("c", 2)]
    assert started[1].loaded == []
    assert not any(engines.is_open for engines in started)


def test_checkpoint_that_running_engines_cannot_load_gets_engines_of_its_own(tmp_path, started):
    found = take_turns([model(tmp_path / name) for name in ("a", "torn", "b")], tmp_path)
    assert found == [started[0], started[1], started[1]]
    assert [engines.loaded for engines in started] == [[], [("b", 1)]]
