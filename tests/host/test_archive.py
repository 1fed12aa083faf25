"""Tar archives: all that programs write, and what only an ill-meaning one does."""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostmaker import MadeHost, passthrough
from virtirq.errors import RecordingError
from virtirq.host import tree
from virtirq.host.archive import DIRECTORY, FILE, HARD_LINK, LINK, OTHER, Member, members
from virtirq.host.scratch import open_host

END = b"\0" * 1024
NEGATIVE, HUGE = b"\xff" * 8, b"\x80" + b"\x7f" * 7


def read(data: bytes) -> list[Member]:
    return list(members(io.BytesIO(data), max_file=1 << 20, max_size=1 << 30))


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    mode: bytes = b"0000644\0",
    size: bytes = b"00000000000\0",
    link: bytes = b"",
) -> bytes:
    made = bytearray(512)
    fields = {0: name, 100: mode, 124: size, 156: kind, 157: link, 257: b"ustar\x0000"}
    for place, field in fields.items():
        made[place : place + len(field)] = field
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def pax(**fields: object) -> bytes:
    """A pax header; ``__`` in a key is a point."""
    body = b""
    for name, value in fields.items():
        key = name.replace("__", ".").encode()
        text = value if isinstance(value, bytes) else str(value).encode()
        record = b" %b=%b\n" % (key, text)
        size = next(
            n for n in range(len(record), len(record) + 9) if n == len(str(n)) + len(record)
        )
        body += b"%d%b" % (size, record)
    return header(b"pax", b"x", size=b"%011o\0" % len(body)) + padded(body)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_it_reads_what_others_write(form: int) -> None:
    names = [
        "proc/a",
        "sys/" + "d" * 40 + "/" + "n" * 90,
        "sys/caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    ]
    if form != tarfile.USTAR_FORMAT:
        names.append("sys/" + "x" * 300)
    buffer, expected = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in names:
            made = tarfile.TarInfo(name)
            data = name.encode() * 50
            made.size, made.mode = len(data), 0o444
            tar.addfile(made, io.BytesIO(data))
            expected.append(Member(name, FILE, 0o444, "", len(data), data))
        kinds = {
            tarfile.DIRTYPE: DIRECTORY, tarfile.SYMTYPE: LINK, tarfile.LNKTYPE: HARD_LINK,
            tarfile.FIFOTYPE: OTHER, tarfile.BLKTYPE: OTHER,
        }  # fmt: skip
        for kind, what in kinds.items():
            made = tarfile.TarInfo("sys/it")
            made.type, made.mode = kind, 0o755
            made.linkname = "y" * (90 if form == tarfile.USTAR_FORMAT else 200)
            tar.addfile(made)
            expected.append(Member("sys/it", what, 0o755, made.linkname, 0))
    found = [each._replace(name=each.name.rstrip("/")) for each in read(buffer.getvalue())]
    assert found == expected


def test_a_folder_of_the_oldest_form() -> None:
    assert [each.kind for each in read(header(b"proc/", b"\0") + END)] == [DIRECTORY]


def test_a_large_number_in_binary() -> None:
    data = b"x" * 600
    size = b"\x80" + len(data).to_bytes(11, "big")
    (only,) = read(header(b"proc/a", size=size) + padded(data) + END)
    assert only.data == data


def test_only_so_much_of_a_file() -> None:
    data = header(b"proc/a", size=b"%011o\0" % 2000) + padded(b"x" * 2000) + header(b"b") + END
    first, second = members(io.BytesIO(data), max_file=10, max_size=1 << 20)
    assert (first.data, first.size, second.name) == (b"x" * 10, 2000, "b")


CRAFTED = {
    "mode-negative-dir": header(b"proc", b"5", mode=NEGATIVE),
    "mode-negative-file": header(b"proc/x", mode=NEGATIVE),
    "size-negative": header(b"proc/a", size=b"\xff" * 12),
    "size-huge": header(b"proc/a", size=b"\x80" + b"\x7f" * 11),
    "size-words": header(b"proc/a", size=b"0000000000x\0"),
    "size-9": header(b"proc/a", size=b"00000000009\0"),
    "size-neg-pax": pax(size=-512) + header(b"proc/a"),
    "size-huge-pax": pax(size=1 << 70) + header(b"proc/a"),
    "size-digits-pax": pax(size="9" * 5000) + header(b"proc/a"),
    "pax-sparse": pax(GNU__sparse__map="0,1,2", GNU__sparse__realsize=1 << 60) + header(b"proc/a"),
    "pax-sparse-1": pax(GNU__sparse__major=1, GNU__sparse__minor=0) + header(b"proc/a"),
    "sparse": header(b"proc/a", b"S"),
    "pax-large": header(b"pax", b"x", size=b"%011o\0" % (1 << 30)),
    "name-large": header(b"name", b"L", size=b"%011o\0" % (1 << 30)),
    "pax-malformed": header(b"pax", b"x", size=b"%011o\0" % 3) + padded(b"abc") + header(b"a"),
    "pax-short": header(b"pax", b"x", size=b"%011o\0" % 9) + padded(b"0 path=a\n") + header(b"a"),
    "pax-long": header(b"pax", b"x", size=b"%011o\0" % 9) + padded(b"99 path=\n") + header(b"a"),
    "sum": header(b"proc/a").replace(b"proc", b"sys/"),
    "cut": header(b"proc/a", size=b"%011o\0" % 2000) + b"x" * 700,
    "cut-header": header(b"proc/a")[:156] + b"0" + b"x" * 99,
    "empty": b"",
    "zeros": END,
}


@pytest.mark.parametrize("data", CRAFTED.values(), ids=CRAFTED)
def test_what_is_crafted_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "crafted.tar").write_bytes(data + END if data[-1:] != b"x" else data)
    with pytest.raises(RecordingError) as raised:
        open_host(tmp_path / "crafted.tar")
    assert len(str(raised.value).splitlines()) == 1


ODD = {
    "mode-huge-dir": header(b"proc", b"5", mode=HUGE),
    "mode-huge-file": header(b"proc/irq/1/smp_affinity_list", mode=HUGE),
    "mtime-infinite": pax(mtime="inf", size=0) + header(b"proc/a"),
    "pax-path-nul": pax(path=b"proc/\0x") + header(b"proc/a"),
    "pax-binary": pax(hdrcharset="BINARY", path=b"proc/\xff\xfe") + header(b"proc/a"),
    "name-not-utf8": header(b"proc/\xff\xfe"),
    "link-not-utf8": header(b"proc/irq", b"2", link=b"\xff\xfe"),
    "root": header(b"/", size=b"%011o\0" % 5) + padded(b"hello") + header(b"proc", b"5"),
    "hard-root": header(b"a") + header(b"/", b"1", link=b"a") + header(b"proc", b"5"),
    "hard-chain": header(b"proc/a", b"1", link=b"proc/b") + header(b"proc/b", b"5"),
    "file-then-child": header(b"proc") + header(b"proc/irq/1/smp_affinity_list"),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_what_is_odd_is_a_tree_of_modes_that_there_are(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.tar").write_bytes(data + END)
    fs = open_host(tmp_path / "odd.tar")
    todo = ["/"]
    while todo:
        path = todo.pop()
        for name in fs.listdir(path):
            each = f"{path.rstrip('/')}/{name}"
            with suppress(FileNotFoundError):  # a link to nowhere
                assert stat.S_IMODE(fs.mode(each)) <= 0o7777
            if fs.isdir(each):
                todo.append(each)


class TestSmallOnesThatAreLarge:
    """They are refused before they have cost much."""

    def packed(self, archive: Path, count: int, depth: int) -> Path:
        with lzma.open(archive, "wb", preset=1) as file:
            file.write(header(b"proc", b"5"))
            for number in range(count):
                file.write(header(b"/".join([b"%x" % number] + [b"a"] * depth), b"2", link=b"x"))
            file.write(END)
        return archive

    def test_many_members(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tree, "_FREE_MEMBERS", 1000)
        with lzma.open(tmp_path / "many.tar.xz", "wb", preset=1) as file:
            file.write(header(b"proc", b"5") + header(b"sys", b"2", link=b"x") * 30_000 + END)
        archive = tmp_path / "many.tar.xz"
        assert archive.stat().st_size < 20_000
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(archive)

    def test_folders_that_are_only_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree, "_FREE_MEMBERS", 1000)
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(self.packed(tmp_path / "deep.tar.xz", 1000, 40))

    def test_nothing_but_zeros(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tree, "_FREE_BYTES", 1 << 20)
        monkeypatch.setattr(tree, "_MAX_RATIO", 100)
        with lzma.open(tmp_path / "zeros.tar.xz", "wb", preset=1) as file:
            file.write(header(b"proc/a", size=b"%011o\0" % (1 << 23)) + b"\0" * (1 << 23) + END)
        with pytest.raises(RecordingError, match="larger than any host"):
            open_host(tmp_path / "zeros.tar.xz")

    def test_the_most_regular_host_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree, "_FREE_MEMBERS", 100)
        monkeypatch.setattr(tree, "_FREE_BYTES", 0)
        host = MadeHost(online="0-63", devices=(passthrough("0000:82:00.0", vectors=1500),))
        for suffix in (".tar.xz", ".tar.gz", ".tar.bz2"):
            assert open_host(host.pack(tmp_path / f"host{suffix}")).isdir("/proc/irq/1599")
