import random

from rlhf.engines.routing import Router

BLOCK = 64


def prompt(start: int, length: int = 4 * BLOCK) -> tuple[int, ...]:
    return tuple(range(start, start + length))


def test_one_engine_gets_everything():
    router = Router(num_engines=1)
    assert [router.assign(prompt(i), tokens=10) for i in range(3)] == [0, 0, 0]
    assert router.loads == [30]


def test_unrelated_prompts_go_where_the_load_is_least():
    router = Router(num_engines=3)
    engines = [router.assign(prompt(1000 * i), tokens=100) for i in range(9)]
    assert engines == [0, 1, 2] * 3
    assert router.loads == [300, 300, 300]


def test_a_shared_prefix_goes_to_the_engine_that_holds_it():
    router = Router(num_engines=2)
    first = router.assign(prompt(0), tokens=100)
    other = router.assign(prompt(5000), tokens=100)
    assert first != other
    assert router.assign((*prompt(0), 7, 8, 9), tokens=100) == first
    assert router.assign((*prompt(5000), 7), tokens=100) == other


def test_the_longest_prefix_wins():
    router = Router(num_engines=2)
    short = prompt(0, BLOCK)
    router.assign((*short, *prompt(9000)), tokens=100)
    router.assign(prompt(4000), tokens=100)
    long = (*short, *prompt(7000))
    router.loads = [100, 0]
    assert router.assign(prompt(3000), tokens=100) == 1
    router._remember(1, [hash(long[: end + BLOCK]) for end in range(0, len(long), BLOCK)])
    assert router.assign(long, tokens=100) == 1


def test_a_prefix_does_not_overload_its_engine():
    router = Router(num_engines=2)
    engines = [router.assign(prompt(0), tokens=100) for _ in range(40)]
    assert set(engines) == {0, 1}
    assert max(router.loads) <= router.slack * sum(router.loads) / 2 + 100


def test_load_stays_even_for_mixed_traffic():
    rng = random.Random(0)
    router = Router(num_engines=4)
    running: list[tuple[int, int]] = []
    for _ in range(2000):
        tokens = rng.randint(50, 150)
        running.append((router.assign(prompt(1000 * rng.randint(0, 30)), tokens=tokens), tokens))
        if len(running) > 64:
            engine, tokens = running.pop(rng.randrange(len(running)))
            router.finish(engine, tokens=tokens)
        assert max(router.loads) <= router.slack * sum(router.loads) / 4 + 300
    for engine, tokens in running:
        router.finish(engine, tokens=tokens)
    assert router.loads == [0, 0, 0, 0]


def test_forgotten_prefixes_no_longer_attract():
    router = Router(num_engines=2)
    router.assign(prompt(0), tokens=100)
    router.forget()
    assert router.assign(prompt(0), tokens=100) == 1


def test_memory_of_prefixes_is_bounded():
    router = Router(num_engines=2, capacity=8)
    for index in range(50):
        router.assign(prompt(1000 * index), tokens=1)
    assert all(len(known) <= 8 for known in router._known)


def test_routing_repeats():
    def run() -> list[int]:
        rng, router = random.Random(3), Router(num_engines=3)
        return [router.assign(prompt(100 * rng.randint(0, 9)), tokens=rng.randint(1, 99)) for _ in range(200)]

    assert run() == run()
