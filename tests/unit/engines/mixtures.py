"""What Hugging Face's own router and a slow top-p and top-k say about an engine's completions."""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Sampling
from tests.tiny import EOS

TIE = 1e-5
"""Router probabilities nearer than this may be ordered either way by differently shaped products."""


def ask(prompt: Sequence[int], *, samples: int = 1, seed: int = 0, **sampling: Any) -> GenerateRequest:
    options = {"max_tokens": 24, "stop_token_ids": (EOS,)} | sampling
    seeds = tuple(range(seed, seed + samples))
    return GenerateRequest(prompt_token_ids=tuple(prompt), sampling=Sampling(**options), seeds=seeds)


def random_prompt(index: int, length: int) -> list[int]:
    return random.Random(index).choices(range(3, 90), k=length)


async def collect(engine: Any, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
    finished = {index: group async for index, group in engine.generate_many(requests)}
    return [finished[index] for index in range(len(requests))]


def router_choices(model: nn.Module, ids: Sequence[int]) -> dict[int, list[tuple[set[int], set[int]]]]:
    """Layer with experts -> [token] of (experts surely chosen, possibly chosen), from its gate's probabilities."""
    found: dict[int, torch.Tensor] = {}

    def remember(layer: int) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(layer, output[0].softmax(-1))

    gates = {int(n.split(".")[2]): m for n, m in model.named_modules() if n.endswith("mlp.gate")}
    hooks = [gate.register_forward_hook(remember(layer)) for layer, gate in gates.items()]
    with torch.inference_mode():
        model(torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    return {layer: [_sets(row, gates[layer].top_k) for row in p.tolist()] for layer, p in found.items()}


def _sets(probabilities: list[float], k: int) -> tuple[set[int], set[int]]:
    ordered = sorted(probabilities, reverse=True)
    surely = {e for e, p in enumerate(probabilities) if p > ordered[k] + TIE}
    return surely, {e for e, p in enumerate(probabilities) if p > ordered[k - 1] - TIE}


def assert_routed_as(model: nn.Module, request: GenerateRequest, completion: Completion) -> None:
    whole = [*request.prompt_token_ids, *completion.token_ids]
    assert completion.routing is not None
    assert len(completion.routing) == len(whole)
    assert (completion.routing[-1] == -1).all()
    expected = router_choices(model, whole)
    for layer in range(completion.routing.shape[1]):
        chosen = completion.routing[:-1, layer]
        if layer not in expected:
            assert (chosen == -1).all()
            continue
        for experts, (surely, possibly) in zip(chosen.tolist(), expected[layer], strict=False):
            assert len(set(experts)) == len(experts)
            assert surely <= set(experts) <= possibly


def slow_kept(logits: list[float], sampling: Sampling) -> tuple[set[int], set[int]]:
    """(ids surely kept, ids possibly kept), in float64 by the definitions of top-k, then top-p on the rest.

    All that tie with the k-th are kept; of those that tie where top-p is reached, any may be.
    """
    z = [value / sampling.temperature for value in logits]
    ordered = sorted(z, reverse=True)
    cut = 0 < sampling.top_k < len(z)
    kth, next_best = (ordered[sampling.top_k - 1], ordered[sampling.top_k]) if cut else (-math.inf, -math.inf)
    rest = [j for j in range(len(z)) if z[j] >= kth - TIE]
    total = sum(math.exp(z[j]) for j in rest)
    surely, possibly = set(), set()
    for j in rest:
        # A token stays while the mass before it has not reached top-p; the first always does.
        at_least = sum(math.exp(z[i]) for i in rest if z[i] > z[j] + TIE) / total
        at_most = sum(math.exp(z[i]) for i in rest if z[i] >= z[j] - TIE and i != j) / total
        if at_least < sampling.top_p + TIE:
            possibly.add(j)
        if at_most < sampling.top_p - TIE and (z[j] > next_best + TIE or kth == next_best):
            surely.add(j)
    return surely, possibly


def assert_kept_as(model: nn.Module, request: GenerateRequest, completion: Completion) -> None:
    """Kept sets are those of the definition, and the log-probability is z[y]/T - logsumexp over them."""
    whole = [*request.prompt_token_ids, *completion.token_ids]
    with torch.inference_mode():
        logits = model(torch.tensor([whole])).logits[0].double()
    assert completion.kept is not None
    for t, (token, kept) in enumerate(zip(completion.token_ids, completion.kept, strict=True)):
        z = logits[len(request.prompt_token_ids) + t - 1]
        surely, possibly = slow_kept(z.tolist(), request.sampling)
        if len(kept) == 0:
            assert len(possibly) > request.sampling.kept_limit
            continue
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert surely <= set(kept.tolist()) <= possibly
        assert len(kept) <= request.sampling.kept_limit
        assert token in kept
        scaled = z / request.sampling.temperature
        expected = float(scaled[token] - scaled[kept.tolist()].logsumexp(0))
        assert abs(completion.logprobs[t] - expected) < 1e-4
