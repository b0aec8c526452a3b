"""Engines of embeddings give what the learner gives, under the weights they say, one version at a time."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from rlhf.config.schema import EngineConfig
from rlhf.engines.pooling import Embedded, HfPool, VllmPool
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import engine_environment
from rlhf.errors import DataError, EngineError, SyncError
from rlhf.learner.aligner import Aligner, RankPlace
from rlhf.machine import free_port
from rlhf.order_batch import PairBatch
from rlhf.weight_sync.files import FileSender, read_weights
from tests.live_vllm import weight_files
from tests.retrievers import Squares, tiny_dual_encoder
from tests.unit.learner.aligners import plan
from tests.unit.vision.recipes import TEXTS, captions

slow = pytest.mark.slow
IMAGES = tuple(Squares().ids())[:11]
KINDS = ("clip", "siglip")
Pool = HfPool | VllmPool


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny_dual_encoder(root / kind, kind=kind) for kind in KINDS}


def settings_of(folder: str) -> EngineSettings:
    return EngineSettings(
        model=folder, config=EngineConfig(), device="cpu", dtype="float32", max_model_len=16
    )


@dataclass(frozen=True)
class LivePool:
    """A vLLM engine, the loop it lives on, and the folder of its model."""

    pool: VllmPool
    loop: asyncio.AbstractEventLoop
    folder: str

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 300))


@pytest.fixture(scope="module", params=KINDS)
def live_pool(request: pytest.FixtureRequest, folders: dict[str, str]) -> Iterator[LivePool]:
    """One start for each kind of model."""
    pytest.importorskip("vllm", reason="vLLM is not installed: its pooling runner cannot be compared")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(EngineConfig(), "cpu").items():
            patch.setenv(name, value)
        loop = asyncio.new_event_loop()
        folder = folders[request.param]
        live = LivePool(loop.run_until_complete(VllmPool.open(settings_of(folder), Squares())), loop, folder)
        yield live
        live.run(live.pool.close())
        loop.close()


@pytest.fixture
def aligners() -> Iterator[Any]:
    """Makes the learner of a folder; one at a time."""

    def make(folder: str) -> Aligner:
        aligner = Aligner(plan(folder, lr=1e-2), RankPlace(port=free_port()))
        aligner.open_sender(lambda rank, _: FileSender(run="pooling", rank=rank))
        return aligner

    yield make
    if dist.is_initialized():
        dist.destroy_process_group()


def learn(aligner: Aligner) -> None:
    """Two steps on the same captions: embeddings move far."""
    pairs = captions(16)
    batch = PairBatch(
        texts=tuple(text for _, text in pairs),
        images=tuple(image for image, _ in pairs),
        keys=torch.tensor([TEXTS.index(text) for _, text in pairs]),
        weight=1 / 16,
        is_replay=True,
    )
    aligner.update([[batch], [batch]])


async def send(aligner: Aligner, pools: Sequence[Pool], version: int) -> None:
    info = aligner.send(version)
    for pool in pools:
        await pool.pause()
        await pool.begin_update()
        await pool.update(info)
        await pool.finish_update(version)
        await pool.resume()
    aligner.release_weights()


def gap(found: Embedded, expected: tuple[torch.Tensor, torch.Tensor] | Embedded) -> float:
    sides = (expected.texts, expected.images) if isinstance(expected, Embedded) else map(np.asarray, expected)
    texts, images = sides
    assert (found.texts.shape, found.images.shape) == (texts.shape, images.shape)
    assert found.texts.dtype == found.images.dtype == np.float32
    return float(max(np.abs(found.texts - texts).max(), np.abs(found.images - images).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_hf_embeds_as_the_learner_before_and_after_an_update(folders, aligners, kind: str):
    pool, aligner = HfPool(settings_of(folders[kind]), Squares(), read=read_weights), aligners(folders[kind])

    async def scenario() -> tuple[Embedded, Embedded, tuple[torch.Tensor, torch.Tensor]]:
        before, expected = await pool.embed(TEXTS, IMAGES), aligner.embed(TEXTS, IMAGES)
        learn(aligner)
        await send(aligner, [pool], 7)
        return before, await pool.embed(TEXTS, IMAGES), expected

    before, after, expected = asyncio.run(scenario())
    assert gap(before, expected) < 1e-6
    assert gap(after, aligner.embed(TEXTS, IMAGES)) < 1e-6
    assert (before.version, after.version) == (0, 7)
    assert gap(after, before) > 1e-2
    assert weight_files() == []


@pytest.mark.parametrize("kind", KINDS)
def test_hf_takes_texts_and_images_in_any_number(folders, kind: str):
    pool = HfPool(settings_of(folders[kind]), Squares(), read=read_weights)

    async def scenario() -> list[Embedded]:
        asked = [(TEXTS, IMAGES), (TEXTS, ()), ((), IMAGES), ((), ()), (TEXTS[:1], IMAGES[3:0:-1])]
        return [await pool.embed(*each) for each in asked]

    whole, texts, images, none, some = asyncio.run(scenario())
    assert np.abs(np.linalg.norm(whole.images, axis=1) - 1).max() < 1e-6
    np.testing.assert_allclose(texts.texts, whole.texts, atol=1e-6)
    np.testing.assert_allclose(images.images, whole.images, atol=1e-6)
    np.testing.assert_allclose(some.images, whole.images[3:0:-1], atol=1e-6)
    np.testing.assert_allclose(some.texts, whole.texts[:1], atol=1e-6)
    assert [len(side) for e in (texts, images, none) for side in (e.texts, e.images)] == [8, 0, 0, 11, 0, 0]


def test_hf_probe_is_the_learners(folders, aligners):
    pool, aligner = (
        HfPool(settings_of(folders["clip"]), Squares(), read=read_weights),
        aligners(folders["clip"]),
    )
    inputs = aligner.texts.ids(TEXTS[:2]), [[name] for name in IMAGES[:3]]
    found = asyncio.run(pool.probe(*inputs))
    np.testing.assert_allclose(found, aligner.probe(*inputs), atol=1e-6)


def test_hf_update_waits_for_an_embedding_and_embeddings_wait_for_an_update(folders, aligners):
    pool, aligner = (
        HfPool(settings_of(folders["clip"]), Squares(), read=read_weights),
        aligners(folders["clip"]),
    )
    old = aligner.embed(TEXTS, IMAGES)
    learn(aligner)
    asyncio.run(check_one_version_at_a_time(pool, aligner, old, version=1, tolerance=1e-6))


async def check_one_version_at_a_time(
    pool: Pool, aligner: Aligner, old: tuple[torch.Tensor, torch.Tensor], *, version: int, tolerance: float
) -> None:
    """The learner holds newer weights than the pool, whose embeddings are `old`."""
    many = IMAGES * 30
    before = (await pool.embed((), ())).version
    first = asyncio.create_task(pool.embed(TEXTS, many))
    while not pool._gate.locked():
        await asyncio.sleep(0)
    await pool.pause()
    assert first.done()
    second = asyncio.create_task(pool.embed(TEXTS, many))
    info = aligner.send(version)
    await pool.begin_update()
    await pool.update(info)
    done, _ = await asyncio.wait([second], timeout=0.3)
    assert not done
    await pool.finish_update(version)
    await pool.resume()
    aligner.release_weights()
    for task, number, (texts, images) in (
        (first, before, old),
        (second, version, aligner.embed(TEXTS, IMAGES)),
    ):
        found = await task
        assert found.version == number
        assert gap(found, (texts, torch.cat([images] * 30))) < tolerance


def test_hf_refuses_an_update_while_it_runs_and_one_that_lacks_a_tensor(folders, aligners):
    pool, aligner = (
        HfPool(settings_of(folders["clip"]), Squares(), read=read_weights),
        aligners(folders["clip"]),
    )
    info = dict(aligner.send(1))
    info["tensors"] = [t for t in info["tensors"] if t["name"] != "text_projection.weight"]

    async def scenario() -> None:
        with pytest.raises(EngineError, match="begin_update: the engine is running"):
            await pool.begin_update()
        await pool.pause()
        await pool.begin_update()
        with pytest.raises(SyncError, match=r"not received: \['text_projection\.weight'\]"):
            await pool.update(info)
        with pytest.raises(SyncError, match=r"finish_update\(1\) without an update"):
            await pool.finish_update(1)
        assert await pool.weight_version() == 0

    asyncio.run(scenario())
    aligner.release_weights()


@dataclass(frozen=True)
class Faulty:
    """A gallery that gives too few pictures, or none."""

    fault: str
    version: str = "f"

    def ids(self) -> Sequence[str]:
        return Squares().ids()

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        if self.fault == "absent":
            raise FileNotFoundError(2, "No such file", f"{ids[0]}.png")
        return Squares().load(ids[:-1])


FAULTS = {
    "absent": r"could not load one of \['red-dark-0'.*No such file",
    "few": "gave 10 pictures for 11 ids",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hf_refuses_pictures_that_are_not_there(folders, fault: str):
    pool = HfPool(settings_of(folders["clip"]), Faulty(fault), read=read_weights)
    with pytest.raises(DataError, match=FAULTS[fault]):
        asyncio.run(pool.embed((), IMAGES))


@slow
def test_vllm_embeds_as_hf_and_the_learner_before_and_after_an_update(live_pool, aligners):
    hf, aligner = (
        HfPool(settings_of(live_pool.folder), Squares(), read=read_weights),
        aligners(live_pool.folder),
    )

    async def compare(version: int) -> Embedded:
        found, expected = await live_pool.pool.embed(TEXTS, IMAGES), await hf.embed(TEXTS, IMAGES)
        assert found.version == expected.version == version
        assert await live_pool.pool.weight_version() == version
        assert gap(found, expected) < 1e-5
        assert gap(found, aligner.embed(TEXTS, IMAGES)) < 1e-5
        return found

    async def scenario() -> tuple[Embedded, Embedded]:
        before = await compare(0)
        learn(aligner)
        await send(aligner, [hf, live_pool.pool], 1)
        return before, await compare(1)

    before, after = live_pool.run(scenario())
    assert gap(after, before) > 1e-2
    assert weight_files() == []


@slow
def test_vllm_update_waits_for_an_embedding_and_embeddings_wait_for_an_update(live_pool, aligners):
    aligner = aligners(live_pool.folder)

    async def scenario() -> None:
        await send(aligner, [live_pool.pool], 20)
        old = aligner.embed(TEXTS, IMAGES)
        learn(aligner)
        await check_one_version_at_a_time(live_pool.pool, aligner, old, version=21, tolerance=1e-5)

    live_pool.run(scenario())


@slow
def test_vllm_takes_texts_and_images_in_any_number(live_pool):
    async def scenario() -> list[Embedded]:
        asked = [(TEXTS, IMAGES), (TEXTS, ()), ((), IMAGES), ((), ()), (TEXTS[:1], IMAGES[3:0:-1])]
        return [await live_pool.pool.embed(*each) for each in asked]

    whole, texts, images, none, some = live_pool.run(scenario())
    np.testing.assert_allclose(texts.texts, whole.texts, atol=1e-5)
    np.testing.assert_allclose(images.images, whole.images, atol=1e-5)
    np.testing.assert_allclose(some.images, whole.images[3:0:-1], atol=1e-5)
    assert [len(side) for e in (texts, images, none) for side in (e.texts, e.images)] == [8, 0, 0, 11, 0, 0]


@slow
def test_vllm_refuses_what_it_cannot_embed_and_goes_on(live_pool, monkeypatch):
    pool = live_pool.pool
    with pytest.raises(DataError, match="has 18 tokens but the model reads 16 at most"):
        live_pool.run(pool.embed([" ".join(["red"] * 16)], ()))
    for fault, says in FAULTS.items():
        monkeypatch.setattr(pool, "_gallery", Faulty(fault))
        with pytest.raises(DataError, match=says):
            live_pool.run(pool.embed((), IMAGES))
    monkeypatch.undo()
    assert len(live_pool.run(pool.embed(TEXTS, IMAGES)).images) == 11


@slow
def test_vllm_probe_is_embeddings_of_texts_then_images(live_pool):
    found = live_pool.run(live_pool.pool.embed(TEXTS[:2], IMAGES[:3]))
    ids = live_pool.pool._texts.ids(TEXTS[:2])
    probe = live_pool.run(live_pool.pool.probe(ids, [[name] for name in IMAGES[:3]]))
    np.testing.assert_allclose(probe, np.concatenate([found.texts, found.images]), atol=1e-6)
