import pytest

from rlhf.cluster.placement import reserve, seat, seat_engines
from rlhf.config.schema import Recipe
from rlhf.errors import PlacementError


def recipe(kind: str, *, ranks: int = 1, engines: int = 1, **extra: dict) -> Recipe:
    values = {
        "name": "a",
        "model": {"path": "x"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}]},
        "placement": {"kind": kind},
        "learner": {"num_ranks": ranks, **extra.get("learner", {})},
        "engine": {"num_engines": engines, **extra.get("engine", {})},
    }
    return Recipe.model_validate(values)


def needs(seating) -> list[dict[str, float]]:
    """What the actors ask of each bundle, by bundle."""
    asked = [{"CPU": 0.0, "GPU": 0.0} for _ in seating.bundles]
    for who, places in ((seating.learner, seating.learner_bundle), (seating.engine, seating.engine_bundle)):
        for place in places:
            asked[place]["CPU"] += who.cpus
            asked[place]["GPU"] += who.gpus
    return asked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "chosen",
    [
        recipe("split"),
        recipe("split", ranks=4, engines=4),
        recipe("split", ranks=3, engines=2, learner={"threads": 4}, engine={"threads": 2}),
        recipe("split", ranks=2, engines=1, engine={"tensor_parallel": 2}),
        recipe("colocated"),
        recipe("colocated", ranks=2, engines=2),
        recipe("colocated", ranks=4, engines=4),
        recipe("colocated", ranks=1, engines=1, learner={"threads": 2}, engine={"threads": 2}),
    ],
    ids=str,
)
def test_every_actor_has_a_seat_and_no_bundle_is_overfull(chosen, device):
    seating = seat(chosen, device)
    assert len(seating.learner_bundle) == chosen.learner.num_ranks
    assert len(seating.engine_bundle) == chosen.engine.num_engines
    for asked, bundle in zip(needs(seating), seating.bundles, strict=True):
        assert asked["CPU"] <= bundle["CPU"] + 1e-9
        assert asked["GPU"] <= bundle.get("GPU", 0.0) + 1e-9


def test_split_gives_everyone_a_bundle_of_its_own():
    seating = seat(recipe("split", ranks=4, engines=4), "cuda")
    assert [dict(b) for b in seating.bundles] == [{"CPU": 1.0, "GPU": 1.0}] * 8
    assert not set(seating.learner_bundle) & set(seating.engine_bundle)


def test_split_on_cpu_asks_for_no_gpu():
    seating = seat(recipe("split", ranks=2, learner={"threads": 3}), "cpu")
    assert [dict(b) for b in seating.bundles] == [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0}]
    assert seating.learner.gpus == seating.engine.gpus == 0


def test_tensor_parallel_engine_holds_all_its_gpus_in_one_bundle():
    seating = seat(recipe("split", engines=2, engine={"tensor_parallel": 4}), "cuda")
    assert seating.engine.gpus == 4
    assert [b["GPU"] for b in seating.bundles] == [1.0, 4.0, 4.0]


def test_colocated_engine_sits_with_the_ranks_of_its_gpus():
    seating = seat(recipe("colocated", ranks=2, engines=2), "cuda")
    assert seating.learner_bundle == seating.engine_bundle == (0, 1)
    assert [b["GPU"] for b in seating.bundles] == [1.0, 1.0]


def test_colocated_learner_and_engine_share_cores():
    seating = seat(recipe("colocated", learner={"threads": 2}, engine={"threads": 2}), "cpu")
    assert [dict(b) for b in seating.bundles] == [{"CPU": 2.0}]


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_colocated_on_gpus_wants_one_rank_and_one_engine_each(tensor_parallel):
    asked = recipe("colocated", ranks=4, engines=2, engine={"tensor_parallel": tensor_parallel})
    with pytest.raises(
        PlacementError, match=r"learner\.num_ranks 4, engine\.num_engines 2.*expected one rank"
    ):
        seat(asked, "cuda")


def test_engines_alone_have_a_bundle_each_and_no_learner_beside_them():
    seating = seat_engines(
        recipe("colocated", engines=2, engine={"tensor_parallel": 2, "threads": 3}), "cuda"
    )
    assert needs(seating) == [dict(bundle) for bundle in seating.bundles] == [{"CPU": 3.0, "GPU": 2.0}] * 2
    assert seating.learner_bundle == ()


@pytest.mark.parametrize(
    ("seating", "names_the_learner"),
    [(seat(recipe("split"), "cpu"), True), (seat_engines(recipe("split"), "cpu"), False)],
)
def test_too_few_cores_name_the_keys_of_what_there_is(monkeypatch, seating, names_the_learner):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 0.5})
    with pytest.raises(
        PlacementError, match=r"needs \d cores .*engine\.threads.* but there are 0\.5"
    ) as caught:
        reserve(seating, limit_s=1)
    assert ("learner" in str(caught.value)) == names_the_learner
