"""The state directory: root believes what is in it, so nobody else may have put it there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.control.scenes import HOST, WEB
from virtirq.control import cycle
from virtirq.control import journal as journal_module
from virtirq.control.journal import locked_journal
from virtirq.control.state import StateDirectory
from virtirq.errors import EXIT_PERMISSION, DeploymentError
from virtirq.policy.config import Config


def refused(directory: Path) -> str:
    with (
        pytest.raises(DeploymentError) as caught,
        locked_journal(directory, "b"),
    ):
        pytest.fail("it was trusted")
    assert caught.value.exit_code == EXIT_PERMISSION
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_where_others_may_write_nothing_is_trusted(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    assert "others than its owner can write" in refused(state)
    assert list(state.iterdir()) == []


def test_what_is_made_is_ones_own(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with locked_journal(tmp_path / "state", "b"):
            pass
    finally:
        os.umask(umask)
    assert (tmp_path / "state").stat().st_mode & 0o7777 == 0o755
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "state").iterdir()} == {0o600}


@pytest.mark.parametrize("owner", [0, 4242])
def test_another_users_directory(
    tmp_path: Path, owner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert f"belongs to user {tmp_path.stat().st_uid}" in refused(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "elsewhere"
    if there:
        target.mkdir()
    (tmp_path / "state").symlink_to(target)
    assert "is a link" in refused(tmp_path / "state")
    assert not there or list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["journal.jsonl", "lock"])
@pytest.mark.parametrize("what", ["fifo", "link", "dangling", "directory", "device"])
def test_only_regular_files(tmp_path: Path, name: str, what: str) -> None:
    """None of them hangs, either."""
    state = tmp_path / "state"
    state.mkdir()
    victim = tmp_path / "victim"
    match what:
        case "fifo":
            os.mkfifo(state / name)
        case "link":
            victim.write_text("precious")
            (state / name).symlink_to(victim)
        case "dangling":
            (state / name).symlink_to(victim)
        case "directory":
            (state / name).mkdir()
        case "device":
            (state / name).symlink_to("/dev/null")
    text = refused(state)
    assert text.endswith(("is a link, and is not followed", "not a regular file"))
    assert victim.exists() == (what == "link")
    if what == "link":
        assert victim.read_text() == "precious"


def test_a_journal_that_is_not_ones_own_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def closed(path: str, *args: int, **more: int) -> int:
        if path == "journal.jsonl":
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", closed)
    assert "Permission denied" in refused(tmp_path)


@pytest.mark.parametrize("what", ["fifo", "link"])
def test_what_stands_in_the_way_of_a_shorter_journal_is_left_there(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_BYTES", 0)
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    cycle.restore(fs, [WEB], tmp_path, ())
    victim = tmp_path / "victim"
    victim.touch()
    if what == "fifo":
        os.mkfifo(tmp_path / "journal.new")
    else:
        (tmp_path / "journal.new").symlink_to(victim)
    with locked_journal(tmp_path, HOST.boot_id) as journal:
        assert journal.remembered() == ()
    assert victim.read_bytes() == b""


def test_the_command_says_so_with_its_exit_code(tmp_path: Path) -> None:
    root = HOST.write(tmp_path / "host", scratch=True)
    state = root / "run/virtirq"
    state.mkdir(parents=True)
    state.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "virtirq", "-s", str(root), "restore"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (EXIT_PERMISSION, "")
    first, second = done.stderr.splitlines()
    assert first == f"virtirq: error: {state}: others than its owner can write there"
    assert second.startswith("hint: ")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with locked_journal(tmp_path / "good", "b"):
        pass
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/journal.jsonl").write_text("x")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in "bad", "open":
        with pytest.raises(Exception, match=name), locked_journal(tmp_path / name, "b"):
            pass
    StateDirectory(tmp_path).close()
    assert len(os.listdir("/proc/self/fd")) == before
