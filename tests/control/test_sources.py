"""Which guests a run is about: those of libvirt, of files, and of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.guests.processes.test_find import DPDK, QEMU, UUID, WEB, A, C, Scene
from tests.needs import unprivileged
from virtirq.control import sources
from virtirq.control.sources import Found, find_guests, load_config, load_guests, open_fs
from virtirq.errors import (
    AccessError,
    ConfigError,
    ConnectionFailedError,
    DependencyError,
    DeploymentError,
    UsageError,
    VirtirqError,
)
from virtirq.guests.libvirt.connection import LiveGuests
from virtirq.model import NATIVE, Gap, Guest, GuestDevice

FAILED = ConnectionFailedError("cannot connect to libvirt at x:///y: no", hint="start it")
TOLD = Gap("guests", "cannot connect to libvirt at x:///y: no (start it)")
DENIED = Gap("/proc/*/fd/*", f"Permission denied: whose {A} is cannot be told")
OF_LIBVIRT = Guest("db", "libvirt", uuid="u-db", pid=9, devices=(GuestDevice(C, "hostdev"),))
ALL = Scene([QEMU, DPDK], opened=[A, C])
NOBODY = Scene([], opened=[])
DOMAIN = (
    "<domain type='kvm'><name>desk</name><vcpu>1</vcpu><os><type>hvm</type></os><devices/></domain>"
)


class Libvirt:
    """What libvirt says, or why it says nothing; `asked` is the URI and the configured one."""

    def __init__(self) -> None:
        self.guests: Sequence[Guest] = ()
        self.gaps: tuple[Gap, ...] = ()
        self.error: VirtirqError | None = None
        self.complete = True
        self.asked: list[tuple[str | None, str]] = []

    @contextmanager
    def connected(self, uri: str | None, default: str) -> Iterator[SimpleNamespace]:
        self.asked.append((uri, default))
        if self.error is not None:
            raise self.error
        yield SimpleNamespace(
            guests=lambda _: LiveGuests(tuple(self.guests), self.gaps, complete=self.complete)
        )


CLAIM = replace(WEB, owner=107)


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    made = Libvirt()
    monkeypatch.setattr(sources, "_this_machines", made.connected)
    return made


def names(found: Found) -> list[tuple[str, str]]:
    return [(guest.name, guest.source) for guest in found.guests]


def test_both_tell_of_guests(libvirt: Libvirt) -> None:
    libvirt.guests = [OF_LIBVIRT]
    found = find_guests(ALL.fs(), [], None, default="d:///")
    assert names(found) == [("db", "libvirt"), ("web", "vfio-process")]
    assert (found.gaps, found.claimed) == ((), ())
    assert libvirt.asked == [(None, "d:///")]


def test_libvirts_word_is_the_better_one(libvirt: Libvirt) -> None:
    libvirt.guests = [replace(WEB, source="libvirt"), OF_LIBVIRT]
    found = find_guests(ALL.fs(), [], None)
    assert names(found) == [("web", "libvirt"), ("db", "libvirt")]


def test_without_processes_none_is_read(libvirt: Libvirt) -> None:
    libvirt.guests = [OF_LIBVIRT]
    fs = ALL.fs()
    assert find_guests(fs, [], None, processes=False) == Found((OF_LIBVIRT,))
    assert not any(path.startswith("/proc") for _, path in fs.calls)


def test_gaps_of_both(libvirt: Libvirt) -> None:
    libvirt.gaps = (Gap("x", "makes no sense"),)
    scene = Scene([replace(QEMU, uid=107)], opened=[A], hidden=[100])
    found = find_guests(scene.fs(), [], None)
    assert found == Found((), (Gap("x", "makes no sense"), DENIED), (CLAIM,))


class TestLibvirtFails:
    @pytest.mark.parametrize("must", [False, True])
    @pytest.mark.parametrize("error", [FAILED, AccessError("x"), DependencyError("y")], ids=repr)
    def test_processes_are_found_all_the_same(
        self, libvirt: Libvirt, error: VirtirqError, *, must: bool
    ) -> None:
        libvirt.error = error
        found = find_guests(ALL.fs(), [], None, must=must)
        assert {guest.name for guest in found.guests} == {"web", "dpdk-testpmd-200"}
        (gap,) = found.gaps
        assert gap == TOLD or gap.error == str(error)

    def test_nobody_is_found(self, libvirt: Libvirt) -> None:
        libvirt.error = FAILED
        expected = Found((), (TOLD,), unread=str(FAILED), failed=FAILED)
        assert find_guests(NOBODY.fs(), [], None) == expected

    @pytest.mark.parametrize("processes", [False, True])
    def test_nobody_is_found_and_someone_must_be(
        self, libvirt: Libvirt, *, processes: bool
    ) -> None:
        libvirt.error = FAILED
        with pytest.raises(ConnectionFailedError) as caught:
            find_guests(NOBODY.fs(), [], None, must=True, processes=processes)
        told = "no process here holds a device for a guest, and libvirt: " if processes else ""
        assert (str(caught.value), caught.value.hint) == (f"{told}{FAILED}", FAILED.hint)

    def test_guests_are_there_and_not_looked_for(self, libvirt: Libvirt) -> None:
        libvirt.error = FAILED
        with pytest.raises(ConnectionFailedError):
            find_guests(ALL.fs(), [], None, must=True, processes=False)

    def test_a_claim_alone_is_nobody(self, libvirt: Libvirt) -> None:
        libvirt.error = FAILED
        scene = Scene([replace(QEMU, uid=107)], opened=[A], hidden=[100])
        found = find_guests(scene.fs(), [], None)
        assert found == Found((), (TOLD, DENIED), (CLAIM,), unread=str(FAILED), failed=FAILED)
        with pytest.raises(ConnectionFailedError):
            find_guests(scene.fs(), [], None, must=True)

    @pytest.mark.parametrize("must", [False, True])
    def test_one_that_was_named_is_an_error(self, libvirt: Libvirt, *, must: bool) -> None:
        libvirt.error = FAILED
        fs = ALL.fs()
        with pytest.raises(ConnectionFailedError):
            find_guests(fs, [], "x:///y", must=must)

    def test_nobody_runs_and_libvirt_says_so(self, libvirt: Libvirt) -> None:
        assert find_guests(NOBODY.fs(), [], None, must=True) == Found(())


class TestFilesAndRecordings:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        made = tmp_path / "desk.xml"
        made.write_text(DOMAIN)
        return made

    def test_files_alone(self, libvirt: Libvirt, file: Path) -> None:
        """What is asked about is what the files say, whoever runs."""
        found = find_guests(ALL.fs(), [file], None)
        assert [guest.name for guest in found.guests] == ["desk"]
        assert libvirt.asked == []

    def test_files_and_those_that_run(self, libvirt: Libvirt, file: Path) -> None:
        libvirt.guests = [OF_LIBVIRT]
        found = find_guests(ALL.fs(), [file], "x:///y")
        assert [guest.name for guest in found.guests] == ["desk", "db", "web"]

    def test_a_guest_of_a_file_and_of_libvirt(self, libvirt: Libvirt, file: Path) -> None:
        libvirt.guests = [replace(OF_LIBVIRT, name="desk")]
        with pytest.raises(UsageError, match="there is already a guest with the name desk"):
            find_guests(ALL.fs(), [file], "x:///y")

    def test_a_process_called_like_a_guest_of_a_file(self, libvirt: Libvirt, file: Path) -> None:
        """Anybody may call a process so: that is no error."""
        words = [word.replace("guest=web", "guest=desk") for word in QEMU.words]
        scene = Scene([replace(QEMU, words=words)], opened=[A])
        found = find_guests(scene.fs(), [file], "x:///y")
        assert [(guest.name, guest.uuid) for guest in found.guests][1:] == [
            ("desk (pid 100)", UUID)
        ]

    def test_a_recording(self, libvirt: Libvirt) -> None:
        fs = ALL.fs()
        fs.recording = "a recording"
        assert find_guests(fs, [], None, must=True) == Found(())
        assert libvirt.asked == []
        with pytest.raises(UsageError, match="libvirt has no part in it"):
            find_guests(fs, [], "x:///y")


def test_who_has_no_libvirt_is_not_told_that_guests_are_missing(libvirt: Libvirt) -> None:
    libvirt.error = DependencyError("the Python module libvirt is not installed")
    found = find_guests(ALL.fs(), [], None)
    assert (found.unread, found.failed) == ("", libvirt.error)


def test_a_guest_that_libvirt_has_and_nobody_understands(libvirt: Libvirt) -> None:
    libvirt.gaps, libvirt.complete = (Gap("x", "makes no sense"),), False
    found = find_guests(ALL.fs(), [], None)
    assert found.unread == "not all that libvirt has are understood: makes no sense"


class TestConfigurationDirectory:
    def test_what_is_in_it_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "virtirq.toml").write_text('default = "local"\nrestore_on_stop = true\n')
        (tmp_path / "conf.d/10.toml").write_text('default = "native"\n')
        config = load_config(tmp_path)
        assert (config.default, config.restore_on_stop) == (NATIVE, True)
        assert load_config(tmp_path / "virtirq.toml").default != NATIVE

    def test_a_user_of_this_host(self, tmp_path: Path) -> None:
        file = tmp_path / "x.toml"
        file.write_text('[[rule]]\nowner = "root"\ndirective = "native"\n')
        (rule,) = load_config(file).rules
        assert rule.owner == 0
        file.write_text('[[rule]]\nowner = "nobody-at-all"\ndirective = "native"\n')
        with pytest.raises(ConfigError, match="there is no user nobody-at-all here"):
            load_config(file)

    def test_all_that_is_wrong_with_any_file(self, tmp_path: Path) -> None:
        """A file that is no text hides nothing of the others, nor does a user that is not there."""
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d/1.toml").write_bytes(b"\xff")
        (tmp_path / "conf.d/2.toml").write_text(
            'spread = 3\n[[rule]]\nowner = "nobody-at-all"\ndirective = "auto"\n'
        )
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path)
        assert [each.removeprefix(f"{tmp_path}/conf.d/") for each in caught.value.problems] == [
            "1.toml: not UTF-8 text: invalid start byte",
            '2.toml: spread: 3 is not a spread: "vector" or "mask"',
            "2.toml: rule[1].owner: there is no user nobody-at-all here",
        ]

    def test_one_without_any(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"holds neither virtirq\.toml nor conf\.d"):
            load_config(tmp_path)


class TestFilesThatMayNotBeRead:
    @pytest.fixture
    def closed(self, tmp_path: Path) -> Path:
        tmp_path.chmod(0o700)
        file = tmp_path / "closed"
        file.write_text("")
        file.chmod(0)
        return file

    @pytest.mark.parametrize(
        "read",
        [
            lambda file: load_config(file),
            lambda file: load_guests(NOBODY.fs(), [file]),
            lambda file: open_fs(file),
        ],
        ids=["config", "domain", "recording"],
    )
    def test_each_is_told_alike(self, closed: Path, read: Callable[[Path], object]) -> None:
        with unprivileged(), pytest.raises(DeploymentError) as caught:
            read(closed)
        assert "Permission denied" in str(caught.value)
        assert str(closed.parent) in str(caught.value)


def test_what_its_process_holds_is_a_known_guests(libvirt: Libvirt) -> None:
    libvirt.guests = [replace(WEB, source="libvirt", devices=())]
    (guest,) = find_guests(Scene([QEMU], opened=[A]).fs(), [], None).guests
    assert (guest.source, [each.address for each in guest.devices]) == ("libvirt", [A])
