"""A rule for image codes in the tiny vocabulary, and a model's distributions under it, token by token."""

from dataclasses import replace

import torch

from rlhf.image_codes import ImageCodes
from rlhf.interfaces import GenerateRequest
from rlhf.types import Sampling
from tests.tiny import EOS, PAD

RULE = ImageCodes(first_id=80, num_codes=12, begin_id=79, num_tokens=5, null_id=PAD, guidance=2.5)
UNGUIDED = replace(RULE, guidance=1.0)


def drawing_request(index=0, *, length=6, samples=6, is_begun=True, rule=RULE, **sampling):
    """Samples of a prompt of text, which ends with the token that begins an image where `is_begun`."""
    draw = torch.Generator().manual_seed(index)
    text = torch.randint(3, 79, (length,), generator=draw).tolist()
    options = {"max_tokens": 14, "stop_token_ids": (EOS,), "image_codes": rule} | sampling
    return GenerateRequest(
        prompt_token_ids=(*text, rule.begin_id) if is_begun else tuple(text),
        sampling=Sampling(**options),
        seeds=tuple(100 * index + i for i in range(samples)),
    )


def is_code_by_loop(ids, num_given, rule):
    """For each id after the first `num_given`, whether it is drawn as a code; those before are not."""
    left, kinds = 0, []
    for place, token in enumerate(ids):
        is_code = left > 0 and place >= num_given
        kinds.append(is_code)
        left = rule.num_tokens if not is_code and token == rule.begin_id else max(left - is_code, 0)
    return kinds


@torch.no_grad()
def distributions(model, ids, kinds, rule, *, temperature=1.0):
    """[T, V] in float64, one pass per token: what id t of a row is drawn from; nothing is cached or packed."""
    ids, found = list(ids), [torch.full((model.config.vocab_size,), torch.nan, dtype=torch.float64)]
    for place in range(1, len(ids)):
        before, of = ids[:place], kinds[:place]
        logits = model(torch.tensor([before])).logits[0, -1].double()
        if kinds[place] and rule.guidance != 1:
            null = [i if k or i == rule.begin_id else rule.null_id for i, k in zip(before, of, strict=True)]
            other = model(torch.tensor([null])).logits[0, -1].double()
            logits = torch.tensor([u + rule.guidance * (c - u) for c, u in zip(logits, other, strict=True)])
        weights = (logits / temperature).exp()
        for token in range(len(weights)):
            if (rule.first_id <= token < rule.first_id + rule.num_codes) != kinds[place]:
                weights[token] = 0
        found.append(weights / weights.sum())
    return torch.stack(found)
