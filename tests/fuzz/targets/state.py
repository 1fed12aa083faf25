"""Files that virtirq reads back, archives that people send, and what daemons answer."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from tests.fuzz.engine import LARGEST, Feed, lines, need, target
from tests.hostmaker import BOOT_ID, MadeHost, passthrough
from virtirq.control.counters import MALFORMED, Counters
from virtirq.control.daemon_status import DaemonStatus, Writer
from virtirq.control.irqbalance import _added, _Process, ban_command, fitting, parse_setup
from virtirq.control.journal import Journal, locked_journal
from virtirq.control.state import StateDirectory
from virtirq.cpuset import CpuSet
from virtirq.errors import InputError, JournalError, RecordingError
from virtirq.host.scratch import LOG, open_host
from virtirq.model import (
    Aimed,
    Finding,
    InterruptKey,
    PciAddress,
    Remembered,
    Severity,
)
from virtirq.policy.restoring import _in_restore_order

T = TypeVar("T")
NIC = PciAddress.parse("0000:82:00.0")


@cache
def _scratch() -> Path:
    """A folder of this process's own, in memory where there is one."""
    shared = "/dev/shm"
    where = tempfile.TemporaryDirectory(dir=shared if os.path.isdir(shared) else None)
    _kept.append(where)
    return Path(where.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _entry(vector: int, before: str, after: str) -> Remembered:
    key = InterruptKey(NIC, f"vfio-msix[{vector}]({NIC})")
    return Remembered(key, "u1", CpuSet.parse(before), (CpuSet.parse(after),), "web", 65 + vector)


@cache
def _journals() -> list[bytes]:
    directory = _scratch() / "seeds"
    with locked_journal(directory, BOOT_ID) as journal:
        journal.move(_entry(0, "0-3", "5"), _entry(1, "0-3", "6"))
        journal.moved((_entry(0, "0-3", "5").key, CpuSet([5])))
        journal.refused(_entry(1, "0-3", "6").key)
        journal.move(_entry(0, "5", "7"))
        journal.forget(_entry(1, "0-3", "6").key)
    written = (directory / "journal.jsonl").read_bytes()
    # As earlier versions wrote it: without check sums, so that changes get further.
    plain = re.sub(rb', "crc": "[0-9a-f]{8}"', b"", written)
    known = {"op": "known", "boot": BOOT_ID, "device": str(NIC), "action": "a", "guest": "g",
             "original": "0-3", "written": ["5", "6"], "irq": 7, "kind": "intx"}  # fmt: skip
    return [written, plain, plain[:-30], json.dumps(known).encode() + b"\n"]


@target(
    "journal",
    _journals,
    'op move moved refused forget known boot device action guest "crc": "irq": -1 null [] {} '
    "\\ud800"
    ' "written":["1"] "incarnation": \n',
    steps=40,
)
def journal(data: bytes) -> None:
    """Refused and left as it is, or it says what each of its lines says."""
    directory = StateDirectory(_scratch() / "journal")
    path = directory.path / "journal.jsonl"
    path.write_bytes(data)
    try:
        try:
            read = Journal(directory, BOOT_ID)
        except JournalError as error:
            need(path.read_bytes() == data, "what is refused is left as it is")
            need("\n" not in str(error) and error.hint, "one line, and what to do")
            return
        known = read.remembered()
        kept = path.read_bytes()
        need(data.startswith(kept), "nothing is written by reading")
        need(b"\n" not in data[len(kept) :], "no more than a torn line is cut off")
        told = [json.loads(line) for line in kept.splitlines()]
        values = {line.get("before") or line.get("original") for line in told}
        ours = {each for line in told for each in (line.get("after"), *line.get("written", ()))}
        actions = {str(line["action"]) for line in told if line["boot"] == BOOT_ID}
        for each in known:
            need(each.key.action in actions, "interrupts that it names")
            need(each.original in set(map(_cpus, values)), "originals that it names")
            need(set(each.written) <= set(map(_cpus, ours)), "values that it names")
            _in_restore_order(each)
        read._size = 2 << 20  # so that it is worth it
        read._compact()
        read.close()
        again = Journal(directory, BOOT_ID, reading=True)
        need(set(again.remembered()) == set(known), "made short, it says the same")
        again.close()
    finally:
        directory.close()


def _cpus(text: object) -> CpuSet | None:
    try:
        return CpuSet.parse(text) if isinstance(text, str) else None
    except InputError:
        return None


def _archives() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:", format=form) as tar:
            for name, text in (
                ("proc/irq/5/smp_affinity_list", b"0-3\n"),
                ("sys/devices/system/cpu/online", b"0-7\n"),
                ("virtirq/recording.json", b'{"format":1,"patterns":[],"errors":{},"gaps":{}}'),
            ):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(text), 1.5
                tar.addfile(member, io.BytesIO(text))
            for name, kind, link in (
                ("sys/x", tarfile.SYMTYPE, "../proc"),
                ("sys/devices/" + "y" * 99, tarfile.LNKTYPE, "proc/irq/5/smp_affinity_list"),
                ("sys/bus/pci/devices", tarfile.DIRTYPE, ""),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, link
                if form != tarfile.USTAR_FORMAT and kind == tarfile.SYMTYPE:
                    member.linkname = "../" * 60 + "etc/passwd"
                tar.addfile(member)
        found.append(buffer.getvalue().rstrip(b"\0") + bytes(1024))
    return [each[:LARGEST] for each in found]


def _summed(data: bytes) -> bytes:
    """With check sums that are right, so that what is wrong lies behind them."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - 511, 512):
        header = fixed[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % (sum(header) & 0o777777)
    return bytes(fixed)


@target(
    "archive",
    _archives,
    "proc/ sys/ ../ ./ / ustar size= path= linkpath= GNU.sparse.map= 0000644",
    steps=30,
    most=60_000,
)
def archive(data: bytes) -> None:
    """Refused, or all that is in it is a part of it."""
    data = _summed(data)
    path = _scratch() / "a.tar"
    path.write_bytes(gzip.compress(data, 1) if data[:1] == b"\xfd" else data)
    try:
        fs = open_host(path)
    except RecordingError as error:
        need("\n" not in str(error), "one line")
        return
    todo, seen, content = ["/"], 0, 0
    while todo and seen < 500:
        where = todo.pop()
        seen += 1
        mode = _or_none(fs.mode, where)
        need(mode is None or 0 <= mode < 1 << 16, "a mode")
        names = _or_none(fs.listdir, where)
        if names is not None:
            need(len(names) == len(set(names)) <= len(data), "names, each once")
            need(all("/" not in each and each not in ("", ".", "..") for each in names), "names")
            todo += [f"{where.rstrip('/')}/{each}" for each in names if where.count("/") < 70]
        text = _or_none(fs.read, where)
        if text is not None:
            content += len(text)
            raw = text.encode("utf-8", "replace")
            need(raw in data or "\N{REPLACEMENT CHARACTER}" in text, "what is in the archive")
    need(content <= 500 * len(data), "no more than is in it")


def _or_none(call: Callable[[str], T], path: str) -> T | None:
    try:
        return call(path)
    except (OSError, RecordingError):
        return None


@target(
    "scratch-log",
    lines('{"irq": 5, "affinity": "1", "effective": "1"}\n{"irq": 7,'),
    "irq affinity",
)
def scratch_log(data: bytes) -> None:
    root = _host()
    (root / LOG).write_bytes(data)
    try:
        fs = open_host(root)
    except RecordingError as error:
        need("\n" not in str(error), "one line")
        return
    said = {line["irq"]: line["affinity"] for line in map(json.loads, data.split(b"\n")[:-1])}
    for irq in (100, 101):
        there = CpuSet.parse(fs.read(f"/proc/irq/{irq}/smp_affinity_list"))
        need(there == CpuSet.parse(said.get(irq, "0-7")), "what was written last")
    need((root / LOG).read_bytes() == data, "nothing is written by reading")


@cache
def _host() -> Path:
    host = MadeHost(devices=(passthrough(str(NIC), vectors=2),))
    return host.write(_scratch() / "host", scratch=True)


@target(
    "recording",
    lines(
        '{"format":1,"patterns":["/proc/irq/{irq}/spurious"],"errors":{"/proc/irq":13},"gaps":{"a":"b"}}',
        '{"format":1}',
        '{"format":2}',
    ),
    '"patterns": "errors": "gaps": [] {} 71 null "\\ud800" /proc/irq',
)
def recording(data: bytes) -> None:
    root = _host()
    (root / LOG).write_bytes(b"")
    (root / "virtirq/recording.json").write_bytes(data)
    try:
        fs = open_host(root)
        gaps = fs.gaps
        fs.listdir("/proc/irq")
    except RecordingError as error:
        need("\n" not in str(error), "one line")
        return
    except OSError as error:
        need(error.errno in json.loads(data)["errors"].values(), "an error that it tells of")
        return
    told = json.loads(data)
    need({each.path: each.error for each in gaps} == told.get("gaps", {}), "gaps that it tells of")


def _statuses() -> list[bytes]:
    counted = Counters(drift=Counter({"irqbalance": 3}))
    found = Finding("a", Severity.WARNING, "s", "m", "h")
    aimed = {NIC: {0: Aimed(1), 3: Aimed(None, "why")}}
    told = DaemonStatus(
        1, 2.5, "1", "probes", "libvirt", 7, (found,), counted, aimed, {"u": "peek"}
    )
    return [json.dumps(told.as_json()).encode()]


@target(
    "status-document", _statuses, 'null [] {} NaN 1e999 "tally" "aimed" "moves" "\\ud800" -1 true'
)
def status_document(data: bytes) -> None:
    """What a daemon, or who sits in its place, answers over the status socket."""
    try:
        status = DaemonStatus.from_json(json.loads(data))
    except (RecursionError, InputError, *MALFORMED):
        return
    again = DaemonStatus.from_json(status.as_json())
    need(again.as_json() == status.as_json() or "NaN" in str(data), "told and read, it is the same")
    writer, pieces = Writer().write(status), 0
    try:
        while True:
            next(writer)
            pieces += 1
    except StopIteration as done:
        written = done.value
    need(pieces <= 1 + len(data) // 500, "written in few pieces")
    need(
        json.loads(written) == json.loads(json.dumps(status.as_json())) or b"NaN" in written,
        "alike",
    )


_SETUP = "SLEEP 10 IRQ 65 LOAD 0 DIFF 0 CLASS 3 IRQ -5 LOAD 1 DIFF 2 CLASS -1 BANNED 00000000,f"


@target(
    "irqbalance-answer", lines(_SETUP, "SLEEP 10 BANNED 0"), "IRQ LOAD 0 DIFF CLASS BANNED SLEEP -"
)
def irqbalance_answer(data: bytes) -> None:
    try:
        banned = parse_setup(data)
    except ValueError as error:
        need("\n" not in str(error), "one line")
        return
    words = data.split()
    named = {int(word) for before, word in pairwise(words) if before == b"IRQ"}
    need(banned == named and all(-(1 << 31) <= each < 1 << 31 for each in banned), "as it says")
    feed = Feed(data[::-1])
    ours = {feed.number(4096) for _ in range(feed.number(40))}
    _obeyed(banned, ours)
    for room in (500, 16383):
        fits = fitting(banned, ours, banned, room)
        need(fits is None or len(ban_command(banned, fits)) <= room, "it fits")
        need(fits is None or fits <= ours, "ours alone are left out")


def _obeyed(others: frozenset[int], ours: set[int]) -> None:
    """What irqbalance makes of our command (irqbalance.c, sock_handle()): strtol() word by word."""
    command = ban_command(others, ours)
    need(command.startswith(b"settings ban irqs ") and command.endswith(b"\0"), "a command")
    words = command[len(b"settings ban irqs ") : -1].split(b" ")
    found: set[int] = set()
    if words != [b"NONE"]:
        for place, word in enumerate(words):
            if place and int(word) == 0:
                break
            found.add(int(word))
    need(found == others | ours, "the list that was meant")


@target(
    "bans-file", lines('{"pid": 7, "started": 9, "boot": "b", "irqs": [65, 66]}'), "irqs [] null -1"
)
def bans_file(data: bytes) -> None:
    try:
        found = _added(json.loads(data), _Process(7, 9, "b"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    need(not found or list(found) == [*found], "numbers")
    told = json.loads(data)
    need(found in (frozenset(), frozenset(told["irqs"])), "what it says, or nothing")
    same = [told["pid"], told["started"], told["boot"]] == [7, 9, "b"]
    need(same or not found, "of this irqbalance alone")
