"""The full lab's agent and its client, here instead of in the lab."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import full
from lab.full.client import Agent
from lab.full.errors import AgentError
from lab.patience import Patience

SOURCE = Path(full.__file__).parent / "files/l1-agent.py"
TOKEN = "word"
ENOUGH = 300.0


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Agent]:
    spec = importlib.util.spec_from_file_location("l1_agent", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "token", lambda: TOKEN)
    monkeypatch.setattr(module, "DIRECTORY", str(tmp_path))
    with module.Server(("127.0.0.1", 0), module.Request) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Agent(server.server_address[1], TOKEN)
        server.shutdown()
        thread.join()


def test_output_errors_and_status_come_back(agent: Agent) -> None:
    reply = agent.run("echo out; echo err >&2; exit 3", patience=Patience(ENOUGH))
    assert (reply.returncode, reply.stdout, reply.stderr) == (3, b"out\n", b"err\n")
    assert not reply.timed_out
    assert agent.wait(Patience(ENOUGH))


def test_much_input_for_a_command_that_is_slow_to_take_it(agent: Agent) -> None:
    data = bytes(range(256)) * 20_000
    reply = agent.run("sleep 1.2; cat", patience=Patience(ENOUGH), stdin=data)
    assert (reply.returncode, reply.stdout == data) == (0, True)


def test_what_hangs_is_ended_and_tells_what_it_had_said(agent: Agent, tmp_path: Path) -> None:
    reply = agent.run("echo begun; echo $$ > pid; sleep 1000", patience=Patience(1.5))
    assert reply.timed_out
    assert (reply.returncode, reply.stdout) == (-9, b"begun\n")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_who_does_not_know_the_word_is_told_nothing(agent: Agent) -> None:
    with pytest.raises(AgentError, match="there is none"):
        Agent(agent.port, "another").run("true", patience=Patience(ENOUGH))


def test_an_agent_that_is_not_there(agent: Agent) -> None:
    assert not Agent(1, TOKEN).wait(Patience(0.5))
