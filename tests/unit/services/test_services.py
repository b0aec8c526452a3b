import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewards.endpoint import Endpoint, EndpointError
from rewards.reward_model import ServedScorer
from rlhf.errors import ServiceError
from rlhf.services.process import ServiceProcess
from rlhf.services.settings import ServiceSettings
from rlhf.types import Message, Prompt
from tests.tiny import CHAT, save_tiny, save_tiny_classifier

ROOT = Path(__file__).parents[3]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('users and assistants alone') }}{% endif %}"
)
ASKED = [("1+1=", "2"), ("say something long", "abc " * 20), ("", ""), ("a", "b"), ("c", "d")]


def settings_of(folder: Path, **changes: Any) -> ServiceSettings:
    settings = ServiceSettings(
        name="rm", model=str(folder), kind="reward_model", engine="hf", device="cpu", dtype="float32"
    )
    return replace(settings, **changes)


class Live:
    """A service and the loop that started it."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.loop = asyncio.new_event_loop()
        self.service = self.run(ServiceProcess.start(settings, limit_s=600))
        self.address: str = self.run(self.service.address())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 600))

    def close(self) -> None:
        self.run(self.service.close())
        self.loop.close()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_classifier(tmp_path_factory.mktemp("rm"))
    with (folder / "chat_template.jinja").open("a") as template:
        template.write(NO_SYSTEM)
    return folder


@pytest.fixture(scope="module")
def live(classifier: Path) -> Iterator[Live]:
    found = Live(settings_of(classifier, max_model_len=120))
    yield found
    found.close()


def prompt_of(question: str) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content=question),))


def test_served_scores_are_those_of_the_model(live: Live, classifier: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)

    def expected(question: str, answer: str) -> float:
        ids = tokenizer(f"{question}\n{answer}<eos>", return_tensors="pt", add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            return float(network(input_ids=ids).logits)

    async def served() -> list[float]:
        scorer = ServedScorer(endpoint={"url": live.address, "model": "rm"}, with_thought=True)
        return await asyncio.gather(*(scorer(answer, prompt_of(question)) for question, answer in ASKED))

    scores = live.run(served())
    assert scores == pytest.approx([expected(*one) for one in ASKED], abs=1e-4)
    assert len({round(score, 3) for score in scores}) == len(ASKED)


def test_a_score_is_activated_unless_it_is_asked_for_bare(live: Live) -> None:
    endpoint = Endpoint(url=live.address, model="rm")
    bare = live.run(endpoint.post("/classify", {"input": "1+1=2", "use_activation": False}))
    activated = live.run(endpoint.post("/classify", {"input": "1+1=2"}))
    (logit,), (share,) = bare["data"][0]["probs"], activated["data"][0]["probs"]
    assert share == pytest.approx(torch.tensor(logit).sigmoid().item())


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("other", {"input": "a"}, "here is served 'rm', not 'other'"),
        ("rm", {"input": "a" * 121}, '"it has 121 tokens, expected 1 to 120'),
        ("rm", {"input": ["a", "b"]}, "input is not a text"),
        ("rm", {"messages": []}, "cannot be made tokens"),
        (
            "rm",
            {"messages": [{"role": "system", "content": "a"}]},
            "TemplateError: users and assistants alone",
        ),
        ("rm", {"input": ""}, "it has 0 tokens"),
        ("rm", {"messages": "hello"}, "cannot be made tokens"),
        ("rm", {}, "cannot be made tokens"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_name(live: Live, model, body, said) -> None:
    with pytest.raises(EndpointError, match=said):
        live.run(Endpoint(url=live.address, model=model).post("/classify", body))


def test_a_service_that_cannot_start_shows_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    starting = ServiceProcess.start(settings_of(tmp_path), limit_s=600)
    with pytest.raises(
        ServiceError, match=r"(?s)service 'rm' \(hf, .*ended with status 1.*Error.*services\.rm"
    ):
        asyncio.run(starting)


@pytest.mark.slow
def test_a_service_that_is_late_is_ended(classifier: Path) -> None:
    with pytest.raises(ServiceError, match=r"did not answer at .*/health within 0\.1 s"):
        asyncio.run(ServiceProcess.start(settings_of(classifier), limit_s=0.1))


@pytest.mark.slow
def test_a_chat_model_answers_as_transformers_does(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    template = tmp_path / "elsewhere.jinja"
    template.write_text(CHAT)
    live = Live(settings_of(folder, kind="chat", chat_template=str(template)))
    try:
        endpoint = Endpoint(url=f"{live.address}/v1", model="rm")
        question = [{"role": "user", "content": "how are you"}]
        replies = [live.run(endpoint.chat(question, max_tokens=n)) for n in (8, 8)]
        drawn = live.run(
            endpoint.post("/chat/completions", {"messages": question, "max_tokens": 8, "temperature": 5.0})
        )
        for asked, said in (
            ({"max_tokens": "8"}, "max_tokens is '8', expected a number"),
            ({"max_tokens": 0}, "max_tokens is 0 and the question has .* none are left"),
        ):
            with pytest.raises(EndpointError, match=said):
                live.run(endpoint.post("/chat/completions", {"messages": question, **asked}))
    finally:
        live.close()
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("how are you\n", return_tensors="pt")["input_ids"]
    made = network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert [reply.text for reply in replies] == [tokenizer.decode(made, skip_special_tokens=True)] * 2
    assert drawn["choices"][0]["message"]["content"] != replies[0].text


@pytest.mark.slow
def test_a_service_ends_when_its_parent_is_killed(classifier: Path, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from rlhf.services.process import ServiceProcess\n"
        "from rlhf.services.settings import ServiceSettings\n"
        "settings = ServiceSettings(name='rm', model=sys.argv[1], kind='reward_model', engine='hf', device='cpu')\n"
        "async def main():\n"
        "    service = await ServiceProcess.start(settings, limit_s=600)\n"
        "    print(service.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, classifier], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        assert time.monotonic() < deadline, "the service outlived its parent"
        time.sleep(0.05)
