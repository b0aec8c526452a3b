"""docs/sandbox.md says what the code does."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml

from rlhf.config.sandbox import SandboxConfig
from rlhf.sandbox.cell import environment
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Limits, Program, Status
from rlhf.sandbox.session import Session

PAGE = (Path(__file__).parents[3] / "docs/sandbox.md").read_text()


def test_page_names_every_tier_verdict_and_limit():
    assert all(f"| `{tier}` |" in PAGE for tier in TIERS)
    assert all(f"`{status}`" in PAGE for status in get_args(Status))
    written = re.search(r"`Limits\((.*?)\)`", PAGE)
    assert written
    assert written.group(1) == ", ".join(f"{f.name}={f.default:g}" for f in fields(Limits))
    assert len(environment("/work")) == 8


def test_page_shows_the_defaults_of_every_key():
    section = re.search(r"```yaml\n(sandbox:.*?)```", PAGE, re.DOTALL)
    assert section
    assert yaml.safe_load(section.group(1))["sandbox"] == SandboxConfig().model_dump()


def test_examples_of_the_page_hold():
    with Sandbox() as sandbox:
        done = sandbox.run(Program(code="print(input())", stdin=b"hello\n"), limits=Limits(cpu_s=2))
        assert (done.status, done.stdout) == ("exited", b"hello\n")
        with Session(sandbox, "python") as session:
            session.exec("x = 6 * 7")
            assert session.exec("x").stdout == b"42\n"
