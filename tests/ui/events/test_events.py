"""``virtirq events``, with a journalctl that tells what a test says, and a daemon's socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.test_daemon_status import ME
from tests.ui.events.test_journald import WHOLE
from tests.ui.schema import valid
from virtirq.control.daemon_status import SOCKET, DaemonStatus
from virtirq.control.log_entry import LogEntry
from virtirq.ui.cli import main
from virtirq.ui.verbs import events

NOW = 1_800_000_000.0


def line(at: float, message: str, pid: int = 812, **fields: str) -> str:
    told = {f"VIRTIRQ_{name.upper()}": value for name, value in fields.items()}
    rest = {key: value for key, value in WHOLE.items() if not key.startswith("VIRTIRQ_")}
    stamp = {"__REALTIME_TIMESTAMP": str(int(at * 1e6)), "MESSAGE": message, "_PID": str(pid)}
    return json.dumps({**rest, **stamp, **told})


class Host:
    """`asked` has how journalctl was called; what it prints is in files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir()
        self.journal()

    def journal(self, *lines: str, error: str = "", code: int = 0, more: str = "") -> None:
        """`more` is logged while it is followed, and told before what was there already."""
        (self.root / "more").write_text(f"{more}\n")
        (self.root / "out").write_text("".join(f"{each}\n" for each in lines))
        (self.root / "err").write_text(error)
        program = self.root / "journalctl"
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {self.root}/asked\n'
            f'case "$*" in *--follow*) cat {self.root}/more; esac\n'
            f"cat {self.root}/out; cat {self.root}/err >&2; exit {code}\n"
        )
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return (self.root / "asked").read_text().splitlines()

    @contextmanager
    def daemon(self, *recent: LogEntry) -> Iterator[None]:
        status = DaemonStatus(812, 1.0, "0", "", "", recent=recent)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.state / SOCKET))
            listening.listen()

            def answer() -> None:
                with listening.accept()[0] as asker:
                    asker.sendall(json.dumps(status.as_json()).encode())

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            yield
            thread.join(60)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(events, "STATE_DIR", made.state)
    return made


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["events", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_journal_and_the_daemon(there: Host, capsys: pytest.CaptureFixture[str]) -> None:
    there.journal(line(NOW, "moved", guest="web", reason="new: wrong-cpu", irq="65"))
    both = LogEntry(NOW + 0.01, 6, "moved", {"guest": "web"})
    alone = LogEntry(NOW + 5, 4, "refused", {"guest": "db"})
    with there.daemon(both, alone):
        code, out, err = run(capsys, "-J")
    assert (code, err) == (0, "")
    told = valid(out, "events")
    assert [each["message"] for each in told["events"]] == ["moved", "refused"]
    assert told["events"][0]["irq"] == 65
    assert told["gaps"] == []
    (asked,) = there.asked
    assert set(asked.split()) >= {"_UID=0", "SYSLOG_IDENTIFIER=virtirq", "--boot", "--lines=1001"}


def test_some_guests_since_then(there: Host, capsys: pytest.CaptureFixture[str]) -> None:
    there.journal(
        line(NOW - 9, "old", guest="web"), line(NOW, "a", guest="web"), line(NOW, "b", guest="db")
    )
    out = run(capsys, "w*", "--since", f"@{int(NOW)}")[1]
    assert [each.split()[-1] for each in out.splitlines()] == ["WHAT", "a"]
    assert f"--since=@{int(NOW)}" in there.asked[0]
    assert "--lines" not in there.asked[0]


def test_the_last_of_them(there: Host, capsys: pytest.CaptureFixture[str]) -> None:
    there.journal(*(line(NOW + n, f"no {n}") for n in range(4)))
    out = run(capsys, "-n", "2")[1].splitlines()
    assert [each[-4:] for each in out[1:3]] == ["no 2", "no 3"]
    assert out[3] == "the last 2; --since or --lines show more"
    assert "--lines=3" in there.asked[0]


def test_nothing_and_why(there: Host, capsys: pytest.CaptureFixture[str]) -> None:
    none = "no daemon runs: what guests do is not followed, nor who moves interrupts\n"
    nothing = "nothing since the boot is known to the daemon or the journal\n"
    assert run(capsys)[1] == nothing + none
    with there.daemon():
        assert run(capsys)[1] == nothing
    hint = "Hint: You are currently not seeing messages from other users and the system.\n"
    there.journal("-- No entries --", error=hint)
    assert run(capsys, "mail")[1] == (
        f"nothing of mail since the boot is known to the daemon or the journal\n{none}"
        "not read: journald: not all of it is shown to this user\n"
    )
    there.journal(
        error=f"{hint}No journal files were opened due to insufficient permissions.\n", code=1
    )
    assert "not read: journald: not all of it is shown to this user\n" in run(capsys)[1]
    there.journal(error="Failed to open files: no\n", code=1)
    assert "not read: journald: Failed to open files: no\n" in run(capsys)[1]


def test_without_journalctl(
    there: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with there.daemon(LogEntry(NOW, 6, "moved")):
        told = valid(run(capsys, "-J")[1], "events")
    assert [each["message"] for each in told["events"]] == ["moved"]
    assert told["gaps"] == [{"path": "journald", "error": "journalctl: No such file or directory"}]


def test_following_the_journal(there: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """A journal that ends, as one does not, ends it."""
    again = line(NOW + 1, "again", guest="web")
    there.journal(line(NOW, "moved", guest="web"), line(NOW, "begun"), more=again)
    _, out, _ = run(capsys, "-f", "web")
    assert [each.split()[-1] for each in out.splitlines()] == ["WHAT", "moved", "again"]
    assert "--follow --no-tail --since=@" in there.asked[1], "nothing that came meanwhile is lost"
    out = run(capsys, "-fJ", "web")[1]
    assert [valid(each, "event")["event"]["message"] for each in out.splitlines()] == [
        "moved",
        "again",
    ]


def test_following_a_daemon_whose_log_goes_elsewhere(
    there: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 3:
            raise KeyboardInterrupt

    first = LogEntry(NOW, 6, "first", {"guest": "web"})
    second = LogEntry(NOW + 1, 6, "second", {"guest": "web"})
    told = iter([[first], [first, second], None, [second]])

    def ask(_: Path) -> DaemonStatus | None:
        recent = next(told)
        return None if recent is None else DaemonStatus(9, 1.0, "0", "", "", recent=tuple(recent))

    monkeypatch.setattr("virtirq.control.daemon_status.ask", ask)
    monkeypatch.setattr("virtirq.ui.verbs.events.time.sleep", pause)
    code, out, _ = run(capsys, "-f", "web")
    assert code == 0
    assert [each.split()[-1] for each in out.splitlines()] == ["WHAT", "first", "second"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--since soon", "--since: 'soon' is no time"),
        ("-n 0", "'0' is not a number above 0"),
        ("-s / ", "events are this machine's daemon's"),
    ],
)
def test_wrong_inputs(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "")
    assert told in err


def test_a_daemon_that_remembers_nothing_is_one_all_the_same() -> None:
    """As one of before."""
    data = ME.as_json()
    del data["recent"]
    assert DaemonStatus.from_json(data) == ME
