"""A server of OpenEnv, as its users write them: count to three. Run by the interpreter that has it, with a port."""

import sys
import time
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State
from openenv.core.env_server.http_server import create_fastapi_app


class Say(Action):
    number: int


class Heard(Observation):
    text: str


class Counter(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, **_: Any) -> Heard:
        self.last = 0
        return Heard(text=f"seed {seed}: count to 3")

    def step(self, action: Say, **_: Any) -> Heard:
        if action.number == 13:
            raise RuntimeError("unlucky")
        if action.number == 60:
            time.sleep(60)
        is_next = action.number == self.last + 1
        self.last += is_next
        return Heard(text=f"at {self.last}", reward=float(is_next), done=self.last == 3)

    @property
    def state(self) -> State:
        return State()


if __name__ == "__main__":
    application = create_fastapi_app(Counter, Say, Heard, max_concurrent_envs=int(sys.argv[2]))
    uvicorn.run(
        application, port=int(sys.argv[1]), log_level="warning", ws_ping_interval=0.2, ws_ping_timeout=1.5
    )
