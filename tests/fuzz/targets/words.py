"""Small texts: CPU lists, addresses, names, what goes to logs and to systemd."""

from __future__ import annotations

import logging

from tests.fuzz.engine import decoded, lines, need, pieces, target, text_of
from virtirq.cpuset import MAX_CPUS, CpuSet
from virtirq.daemon.journal_socket import FIELDS
from virtirq.daemon.log import entry
from virtirq.daemon.systemd import _address, _status, _watchdog
from virtirq.errors import CpuSetError, DirectiveError, InputError
from virtirq.guests.libvirt.values import mac_of_text, uuid_of_text
from virtirq.guests.processes.values import MOST_NAME, host_address, name_of, uuid_of
from virtirq.model import Directive, PciAddress, VfioAction, Word
from virtirq.policy.listen import parse_listen
from virtirq.ui.document import printable


def _listed(text: str) -> set[int]:
    """What a CPU list means, number by number."""
    found: set[int] = set()
    for part in text.split(","):
        word = part.strip()
        out, word = word.startswith("^"), word.removeprefix("^")
        first, _, last = word.partition("-")
        piece = set(range(int(first), int(last or first) + 1)) if word else set()
        found = found - piece if out else found | piece
    return found


@target("cpu-list", lines("0-3,8", "0-7,^3", "", "16383", " 2 ,4-5"), "^ - , 0 3 16383 16384")
def cpu_list(data: bytes) -> None:
    text = text_of(data)
    try:
        cpus = CpuSet.parse(text)
    except CpuSetError as error:
        need("\n" not in str(error), "the error is one line")
        return
    need(set(cpus) == (_listed(text) if text.strip() else set()), "the numbers that it names")
    need(len(cpus) == sum(last - first + 1 for first, last in cpus.ranges()), "as many")
    need(CpuSet.parse(str(cpus)) == cpus == CpuSet.parse_mask(cpus.mask()), "printed and read")


@target("cpu-mask", lines("f", "1,0000000f", "0xff", "ffffffff,ffffffff"), ", 0x ffffffff 00000000")
def cpu_mask(data: bytes) -> None:
    text = text_of(data)
    try:
        cpus = CpuSet.parse_mask(text)
    except CpuSetError:
        return
    bits = int(text.strip().removeprefix("0x").replace(",", ""), 16)
    need(set(cpus) == {cpu for cpu in range(MAX_CPUS) if bits >> cpu & 1}, "the bits that are set")


@target("directive", lines("auto", "native", "emulator", "local", "2-5,^3"), "auto native 1-3 ^2")
def directive(data: bytes) -> None:
    text = text_of(data)
    try:
        found = Directive.parse(text)
    except DirectiveError as error:
        need("\n" not in str(error) and error.hint, "one line, and what to do")
        return
    if found.word is None:
        need(set(found.cpus) == _listed(text) and found.cpus, "the CPUs that it names, and some")
    else:
        need(found.word in Word and text.strip() == found.word.value, "just that word")
    need(Directive.parse(str(found)) == found, "printed and read")


@target(
    "device-names",
    lines(
        "0000:82:00.0",
        "pci_0000_82_00_0",
        "41:0.0",
        "vfio-msix[3](0000:82:00.0)",
        "10000:e1:00.0",
        "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d99",
        "52:54:00:0a:0b:0c",
        "vfio-intx(0000:82:00.0)",
    ),
    "vfio-msi[ ]( : . 0000: ffffffff: [99999] pci_ 0x",
)
def device_names(data: bytes) -> None:
    text = text_of(data)
    found = [host_address(text)]
    try:
        found.append(PciAddress.parse(text))
        need(PciAddress.parse(str(found[-1])) == found[-1], "printed and read")
    except InputError:
        pass
    action = VfioAction.parse(text)
    if action is not None:
        found.append(action.device)
        need(VfioAction.parse(str(action)) == action, "an action, printed and read")
        need(action.vector is None or 0 <= action.vector < 100_000, "a vector has a bound")
    for address in filter(None, found):
        bounds = (1 << 32, 1 << 8, 1 << 5, 1 << 3)
        need(all(0 <= part < most for part, most in zip(address, bounds, strict=True)), "in bounds")
    mac, uuid, one = mac_of_text(text), uuid_of_text(text), uuid_of(text)
    need(mac is None or mac_of_text(mac) == mac, "a MAC address has one form")
    need(uuid is None or uuid_of_text(uuid) == uuid, "a UUID has one form")
    need(one is None or one == uuid, "both read the same UUID")


@target("listen", lines("127.0.0.1:9191", "[::1]:9191", "localhost:9191", ":9191"), "[ ] :: : %lo")
def listen(data: bytes) -> None:
    text = text_of(data)
    try:
        host, port = parse_listen(text)
    except ValueError as error:
        need("\n" not in str(error), "the error is one line")
        return
    need(0 < port < 65536, "a port")
    need(
        text
        == (
            f"[{host}]:{text.rpartition(':')[2]}"
            if ":" in host
            else f"{host}:{text.rpartition(':')[2]}"
        ),
        "nothing is left out",
    )
    need(host.isascii() and not any(each in host for each in "/ \n\0"), "a host")


@target("names", lines("web", "prod/x", "a\nb", "\x1b[2Jx", "x" * 300))
def names(data: bytes) -> None:
    text = decoded(data)
    found = name_of(text)
    if found is not None:
        need(found.isprintable() and found and len(found) <= MOST_NAME + 1, "a name to show")
        need(name_of(found[:MOST_NAME]) == found[:MOST_NAME].strip(), "a name is its own name")
    shown = printable(text)
    need(shown.isprintable() and printable(shown) == shown, "nothing that a terminal obeys")
    shown.encode()


def _journal_fields(datagram: bytes) -> list[tuple[bytes, bytes]]:
    """journald's own reading of a datagram (systemd, "Native Journal Protocol")."""
    found, at = [], 0
    while at < len(datagram):
        end = datagram.index(b"\n", at)
        line = datagram[at:end]
        if b"=" in line:
            name, _, value = line.partition(b"=")
            at = end + 1
        else:
            size = int.from_bytes(datagram[end + 1 : end + 9], "little")
            name, value = line, datagram[end + 9 : end + 9 + size]
            at = end + 9 + size + 1
            need(datagram[at - 1 : at] == b"\n", "a value ends where it says")
        found.append((name, value))
    return found


@target(
    "log", lines("web: pinned\x1eweb\x1e0000:82:00.0", "a\nMESSAGE=b\x1e\nPRIORITY=0\n\x1e"), "="
)
def log(data: bytes) -> None:
    message, guest, reason = pieces(data, 3)
    record = logging.LogRecord("virtirq", logging.WARNING, "", 0, decoded(message), (), None)
    record.virtirq_fields = {"guest": decoded(guest), "reason": decoded(reason)}
    told = entry(record)
    fields = _journal_fields(told)
    ours = {
        name.encode() for name in (*FIELDS.values(), "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER")
    }
    need(len(dict(fields)) == len(fields) == 5 and dict(fields).keys() <= ours, "our fields alone")
    need(dict(fields)[b"PRIORITY"] == b"4", "the priority that was given")
    need(dict(fields)[b"MESSAGE"].decode().isprintable(), "a message that is one line")
    need(len(told) < 1 << 16, "it fits into a datagram")


@target("notify", lines("/run/systemd/notify", "@abc", "30000000", "vsock:2:1", "watches 3 guests"))
def notify(data: bytes) -> None:
    text = decoded(data)
    where = _address(text)
    need(where is None or where[:1] in ("/", b"\0"), "a path or an abstract name")
    seconds = _watchdog(text, "")
    need(seconds is None or seconds == int(text) / 1_000_000 > 0, "the interval that is said")
    (line,) = _status(text)
    need("\n" not in line and len(line.encode()) < 4096, "one line that is not dropped")
