"""The bpftrace beside us: asked, answering late, wrongly or not at all, and ended.

The process is real and the kernel is not: reading the file of an interrupt tells `BPFTRACE` of it
through a FIFO. With the kernel it runs in the lab, tests/kernel/inside_routes.py.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.host.test_irqfd import KERNEL, KVM, MODULE, SYMBOLS, blobs, without
from virtirq.errors import UnavailableError
from virtirq.host import kvm_routes as routes_module
from virtirq.host.btf import Btf
from virtirq.host.fs import HostFs
from virtirq.host.irqfd import offsets, program
from virtirq.host.kvm_routes import Route, Routes, open_routes

# Reads which interrupt was asked about and when, and prints what `say` has for it: the code that
# it is given says how it behaves.
BPFTRACE = """
import os, signal, sys, time
def none(irq, early=0):
    return f"irqfd {at - early} {irq}"
def routed(irq, data=0, changes=2):
    return f"irqfd {at} {irq} {changes} {changes} 2 {0xFEE01000} 0 {data} 77"
def say(irq, n):
    return [routed(irq) if irq else none(irq)]
exec(sys.argv[1])
with open(sys.argv[2]) as asked:
    for n, line in enumerate(asked):
        irq, at = map(int, line.split())
        for answer in say(irq, n):
            print(answer, flush=True)
"""


class Host(HostFs):
    """Interrupts 0 to 199 are there; to read of one is to ask."""

    def __init__(self, fifo: Path) -> None:
        os.mkfifo(fifo)
        self.fifo = fifo
        self.asked: list[int] = []
        self.module: int | None = 1
        self._end = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # so that neither end waits

    def close(self) -> None:
        os.close(self._end)

    def read(self, path: str) -> str:
        _, _, number = path.removesuffix("/hwirq").rpartition("/")
        if path != f"/sys/kernel/irq/{number}/hwirq" or int(number) >= 200:
            raise FileNotFoundError(2, "No such file or directory", path)
        self.asked.append(int(number))
        os.write(self._end, f"{number} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n".encode())
        return "12"

    def listdir(self, path: str) -> list[str]:
        assert path == "/sys/kernel/irq"
        return ["5", "0", "199"]

    def readlink(self, path: str) -> str:
        raise AssertionError(path)

    def mode(self, path: str) -> int:
        raise AssertionError(path)

    def incarnation(self, path: str) -> int | None:
        assert path == "/sys/module/kvm"
        return self.module


Start = Callable[..., Routes]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with closing(Host(tmp_path / "fifo")) as made:
        yield made


@pytest.fixture
def start(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts one that behaves as the code says. All are closed in the end, and nothing is left."""
    started: list[Routes] = []

    def begin(code: str = "", answer: float = 20.0, attach: float = 60.0) -> Routes:
        monkeypatch.setattr(routes_module, "ANSWER_SECONDS", answer)
        monkeypatch.setattr(routes_module, "ATTACH_SECONDS", attach)
        command = [sys.executable, "-c", BPFTRACE, code, str(host.fifo)]
        made = Routes(host, command, host.module)
        started.append(made)
        return made

    yield begin
    for each in started:
        each.close()
        assert gone(each)


def gone(routes: Routes) -> bool:
    """Whether its process has ended and was waited for."""
    return (
        routes._process.returncode is not None and not Path(f"/proc/{routes._process.pid}").exists()
    )


def route(data: int = 0) -> Route:
    return Route(77, 0xFEE0_1000, data)


def test_each_interrupt_is_asked_about_once(start: Start, host: Host) -> None:
    routes = start()
    del host.asked[:]
    assert routes.read([9, 7, 9, 0]) == {7: route(), 9: route()}
    assert host.asked == [0, 7, 9]
    assert routes.read([]) == {}
    assert routes.read([0]) == {}
    assert host.asked == [0, 7, 9, 0]


def test_interrupts_that_are_gone_have_no_route(start: Start) -> None:
    assert start().read([7, 200, 100000]) == {7: route()}


def test_more_than_fit_are_asked_about_in_turn(start: Start, host: Host) -> None:
    routes = start("say = lambda irq, n: [routed(irq, irq)]")
    found = routes.read(range(1, 200))
    assert found == {irq: route(irq) for irq in range(1, 200)}


def test_what_else_is_printed_is_passed_over(start: Start) -> None:
    code = """
def say(irq, n):
    return ["", "Lost 3 events", "irqfd 1 2 3", "x" * 200000, "\\xff", none(150), routed(irq),
            "@[map]: 3", routed(151)]
"""
    routes = start(code)
    assert routes.read([7, 8]) == {7: route(), 8: route()}
    assert routes.read([9]) == {9: route()}


def test_an_answer_that_was_lost_is_asked_for_again(start: Start) -> None:
    code = """
seen = set()
def say(irq, n):
    if irq in (0, 8) or irq in seen:
        return [routed(irq)] if irq else [none(irq)]
    seen.add(irq)
    return []
"""
    routes = start(code, answer=1.0)
    assert routes.read([7, 8]) == {7: route(), 8: route()}


def test_an_answer_from_before_the_question_is_none(start: Start) -> None:
    code = """
def say(irq, n):
    return [none(7, 10**10), routed(7) if irq == 7 else none(irq)]
"""
    assert start(code).read([7]) == {7: route()}


def test_answers_that_came_too_late_are_not_taken_for_the_next(start: Start, host: Host) -> None:
    code = """
first = True
def say(irq, n):
    global first
    if irq and first:
        first = False
        time.sleep(0.5)  # by then it was asked again
    return [routed(irq, n) if irq else none(irq)]
"""
    routes = start(code, answer=0.4)
    asked = len(host.asked)
    assert routes.read([7]) == {7: route(asked)}
    asked = len(host.asked)
    time.sleep(0.01)
    assert routes.read([7]) == {7: route(asked)}


def test_a_message_that_is_being_changed_is_read_again(start: Start) -> None:
    code = """
seen = set()
def say(irq, n):
    if irq in seen:
        return [routed(irq)]
    seen.add(irq)
    return [routed(irq, changes=3)]
"""
    assert start(code).read([7, 8]) == {7: route(), 8: route()}


def test_a_message_that_always_changes_is_not_known(start: Start) -> None:
    code = "say = lambda irq, n: [routed(irq, changes=3 if irq == 7 else 2)]"
    routes = start(code)
    assert routes.read([7, 8]) == {8: route()}
    assert routes.read([8]) == {8: route()}


SILENT = """
print("Attaching 1 probe...", flush=True)
say = lambda irq, n: [] if irq == 7 else [none(irq)]
"""


def test_one_that_does_not_answer_any_more_is_ended(start: Start) -> None:
    routes = start(SILENT, answer=0.05)
    with pytest.raises(UnavailableError, match=r"bpftrace does not answer$"):
        routes.read([5, 7])
    assert gone(routes)
    with pytest.raises(UnavailableError, match="bpftrace was ended"):
        routes.read([5])


def test_one_that_is_stopped_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "END_SECONDS", 0.2)
    routes = start(answer=0.05)
    os.kill(routes._process.pid, signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="bpftrace does not answer"):
        routes.read([5])
    assert gone(routes)
    assert routes._process.returncode == -signal.SIGKILL


def test_one_that_was_killed_is_waited_for(start: Start) -> None:
    routes = start()
    os.kill(routes._process.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="bpftrace has ended"):
        routes.read([5])
    assert gone(routes)


def test_its_last_words_are_told(start: Start) -> None:
    code = """
def say(irq, n):
    if irq == 7:
        print("ERROR: Unable to go on", file=sys.stderr)
        sys.exit(1)
    return [none(irq), "Attaching 1 probe..."]
"""
    with pytest.raises(UnavailableError, match=r"^bpftrace has ended: ERROR: Unable to go on$"):
        start(code).read([7])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('ERROR: ' + 'x' * 5000); print('hint'); sys.exit(1)", "ended: ERROR: x{193}$"),
        ("print('no idea'); sys.exit(1)", "bpftrace has ended: no idea$"),
        ("sys.exit(1)", "bpftrace has ended$"),
        ("say = lambda irq, n: []", "bpftrace does not answer within 0.5 s$"),
        ("say = lambda irq, n: [none(9)]", "bpftrace does not answer within 0.5 s$"),
        ("say = lambda irq, n: [none(irq, 10**10)]", "bpftrace does not answer within 0.5 s$"),
    ],
)
def test_one_that_never_answers(start: Start, code: str, message: str) -> None:
    attach = 0.5 if "within" in message else 60.0
    with pytest.raises(UnavailableError, match=message):
        start(code, attach=attach)


def test_a_program_that_is_none(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="none: No such file or directory"):
        Routes(host, [str(tmp_path / "none")], 1)


def test_another_kvm_is_another_matter(start: Start, host: Host) -> None:
    for changed in (2, None):
        host.module = 1
        routes = start()
        host.module = changed
        with pytest.raises(UnavailableError, match="kvm: it is not the one"):
            routes.read([7])
        assert gone(routes)


def test_closing_ends_it(start: Start) -> None:
    routes = start()
    assert not gone(routes)
    routes.close()
    assert gone(routes)
    routes.close()
    with pytest.raises(UnavailableError, match="was ended"):
        routes.read([7])


def test_one_that_does_not_heed_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "END_SECONDS", 0.2)
    routes = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    routes.close()
    assert routes._process.returncode == -signal.SIGKILL


def test_nothing_is_left_open(start: Start) -> None:
    def files() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = files()
    for code in ("", "sys.exit(1)"):
        with suppress(UnavailableError):
            start(code).close()
    assert files() == before


def test_a_terminals_interrupt_is_not_for_it(start: Start) -> None:
    assert os.getpgid(start()._process.pid) != os.getpgid(0)


def test_settings_for_other_bpftraces_do_not_count(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BPFTRACE_STRLEN", "9")
    monkeypatch.setenv("BPFTRACE_PERF_RB_PAGES", "1")
    code = """
def say(irq, n):
    print(sorted(each for each in os.environ.items() if each[0].startswith("BPF")), flush=True)
    return [none(irq)]
"""
    routes = start(code)
    assert set(routes._words) == {"[('BPFTRACE_PERF_RB_PAGES', '4')]"}


# --- what open_routes lacks ---------------------------------------------------------


class Files(HostFs):
    """What `open_routes` looks at, as on a host that has it all."""

    def __init__(self, **changed: str | None) -> None:
        self.recording = changed.pop("recording", None)
        self._files = {
            "/proc/self/status": "Name:\tvirtirq\nCapEff:\t000001ffffffffff\nCapBnd:\t0",
            "/proc/self/ns/pid": "pid:[4026531836]",
            "/sys/kernel/security/lockdown": "none [integrity] confidentiality",
            "/proc/sys/kernel/perf_event_paranoid": "3",
            "/sys/module/kvm": "",
        }
        for name, text in changed.items():
            path = next(each for each in self._files if each.endswith(name))
            self._files[path] = text if text is not None else self._files[path]
            if text is None:
                del self._files[path]

    def read(self, path: str) -> str:
        if path not in self._files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self._files[path]

    readlink = read

    def listdir(self, path: str) -> list[str]:
        return []

    def mode(self, path: str) -> int:
        self.read(path)
        return stat.S_IFDIR

    def incarnation(self, path: str) -> int | None:
        return 1 if path in self._files else None


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's types and symbols, and a bpftrace that does nothing but be called."""
    monkeypatch.setattr(routes_module, "BTF_DIR", str(tmp_path))
    monkeypatch.setattr(routes_module, "SYMBOLS", str(tmp_path / "symbols"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    base, split = blobs()
    (tmp_path / "vmlinux").write_bytes(base)
    (tmp_path / "kvm").write_bytes(split)
    (tmp_path / "symbols").write_bytes(b"".join([*SYMBOLS, KVM]))
    (tmp_path / "bin").mkdir()
    bpftrace = tmp_path / "bin/bpftrace"
    bpftrace.write_text(f"#!/bin/sh\n: > {tmp_path}/called\n")
    bpftrace.chmod(0o755)
    return tmp_path


def refusal(**changed: Any) -> UnavailableError:
    with pytest.raises(UnavailableError) as raised:
        open_routes(Files(**changed))
    return raised.value


def test_with_all_there_bpftrace_is_started(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "Routes", lambda *arguments: arguments)
    fs = Files()
    text = program(offsets(Btf(*blobs())), 0xFFFF_FFFF_C0AB_CDEF, os.getpid())
    words = [f"{kernel}/bin/bpftrace", "-B", "line", "-p", str(os.getpid()), "-e", text]
    assert open_routes(fs) == (fs, words, 1)  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"recording": "x.tar"}, "a recording has no kernel that could be asked", None),
        (
            {"status": "CapEff:\t0000000000000000"},
            "this process may not load programs into the kernel",
            "CAP_BPF and CAP_PERFMON",
        ),
        (
            {"status": "CapEff:\t0000008000000000"},
            "this process may not load programs into the kernel",
            "CAP_BPF and CAP_PERFMON",
        ),
        (
            {"status": "CapEff:\t000000c400000000"},
            "/proc/sys/kernel/perf_event_paranoid: it is 3",
            "set it to 2, or add CAP_SYS_ADMIN",
        ),
        ({"pid": "pid:[4026532836]"}, "process ids are not the host's here", "pid namespace"),
        (
            {"lockdown": "none integrity [confidentiality]"},
            "/sys/kernel/security/lockdown: the kernel lets nobody read its memory",
            "lockdown=integrity",
        ),
    ],
)
def test_what_is_not_permitted_is_said(
    kernel: Path, changed: dict[str, str], message: str, hint: str | None
) -> None:
    error = refusal(**changed)
    assert str(error) == message
    assert (hint or "") in (error.hint or "")
    assert not (kernel / "called").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "CapEff:\t000000c400000000", "paranoid": "2"},
        {"status": "CapEff:\t000000c400000000", "paranoid": "-1"},
        {"status": "CapEff:\t000000c400000000", "paranoid": None},
        {"status": "CapEff:\t0000000000200000"},
        {"status": None, "pid": None, "lockdown": None},
        {"status": "CapEff:\tnone", "lockdown": ""},
    ],
)
def test_what_may_do_is_tried(kernel: Path, changed: dict[str, str | None]) -> None:
    assert "no interrupts are there" in str(refusal(**changed))


def test_without_bpftrace(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "_path", lambda: str(kernel))
    error = refusal()
    assert str(error) == "bpftrace is not installed"
    assert error.hint == "install the distribution's package bpftrace"


def test_without_btf(kernel: Path) -> None:
    (kernel / "vmlinux").unlink()
    error = refusal()
    assert str(error) == f"{kernel}/vmlinux: No such file or directory"
    assert "CONFIG_DEBUG_INFO_BTF" in (error.hint or "")


def test_without_kvm(kernel: Path) -> None:
    (kernel / "kvm").unlink()
    assert str(refusal(kvm=None)) == "the module kvm is not loaded"


def test_without_btf_of_kvm(kernel: Path) -> None:
    (kernel / "kvm").unlink()
    assert str(refusal()) == f"{kernel}/vmlinux: struct kvm_kernel_irqfd is not known"


def test_with_kvm_built_in(kernel: Path) -> None:
    (kernel / "kvm").unlink()
    (kernel / "vmlinux").write_bytes(blobs({**KERNEL, **MODULE}, {})[0])
    assert "no interrupts are there" in str(refusal())


def test_with_a_field_that_is_not_there(kernel: Path) -> None:
    (kernel / "kvm").write_bytes(blobs(KERNEL, without(MODULE, ".msi", "data"))[1])
    error = refusal()
    assert str(error) == f"{kernel}/kvm: struct kvm_kernel_irqfd: no field irq_entry.msi.data"
    assert error.hint == "this kernel is not understood"


def test_with_types_that_are_none(kernel: Path) -> None:
    (kernel / "kvm").write_bytes(b"none")
    assert str(refusal()) == f"{kernel}/kvm: it is too short"


def test_with_hidden_symbols(kernel: Path) -> None:
    hidden = b"".join(b"0" * 16 + each[16:] for each in [*SYMBOLS, KVM])
    (kernel / "symbols").write_bytes(hidden)
    error = refusal()
    assert str(error) == f"{kernel}/symbols: the kernel does not tell its addresses"
    assert "CAP_SYSLOG" in (error.hint or "")


def test_without_symbols(kernel: Path) -> None:
    (kernel / "symbols").unlink()
    assert str(refusal()) == f"{kernel}/symbols: No such file or directory"
