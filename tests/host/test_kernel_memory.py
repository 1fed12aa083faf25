"""The two probes: how they are set, asked and taken away, in a tracefs that is made here.

With the kernel's own they run in the lab, tests/kernel/inside_routes.py.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.test_kvm_routes import Files
from tests.host.test_kvm_routes import kernel as kernel  # a fixture
from tests.host.test_probed_routes import AT, EVENTFD, IRQFD, KVMS, NAME
from virtirq.errors import UnavailableError
from virtirq.host import kernel_memory
from virtirq.host.kernel_memory import KernelMemory, Requested, probes
from virtirq.host.probed_routes import clear_probed_routes, open_probed_routes

WORDS: Final = 24
FIRST, LAST = 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000
HEAD: Final = "           <...>-1234    [002] 1041.771250: "
ASKED: Final = (
    f"{HEAD}asked: (hwirq_show+0x0/0x60) irq=50 cookie={EVENTFD:#x} first={FIRST:#x}"
    f' last={LAST:#x} name="{NAME}"\n'
)
READ: Final = HEAD + "read: (default_affinity_write+0x0/0x120) at={} to={} words={{{}}}\n"


LINES: Final = (
    b"""\
           <...>-129     [003]    106.432886: asked: (hwirq_show+0x0/0x60) irq=42 \
cookie=0xff11000008b80440 first=0xff11000000000000 last=0xffa0000000000000 \
name="vfio-msix[0](0000:01:00.0)"
""",
    b"""\
          python-129     [003]    106.749753: read: (default_affinity_write+0x0/0xe0) \
at=0xff10fffff49dcb88 to=irqfd_wakeup+0x0/0x1d0 [kvm] words={0xffa0000000385000,0x21,0x0,\
0xffffffffc03490b0,0xff11000008b80450,0xff11000008b80450,0x200000000,0xffffffffc03835f0,\
0x100fee00000,0x4041,0x0,0x0,0x0,0xff11000006d22d28,0x4,0xfffffffe0,0xff11000006d22280,\
0xff11000006d22280,0xffffffffc0348850,0x0,0x0,0x0,0x0,0xff11000008b80440}
""",
    b"""\
          python-129     [003]    106.623167: read: (default_affinity_write+0x0/0xe0) \
at=0xff10fffff683adc8 to=0x3 words={0x3,0x0,0xff11000006d22220,0xff11000006d22220}
""",
)
"""As Linux 6.1 has printed them, five-level page tables and all."""


class FakeKernel(KernelMemory):
    """Answers into the file that stands for the pipe, before the call returns, as kernels do."""

    def __init__(self, root: Path, words: int = WORDS) -> None:
        self.root = root
        self.asked = ASKED
        self.read_ = READ
        self.words = {IRQFD: [n << 56 | n for n in range(words)]}
        self.given: list[bytes] = []
        super().__init__(root, AT, words)

    def _tell(self, text: str) -> None:
        with (self.root / "instances/virtirq_routes/trace_pipe").open("ab") as pipe:
            pipe.write(text.encode())

    def _show(self, irq: int) -> None:
        if irq == 404:
            raise FileNotFoundError
        self._tell(self.asked if irq == 50 else "")

    def _hand(self, data: bytes) -> None:
        self.given.append(data)
        at, _ = struct.unpack("<8xQQ", data)
        words = self.words.get((at + self._key) % 2**64, [0] * WORDS)
        self._tell(self.read_.format(hex(at), KVMS, ",".join(map(hex, words))))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracefs: making the instance makes its files, removing it takes them away."""
    mkdir, rmdir = Path.mkdir, Path.rmdir
    instance = tmp_path / "instances/virtirq_routes"
    (tmp_path / "instances").mkdir()
    (tmp_path / "kprobe_events").touch()
    (tmp_path / "mask").touch()
    monkeypatch.setattr(kernel_memory, "_MASK", str(tmp_path / "mask"))

    def make(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path == instance:
            for name in ("asked", "read"):
                os.makedirs(path / "events/virtirq_routes" / name)
                for file in ("filter", "enable"):
                    (path / "events/virtirq_routes" / name / file).touch()
                os.makedirs(tmp_path / "events/virtirq_routes" / name, exist_ok=True)
            os.mkdir(path / "options")
            for file in ("buffer_size_kb", "options/irq-info", "trace_pipe"):
                (path / file).touch()

    def remove(path: Path) -> None:
        if path == instance and path.is_dir():
            path.rename(tmp_path / f"removed{len(list(tmp_path.iterdir()))}")
        else:
            rmdir(path)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", remove)
    return tmp_path


@pytest.fixture
def memory(root: Path) -> Iterator[FakeKernel]:
    with closing(FakeKernel(root)) as memory:
        yield memory


def filters(root: Path) -> list[str]:
    """The last one of each."""
    events = root / "instances/virtirq_routes/events/virtirq_routes"
    return [(events / name / "filter").read_text().strip() for name in ("asked", "read")]


def test_lines_of_a_kernel() -> None:
    asked = kernel_memory._ASKED.search(LINES[0].rstrip())
    assert asked is not None
    assert asked.groups()[0] == b"42"
    assert asked.groups()[1:] == (
        *(b"ff11000008b80440", b"ff11000000000000", b"ffa0000000000000"),
        b"vfio-msix[0](0000:01:00.0)",
    )
    found = [kernel_memory._READ.search(line.rstrip()) for line in LINES]
    assert [each and each[2] for each in found] == [None, b"irqfd_wakeup+0x0/0x1d0 [kvm]", b"0x3"]
    assert found[1] is not None
    words = [int(each, 16) for each in found[1][3].split(b",")]
    data = struct.pack("<24Q", *words)
    assert int.from_bytes(data[AT["low"] :][:4], "little") == 0xFEE0_0000
    assert int.from_bytes(data[AT["high"] :][:4], "little") == 0x100
    assert int.from_bytes(data[AT["eventfd"] :][:8], "little") == 0xFF11_0000_08B8_0440


def test_what_the_probes_are_on_and_what_they_tell() -> None:
    assert probes(AT, 24, 77777) == {
        "asked": "hwirq_show irq=-244($arg1):u32 cookie=+8(-176($arg1)):x64"
        " first=@page_offset_base:x64 last=@vmalloc_base:x64 name=+0(+80(-176($arg1))):string",
        "read": "default_affinity_write at=+u8($arg2):x64 to=+77777(+u16($arg2)):symbol"
        " words=+77777(+u8($arg2)):x64[24]",
    }


def test_an_interrupt_of_vfios(memory: FakeKernel) -> None:
    assert memory.requested(50) == Requested(NAME, EVENTFD)
    assert memory.requested(51) is None
    assert memory.requested(404) is None


def test_a_piece_of_memory(memory: FakeKernel) -> None:
    memory.requested(50)
    piece = memory.read(IRQFD, IRQFD + 24)
    assert piece is not None
    assert (piece.at, piece.symbol) == (IRQFD, KVMS)
    assert piece.data == struct.pack(f"<{WORDS}Q", *memory.words[IRQFD])
    assert (piece.number(8, 8), piece.number(16, 4)) == (1 << 56 | 1, 2)


def test_what_is_written_is_no_mask_and_the_kernel_alone_knows_the_rest(
    memory: FakeKernel, root: Path
) -> None:
    memory.requested(50)
    memory.read(IRQFD)
    (data,) = memory.given
    assert re.match(rb"![a-z]{7}", data), "neither hexadecimal digits nor commas: refused"
    defined = (root / "kprobe_events").read_text()
    assert f"+{IRQFD - struct.unpack('<8xQQ', data)[0]}(+u8($arg2))" in defined
    keys = {re.findall(r"to=\+(\d+)", (root / "kprobe_events").read_text())[-1]}
    for _ in range(4):
        with closing(FakeKernel(root)):
            keys |= set(re.findall(r"to=\+(\d+)", (root / "kprobe_events").read_text())[-1:])
    assert len(keys) > 1


@pytest.mark.parametrize(
    "address",
    [0, 8, FIRST - 8, LAST, LAST + 8, IRQFD + 1, IRQFD - 2**63, 2**64, -8],
)
def test_nothing_is_read_but_memory(memory: FakeKernel, address: int) -> None:
    memory.requested(50)
    assert memory.read(address) is None
    assert memory.read(IRQFD, address) is None
    assert memory.given == []


def test_before_it_is_known_where_memory_is_nothing_is_read(memory: FakeKernel) -> None:
    assert memory.read(IRQFD) is None


def test_only_who_asks_is_heard(memory: FakeKernel, root: Path) -> None:
    assert filters(root) == ["common_pid == 0", "common_pid == 0"]
    memory.requested(50)
    own = threading.get_native_id()
    assert filters(root) == [
        f'common_pid == {own} && name ~ "vfio-msi*"',
        f"common_pid == {own}",
    ]


def test_another_thread_may_ask(memory: FakeKernel, root: Path) -> None:
    memory.requested(50)
    others: list[int] = []

    def ask() -> None:
        others.append(threading.get_native_id())
        for path in root.glob("instances/*/events/*/*/filter"):
            os.truncate(path, 0)  # as the kernel does, where one id is shorter than the other
        memory.requested(50)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert filters(root)[1].endswith(f"common_pid == {others[0]}")


ODD: Final = [
    "",
    "\n\n",
    "CPU:2 [LOST 3 EVENTS]\n",
    "nonsense \xff\n",
    ASKED.replace("irq=50", "irq=51"),
    ASKED.replace(NAME, "ahci[0000:00:17.0]"),
    ASKED.replace("irq=50", "irq=(fault)"),
    READ.format("0x1", KVMS, "0x0"),
    READ.format("0x1", KVMS, ""),
]


@pytest.mark.parametrize("odd", ODD)
def test_what_else_is_told_is_passed_over(memory: FakeKernel, odd: str) -> None:
    memory.asked, memory.read_ = odd + ASKED, odd.replace("{", "{{").replace("}", "}}") + READ
    assert memory.requested(50) == Requested(NAME, EVENTFD)
    assert memory.read(IRQFD) is not None


@pytest.mark.parametrize("odd", ODD)
def test_without_an_answer(memory: FakeKernel, odd: str) -> None:
    memory.requested(50)
    memory.asked, memory.read_ = odd, odd.replace("{", "{{").replace("}", "}}")
    assert memory.requested(50) is None
    with pytest.raises(UnavailableError, match="do not answer"):
        memory.read(IRQFD)


@given(st.one_of(st.text(), st.text("0123456789abcdefx,{} =:()+ \n[]at").map(HEAD.__add__)))
def test_any_text_is_an_answer_or_none(text: str) -> None:
    for line in text.encode().splitlines():
        for answer in (kernel_memory._ASKED.search(line), kernel_memory._READ.search(line)):
            assert answer is None or all(answer.groups())


def test_all_is_taken_away(root: Path) -> None:
    memory = FakeKernel(root)
    memory.close()
    memory.close()
    assert not (root / "instances/virtirq_routes").exists()
    assert (
        (root / "kprobe_events")
        .read_text()
        .endswith("-:virtirq_routes/asked\n-:virtirq_routes/read\n" * 2)
    )
    with pytest.raises(UnavailableError):
        memory.requested(50)


def test_what_a_killed_one_has_left_is_taken_away_first(root: Path) -> None:
    FakeKernel(root)
    before = (root / "kprobe_events").read_text()
    with closing(FakeKernel(root)):
        text = (root / "kprobe_events").read_text().removeprefix(before)
    assert [line[:24] for line in text.splitlines()] == [
        *("-:virtirq_routes/asked"[:24], "-:virtirq_routes/read"),
        *("p:virtirq_routes/asked hwirq_show"[:24], "p:virtirq_routes/read default"[:24]),
    ]


def test_what_a_killed_one_has_left_goes_with_the_next_daemon_though_that_had_no_use_for_it(
    root: Path,
) -> None:
    FakeKernel(root)
    clear_probed_routes((str(root), "/nowhere"))
    assert not (root / "instances/virtirq_routes").exists()
    assert (
        (root / "kprobe_events")
        .read_text()
        .endswith("\n-:virtirq_routes/asked\n-:virtirq_routes/read\n")
    )
    clear_probed_routes(("/nowhere",))


def test_a_kernel_that_takes_no_probes(root: Path, kernel: Path) -> None:
    (root / "kprobe_events").unlink()
    with pytest.raises(UnavailableError) as raised:
        open_probed_routes(Files(), (str(root),))
    said = f"{root}/kprobe_events: p:virtirq_routes/asked hwirq_show: No such file or directory"
    assert str(raised.value) == said
    assert not (root / "instances/virtirq_routes").exists()


def test_without_tracefs(tmp_path: Path, kernel: Path) -> None:
    with pytest.raises(UnavailableError, match="tracefs is not to be had"):
        open_probed_routes(Files(), (f"{tmp_path}/nowhere",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recording": "x.tar"}, "a recording has no kernel that could be asked"),
        ({"pid": "pid:[4026532836]"}, "process ids are not the host's here"),
        ({"lockdown": "none [confidentiality]"}, "the kernel lets nobody read its memory"),
    ],
)
def test_what_is_not_permitted_is_said(
    root: Path, kernel: Path, changed: dict[str, str | None], message: str
) -> None:
    with pytest.raises(UnavailableError, match=message):
        open_probed_routes(Files(**changed), (str(root),))


def test_no_capability_is_needed(root: Path, kernel: Path) -> None:
    with closing(open_probed_routes(Files(status="CapEff:\t0000000000000000"), (str(root),))):
        assert "hwirq_show" in (root / "kprobe_events").read_text()


def test_a_mask_that_may_not_be_written_to(
    root: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *rest: int) -> int:
        if str(path) == kernel_memory._MASK:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(str(path), flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnavailableError, match="mask: Read-only file system") as raised:
        open_probed_routes(Files(), (str(root),))
    assert "read-only here" in (raised.value.hint or "")
