"""Recorded trees: directories and archives, hostile ones among them."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostmaker import MadeHost, MadeInterrupt, passthrough
from virtirq.errors import DeploymentError, RecordingError
from virtirq.host import paths, tree
from virtirq.host.fs import HostFs, Reader
from virtirq.host.scratch import open_host
from virtirq.host.topology import read_topology
from virtirq.host.tree import RECORDING, ArchiveFs, DirectoryFs, TreeFs

HOST = MadeHost(
    online="0-3",
    devices=(passthrough("0000:82:00.0", vectors=2),),
    interrupts=(MadeInterrupt(9, ("acpi",)),),
    foreign=True,
)
SUFFIXES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
FORMS = ("directory", "in a folder", *SUFFIXES, "folder.tar.xz")


def made(host: MadeHost, form: str, where: Path) -> Path:
    """The host in one of the forms that --sysroot takes."""
    if form == "directory":
        return host.write(where / "host")
    if form == "in a folder":
        host.write(where / "host" / "32em64t-2n8c")
        return where / "host"
    if form == "folder.tar.xz":
        return host.pack(where / "host.tar.xz", top="32em64t-2n8c/")
    return host.pack(where / f"host{form}")


@pytest.mark.parametrize("symlinked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_alike(form: str, symlinked: bool, tmp_path: Path) -> None:
    host = replace(HOST, symlinked=symlinked)
    fs = open_host(made(host, form, tmp_path))
    assert isinstance(fs, TreeFs)
    assert str(tmp_path) in (fs.recording or "")
    assert not fs.writable
    memory = host.fs()
    for path in (paths.CPU_ONLINE.at(), paths.IRQ_AFFINITY.at(9), paths.PCI_VENDOR.at(NIC)):
        assert fs.read(path) == memory.read(path)
        assert fs.mode(path) == memory.mode(path)
    assert fs.readlink(paths.PCI_DRIVER.at(NIC)) == memory.readlink(paths.PCI_DRIVER.at(NIC))
    for path in ("/proc/irq", "/sys", paths.PCI_DIR, f"{paths.PCI_DIR}/{NIC}/msi_irqs"):
        assert sorted(fs.listdir(path)) == sorted(memory.listdir(path))
        assert fs.isdir(path)
    assert all(fs.covers(kind) == memory.covers(kind) for kind in paths.MANIFEST)
    with pytest.raises(OSError, match="Read-only"):
        fs.write(paths.IRQ_AFFINITY.at(9), "0")


NIC = "0000:82:00.0"


@pytest.mark.parametrize("form", ["directory", ".tar"])
class TestErrorsAreTheKernels:
    def fs(self, form: str, where: Path) -> HostFs:
        return open_host(made(HOST, form, where))

    @pytest.mark.parametrize("path", ["/proc/irq/8/smp_affinity_list", "/nowhere", "/sys/x/y/z"])
    def test_missing(self, form: str, path: str, tmp_path: Path) -> None:
        fs = self.fs(form, tmp_path)
        for call in (fs.read, fs.listdir, fs.readlink, fs.mode):
            with pytest.raises(FileNotFoundError) as raised:
                call(path)
            assert raised.value.filename == path
        assert not fs.isdir(path)

    def test_wrong_kind(self, form: str, tmp_path: Path) -> None:
        fs = self.fs(form, tmp_path)
        with pytest.raises(IsADirectoryError):
            fs.read("/proc/irq")
        with pytest.raises(NotADirectoryError):
            fs.listdir(paths.CPU_ONLINE.at())
        with pytest.raises(OSError, match="Invalid argument"):
            fs.readlink(paths.CPU_ONLINE.at())
        with pytest.raises(FileNotFoundError):
            fs.read(paths.CPU_ONLINE.at() + "/x")


# Links that want out. Outside, `secret` waits under the same names.
ESCAPES = {
    "absolute": "{outside}/secret",
    "dots": "../../../../../../../../../../../../{outside}/secret",
    "dots only": "../../../../../../../../../../../..",
    "root": "/",
    "through proc": "/proc/self/root{outside}/secret",
}


@pytest.mark.parametrize("form", ["directory", ".tar"])
@pytest.mark.parametrize("link", ESCAPES.values(), ids=ESCAPES)
def test_links_never_lead_out(form: str, link: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    link = link.format(outside=outside)
    host = replace(
        HOST,
        links={
            "/sys/file": link,
            "/sys/dir": os.path.dirname(link) or "/",
            "/sys/devices/system/cpu/isolated": link,
        },
    )
    fs = open_host(made(host, form, tmp_path))
    for path in ("/sys/file", "/sys/dir/secret", "/sys/dir/../secret", "/sys/file/secret"):
        with pytest.raises(OSError, match=r"No such|Is a directory"):
            fs.read(path)
    for path in ("/sys/file", "/sys/dir"):
        if fs.isdir(path):
            assert set(fs.listdir(path)) <= {"proc", "sys"}, "the root that is shown is the tree's"
    assert read_topology(Reader(fs)).isolated == HOST_ISOLATED


HOST_ISOLATED = read_topology(Reader(HOST.fs())).isolated


@pytest.mark.parametrize("form", ["directory", ".tar"])
def test_links_inside_are_followed(form: str, tmp_path: Path) -> None:
    host = replace(
        HOST,
        links={
            "/sys/absolute": "/sys/devices/system/cpu/online",
            "/sys/up": "../../../sys/./devices//system/cpu/online",
            "/sys/chain": "up",
            "/sys/cpus": "devices/system/cpu",
        },
    )
    fs = open_host(made(host, form, tmp_path))
    for path in (
        "/sys/absolute",
        "/sys/up",
        "/sys/chain",
        "/sys/cpus/online",
        "/sys/cpus/./online",
    ):
        assert fs.read(path) == "0-3"
    assert fs.readlink("/sys/chain") == "up"
    assert fs.readlink("/sys/cpus/../../../chain") == "up"


@pytest.mark.parametrize("form", ["directory", ".tar"])
@pytest.mark.parametrize(
    "links",
    [
        {"/sys/loop": "loop"},
        {"/sys/loop": "/sys/other", "/sys/other": "loop"},
        {"/sys/loop": "loop/loop"},
        {"/sys/loop": "../sys/loop/x"},
    ],
)
def test_loops_end(form: str, links: dict[str, str], tmp_path: Path) -> None:
    fs = open_host(made(replace(HOST, links=links), form, tmp_path))
    for path in ("/sys/loop", "/sys/loop/x"):
        with pytest.raises(OSError, match="Too many levels") as raised:
            fs.read(path)
        assert raised.value.errno == errno.ELOOP
        assert not fs.isdir(path)


def test_the_top_folder_is_no_way_out(tmp_path: Path) -> None:
    """A link at the top of a directory is not taken for the folder that holds the host."""
    HOST.write(tmp_path / "real")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "host").symlink_to(tmp_path / "real")
    with pytest.raises(RecordingError, match="neither proc nor sys"):
        open_host(tmp_path / "given")


def test_the_description_is_no_way_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    described = {"format": 1, "patterns": [], "errors": {"/proc/irq/9/smp_affinity_list": 5}}
    (outside / "recording.json").write_text(json.dumps(described))
    for name, link in (("one", "virtirq"), ("two", "virtirq/recording.json")):
        root = HOST.write(tmp_path / name)
        (root / link).parent.mkdir(exist_ok=True)
        target = outside if link == "virtirq" else outside / "recording.json"
        (root / link).symlink_to(target)
        fs = open_host(root)
        assert fs.read("/proc/irq/9/smp_affinity_list") == "0-3"
        assert fs.covers(paths.IRQ_AFFINITY)


def test_names_in_archives_stay_inside(tmp_path: Path) -> None:
    """As chroot(2) has it, the root's parent is the root."""
    archive = packed(tmp_path, {"../../sys/up": b"1", "/proc/absolute": b"2", "./sys/./dot": b"3"})
    fs = open_host(archive)
    assert [fs.read(path) for path in ("/sys/up", "/proc/absolute", "/sys/dot")] == ["1", "2", "3"]
    assert not list(tmp_path.parent.glob("sys"))


def packed(where: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    archive = where / "made.tar"
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in more:
            tar.addfile(member)
    return archive


def member(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def test_hard_links_devices_and_pipes(tmp_path: Path) -> None:
    archive = packed(
        tmp_path,
        {"sys/file": b"content\n"},
        member("sys/hard", tarfile.LNKTYPE, "sys/file"),
        member("sys/again", tarfile.LNKTYPE, "/sys/hard"),
        member("sys/nothing", tarfile.LNKTYPE, "../../etc/passwd"),
        member("sys/pipe", tarfile.FIFOTYPE),
        member("sys/disk", tarfile.BLKTYPE),
    )
    fs = open_host(archive)
    assert fs.read("/sys/hard") == fs.read("/sys/again") == "content"
    assert sorted(fs.listdir("/sys")) == ["again", "file", "hard"]


def test_pipes_in_directories_are_not_waited_for(tmp_path: Path) -> None:
    root = HOST.write(tmp_path / "host")
    os.mkfifo(root / "sys" / "pipe")
    (root / "virtirq").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        open_host(root).read("/sys/pipe")
    os.mkfifo(root / "virtirq" / "recording.json")
    with pytest.raises(RecordingError, match="not a file"):
        open_host(root).read("/proc/irq/9/smp_affinity_list")


class TestNoHost:
    @pytest.mark.parametrize("content", [b"", b"hello\n", b"\0" * 10240, b"\x28\xb5\x2f\xfdjunk"])
    def test_a_file_of_something_else(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(RecordingError) as raised:
            open_host(tmp_path / "file")
        assert "\n" not in str(raised.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="no such"):
            open_host(tmp_path / "none")
        (tmp_path / "dangling").symlink_to("none")
        with pytest.raises(RecordingError, match="no such"):
            open_host(tmp_path / "dangling")
        with pytest.raises(RecordingError, match="no such"):
            open_host(Path("/dev/null"))

    def test_neither_proc_nor_sys(self, tmp_path: Path) -> None:
        (tmp_path / "host").mkdir()
        (tmp_path / "host" / "etc").mkdir()
        (tmp_path / "host" / "file").touch()
        with pytest.raises(RecordingError, match="neither proc nor sys") as raised:
            open_host(tmp_path / "host")
        assert "virtirq record" in (raised.value.hint or "")
        with pytest.raises(RecordingError, match="neither proc nor sys"):
            open_host(packed(tmp_path, {"etc/passwd": b"x"}))

    def test_no_zstd(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = HOST.pack(tmp_path / "host.tar.zst")
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(RecordingError, match="Zstandard") as raised:
            open_host(archive)
        assert "install zstd" in (raised.value.hint or "")

    def test_a_directory_that_may_not_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = HOST.write(tmp_path / "host")

        def refuse(path: str) -> os.stat_result:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

        with monkeypatch.context() as patched:
            patched.setattr("os.lstat", refuse)
            with pytest.raises(DeploymentError, match="Permission denied"):
                open_host(root)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_archives_are_refused(suffix: str, tmp_path: Path) -> None:
    """Whatever was flipped or cut off: a host is read or the error says that it cannot be."""
    whole = HOST.pack(tmp_path / f"whole{suffix}").read_bytes()
    dice = random.Random(suffix)
    refused = []
    damaged = tmp_path / f"damaged{suffix}"
    for _ in range(12 if suffix.endswith("zst") else 60):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 3, 20))):
            content[dice.randrange(len(content))] = dice.randrange(256)
        if dice.random() < 0.3:
            content = content[: dice.randrange(len(content))]
        damaged.write_bytes(content)
        try:
            open_host(damaged)
        except RecordingError as error:
            refused.append(str(error))
    assert refused
    assert all(len(told.splitlines()) == 1 for told in refused)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_an_archive_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    archive = HOST.pack(tmp_path / f"host{suffix}")
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(RecordingError):
        open_host(archive)


class TestBombs:
    """Small archives that would be large when unpacked; the limits are lowered to be met soon."""

    @pytest.fixture(autouse=True)
    def low(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tree, "_MAX_BYTES", 1 << 20)
        monkeypatch.setattr(tree, "_MAX_MEMBERS", 1000)
        monkeypatch.setattr(tree, "_MAX_FILE", 1 << 16)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_bytes(self, suffix: str, tmp_path: Path) -> None:
        host = replace(HOST, files={f"/sys/{n}": "0" * 65536 for n in range(17)})
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(host.pack(tmp_path / f"bomb{suffix}"))

    def test_bytes_of_what_is_skipped(self, tmp_path: Path) -> None:
        archive = packed(tmp_path, {"sys/x": b""}, member("sys/pad", b"Z", size=1 << 40))
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(archive)

    def test_members(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(packed(tmp_path, {f"sys/{n}": b"" for n in range(1002)}))

    def test_the_same_member_again_and_again(self, tmp_path: Path) -> None:
        same = [member("sys/x", tarfile.DIRTYPE)] * 1002
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(packed(tmp_path, {}, *same))

    def test_folders_in_folders(self, tmp_path: Path) -> None:
        deep = {f"sys/{n}/" + "x/" * 1000: b"" for n in range(3)}
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(packed(tmp_path, deep))

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
    def test_names(self, kind: bytes, tmp_path: Path) -> None:
        long = "9" * 5000
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(packed(tmp_path, {"sys/x": b""}, member(f"sys/{long}", kind, "x")))
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(packed(tmp_path, {"sys/x": b""}, member("sys/y", tarfile.SYMTYPE, long)))

    def test_a_large_file_is_cut(self, tmp_path: Path) -> None:
        host = replace(HOST, files={"/sys/large": "x" * 100_000})
        for form in ("directory", ".tar"):
            assert len(open_host(made(host, form, tmp_path)).read("/sys/large")) == 65536


def described(**told: object) -> MadeHost:
    return replace(HOST, files={RECORDING: json.dumps({"format": 1, **told})})


class TestDescription:
    def test_it_says_what_was_recorded(self) -> None:
        fs = described(patterns=[paths.KVM_AVIC.pattern]).fs()
        assert [path for path in paths.MANIFEST if fs.covers(path)] == [paths.KVM_AVIC]

    def test_without_patterns_the_tree_says(self) -> None:
        fs = described(errors={}).fs()
        assert fs.covers(paths.IRQ_AFFINITY)
        assert not fs.covers(paths.KVM_AVIC)

    @pytest.mark.parametrize("form", ["directory", ".tar"])
    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EPERM, errno.ENODEV])
    def test_errors_come_again(self, form: str, number: int, tmp_path: Path) -> None:
        path = paths.IRQ_COUNTS.at(9)
        fs = open_host(made(replace(HOST, foreign=False, errors={path: number}), form, tmp_path))
        for call in (fs.read, fs.listdir, fs.readlink, fs.mode):
            with pytest.raises(OSError, match=os.strerror(number)) as raised:
                call(path)
            assert (raised.value.errno, raised.value.filename) == (number, path)

    def test_another_format(self) -> None:
        with pytest.raises(RecordingError, match="format 2 is not 1") as raised:
            described(format=2).fs().read("/proc/irq/9/smp_affinity_list")
        assert raised.value.hint
        assert "a made host" in str(raised.value)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            "{}",
            "\0",
            "\N{SNOWMAN}",
            "[" * 100_000,
            '{"format": [[]]}',
            '{"format": 1, "patterns": 5}',
            '{"format": 1, "patterns": "abc"}',
            '{"format": 1, "patterns": [5]}',
            '{"format": 1, "errors": []}',
            '{"format": 1, "errors": {"/x": "5"}}',
            '{"format": 1, "errors": {"/x": 0}}',
            '{"format": 1, "errors": {"/x": -1}}',
            '{"format": 1, "errors": {"/x": 1e999}}',
            '{"format": 1, "errors": {"/x": [5]}}',
            '{"format": 1, "errors": {"/x": 99999999999999999999}}',
        ],
    )
    def test_malformed(self, text: str) -> None:
        fs = replace(HOST, files={RECORDING: text}).fs()
        calls: tuple[Callable[[], object], ...] = (
            lambda: fs.read("/proc/irq/9/smp_affinity_list"),
            lambda: fs.covers(paths.IRQ_AFFINITY),
            lambda: fs.mode("/proc"),
        )
        for call in calls:
            with pytest.raises(RecordingError) as raised:
                call()
            assert "\n" not in str(raised.value)
            assert len(str(raised.value)) < 300

    def test_it_is_a_directory(self, tmp_path: Path) -> None:
        fs = replace(HOST, files={f"{RECORDING}/x": ""}).fs()
        with pytest.raises(RecordingError, match="not a file"):
            fs.read("/proc/irq/9/smp_affinity_list")


class TestForeign:
    """A tree of someone else's: a kind of file counts as recorded when one of it is there."""

    @pytest.mark.parametrize("path", paths.MANIFEST, ids=lambda path: str(path.pattern))
    def test_a_kind_is_covered_by_one_of_it(self, path: paths.KernelPath, tmp_path: Path) -> None:
        names = ["some"] * path.pattern.count("{")
        bare = MadeHost(online=None, foreign=True, removed=("/proc/*", "/sys/*", "/run/*"))
        assert not bare.fs().covers(path)
        one = replace(bare, removed=(), nodes={}, possible=None, isolated=None, nohz_full=None)
        one = replace(one, boot_id=None, kernel=None, files={path.at(*names): "x"})
        # A pattern may be met by a directory, too: before v3.14 msi_irqs held directories.
        wider = {
            paths.PCI_MSI_MODE: {paths.PCI_MSI_IRQ},
            paths.KVM_VCPU_THREAD: {paths.KVM_VCPU_STATISTIC},
        }
        expected = {path} | wider.get(path, set())
        for form in ("directory", ".tar"):
            fs = open_host(made(one, form, tmp_path))
            assert {each for each in paths.MANIFEST if fs.covers(each)} == expected

    def test_a_link_counts_as_it_stands(self) -> None:
        fs = replace(HOST, symlinked=True).fs()
        assert fs.covers(paths.PCI_DRIVER)
        assert not fs.covers(paths.PCI_PHYSFN)


def test_directories_and_archives_of_many_kinds_have_modes(tmp_path: Path) -> None:
    host = replace(HOST, modes={paths.IRQ_AFFINITY.at(9): 0o444})
    for form in ("directory", ".tar.gz"):
        fs = open_host(made(host, form, tmp_path))
        assert not fs.mode(paths.IRQ_AFFINITY.at(9)) & 0o222
        assert fs.mode(paths.IRQ_AFFINITY.at(100)) & 0o200
        assert stat.S_ISDIR(fs.mode("/proc/irq"))
        assert stat.S_ISDIR(fs.mode("/"))


def test_classes(tmp_path: Path) -> None:
    assert isinstance(open_host(made(HOST, "directory", tmp_path)), DirectoryFs)
    assert isinstance(open_host(made(HOST, ".tar", tmp_path)), ArchiveFs)
