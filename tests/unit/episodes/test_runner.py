import asyncio

from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import SingleTurn
from rlhf.types import Completion, Message, Prompt, Sampling


class EchoEngine:
    """Answers each seed with that many copies of the last prompt token, then eos."""

    def __init__(self):
        self.requests = []

    async def generate(self, request):
        self.requests.append(request)
        answers = [(*[request.prompt_token_ids[-1]] * seed, 1) for seed in request.seeds]
        return [
            Completion(
                token_ids=ids, logprobs=(-1.0,) * len(ids), versions=(0,) * len(ids), finish_reason="stop"
            )
            for ids in answers
        ]


def test_one_request_becomes_one_trajectory_per_seed(characters):
    engine = EchoEngine()
    renderer = Renderer(model_folder=characters, template="{prompt}=")
    prompt = Prompt(id="p", messages=(Message(role="user", content="2+2"),))
    sampling = Sampling(max_tokens=8)
    trajectories = asyncio.run(SingleTurn(engine, renderer=renderer)(prompt, seeds=[3, 1], sampling=sampling))
    assert [request.prompt_token_ids for request in engine.requests] == [renderer.encode_prompt(prompt)]
    assert [trajectory.completion for trajectory in trajectories] == ["===", "="]
    assert [(t.sample_index, t.seed, t.num_sampled) for t in trajectories] == [(0, 3, 4), (1, 1, 2)]
    assert all(t.segments[0].token_ids[:4] == renderer.encode_prompt(prompt) for t in trajectories)
