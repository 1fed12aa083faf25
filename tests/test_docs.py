"""Every command line in the documentation is run, or is another program's and said to be.

virtirq's own run in this process: those that have to do with libvirt on its test driver, those that
look or write on a made-up host whose guests are called as the documentation calls them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost, passthrough
from tests.libvirtmaker import GPU, NIC, POOLED, URI, VF, domain_xml, held
from tests.needs import need_libvirt, need_program
from virtirq.errors import EXIT_FINDINGS, EXIT_OK
from virtirq.ui import verbs
from virtirq.ui.cli import main, make_parser, parser_of

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MANUAL = sorted((REPOSITORY / "docs/man").iterdir())
OTHERS = {
    # Programs of others, by what shows that what is said of them is so.
    "the labs' hosts": {"systemctl", "journalctl", "taskset", "ln", "pip", "python3", "virsh"},
    "tests/test_packaging.py": {"make"},
    "tests/release": {"./virtirq.pyz"},
    "the shell": {"#!/bin/sh", "[", "for", "do", "done", "mv", "chmod", "apt", "cat", "editor"},
    "tests/full and the role's own tests": {"ansible-playbook", "cd"},
    "their own manuals": {
        "qm",
        "kubectl",
        "podman",
        "cloud-hypervisor",
        "crosvm",
        "lscpu",
        "lspci",
        "perf",
    },
}
"""`IRQBALANCE_ARGS=` and the like are settings: see `_SETTING`."""
_SETTING = re.compile(r"\[\w+\]$|[A-Za-z_]+=|# |isolcpus=|FROM |COPY |RUN |/? ?sum by |\S+\(\S*\) ")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:sudo )?virtirq\s[^`]*)`")
_EXAMPLE = re.compile(r"^\.EX\n(.*?)^\.EE$", re.DOTALL | re.MULTILINE)
_STAND_INS = {"GUEST": "web", "DIR": "host", "URI": URI, "OBJECT": "web", "FILE": "web.xml"}
_STANDS = re.compile(r"^[A-Z]+$")
_LIBVIRT = frozenset({"get", "set", "unset", "define", "dumpxml"})
_ENDLESS = frozenset({"daemon", "top", "events"})
"""Parsed, and not run: they end when somebody ends them, or tell of this machine. So is
``place --apply``, which needs a libvirt that runs on the host: ``tests/ui/test_libvirt_verbs.py``
has that.
"""
GUESTS = ("web", "db", "vm", "win11", "router-1", "plc-1", "101")


class Line(NamedTuple):
    """`named`: it stands in a sentence, and may be no more than the name of a verb."""

    page: str
    text: str
    named: bool = False


def lines() -> Iterator[Line]:
    for page in PAGES:
        text = page.read_text()
        for kind, block in _BLOCK.findall(text):
            if kind:
                continue
            session = block.startswith("$ ")
            for line in block.replace("&&\n", "&& ").splitlines():
                if session and not line.startswith("$ "):
                    continue
                command = re.split(r" {2,}(?![/&])", line.removeprefix("$ "))[0].strip()
                if command and command != "…" and not line.startswith("    "):
                    yield Line(page.name, command)
        for command in _INLINE.findall(text):
            yield Line(page.name, " ".join(command.split()), named=True)
    for page in MANUAL:
        for block in _EXAMPLE.findall(page.read_text()):
            if page.suffix != ".5":
                for line in block.replace("\\-", "-").replace("\\(aq", "'").splitlines():
                    yield Line(page.name, line)


LINES = sorted(set(lines()))
_INSTALLED = "sudo virtirq uninstall"
"""A word of virtirq.pyz alone, where it has installed itself: tests/release."""
OWN = [
    each
    for each in LINES
    if each.text != _INSTALLED and re.search(r"(^|&& |-- |sudo )virtirq\b", each.text)
]
REST = [each for each in LINES if each not in OWN]


def words_of(text: str) -> list[str]:
    """virtirq's own words in a command line, without those around it."""
    found = re.search(r"(?:^|&& |-- |sudo )virtirq\b(.*?)(?:&&|$)", text)
    assert found, text
    words = shlex.split(found[1].replace("…", ""))
    for stop in (">", "|", ">>"):
        words = words[: words.index(stop)] if stop in words else words
    return words


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which ``host`` is a host with the documentation's guests, and some files."""
    place = tmp_path_factory.mktemp("docs")
    guests = {}
    devices = []
    for number, name in enumerate(GUESTS):
        bus = 0x82 if name == "web" else 0x83 + number
        devices.append(
            passthrough(f"0000:{bus:02x}:00.0", vectors=2, first_irq=100 + 4 * number, node=0)
        )
        guests[name] = (
            f"<domain type='kvm'><name>{name}</name><vcpu>2</vcpu><cputune>"
            f"<vcpupin vcpu='0' cpuset='{16 + 2 * number}'/>"
            f"<vcpupin vcpu='1' cpuset='{17 + 2 * number}'/>"
            "</cputune><devices><hostdev mode='subsystem' type='pci'><source>"
            f"<address domain='0' bus='0x{bus:02x}' slot='0' function='0'/></source></hostdev>"
            "</devices></domain>"
        )
    nodes = {0: "0-15", 1: "16-31"}
    host = MadeHost(online="0-31", nodes=nodes, devices=tuple(devices), domains=guests)
    host.write(place / "host", scratch=True)
    (place / "web.xml").write_text(domain_xml("web2"))
    (place / "vm.xml").write_text(domain_xml("vm2", metadata="", devices=NIC))
    (place / "virtirq.toml").write_text("")
    return place


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """libvirt's test driver, with the documentation's guests."""
    need_libvirt()
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", URI)
    gpu = GPU.replace("0x83", "0x0b")
    sound = gpu.replace("function='0'", "function='4'").replace("ua-gpu", "ua-sound")
    with held() as connection:
        connection.defineXML(domain_xml("web", devices=NIC + GPU + VF + POOLED)).create()
        connection.defineXML(domain_xml("win11", devices=gpu + sound)).create()
        for name in ("vm", "router-1", "instance-0000002a"):
            connection.defineXML(domain_xml(name, devices=NIC)).create()
        yield


def verb_of(words: list[str]) -> str:
    return next((word for word in words if word in verbs.NAMES), "status")


def run(words: list[str]) -> int:
    """With what stands for a name in it, on the host that it is about. The exit code."""
    words = [
        _STAND_INS[word] if _STANDS.match(word) and word in _STAND_INS else word for word in words
    ]
    verb = verb_of(words)
    if verb in _ENDLESS or {"-f", "--apply"} & set(words):
        make_parser().parse_args(words)
        return EXIT_OK
    asks = verb in _LIBVIRT or "-c" in words
    if not asks and not {"-s", "--sysroot", "--print-completion"} & set(words):
        # What has no use for a recorded host takes none.
        words = words if verb in ("demo", "help") else ["-s", "host", *words]
    return main(words)


@pytest.mark.parametrize("line", OWN, ids=lambda line: f"{line.page}: {line.text}")
def test_it_runs(
    line: Line, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libvirt: None
) -> None:
    monkeypatch.chdir(made)
    words = words_of(line.text)
    if verb_of(words) == "demo":
        monkeypatch.chdir(tmp_path)
    if line.named and all(word in verbs.NAMES or word.startswith("-") for word in words):
        known = parser_of(verb_of(words))._option_string_actions
        assert {word for word in words if word.startswith("-")} <= set(known)
        return
    if verb_of(words) == "unset":
        assert run(["set", *words[1:], "auto"]) == EXIT_OK
    assert run(words) in (EXIT_OK, EXIT_FINDINGS)


@pytest.mark.parametrize("line", REST, ids=lambda line: f"{line.page}: {line.text}")
def test_another_programs_is_one_that_we_know_of(line: Line) -> None:
    text = line.text.removeprefix("sudo ")
    if _SETTING.match(text) or line.text == _INSTALLED:
        return
    program = text.split()[0]
    assert any(program in each for each in OTHERS.values()), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_are_a_shells(page: Path) -> None:
    need_program("sh")
    for kind, block in _BLOCK.findall(page.read_text()):
        if kind == "sh":
            subprocess.run(["sh", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for name, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text()):
        there = page.parent / name if name else page
        assert there.exists(), name
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            made = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in made, (name, anchor)


def test_a_command_that_is_none_is_noticed(
    made: Path, monkeypatch: pytest.MonkeyPatch, libvirt: None
) -> None:
    monkeypatch.chdir(made)
    for text in ("virtirq frobnicate", "virtirq status --nonesuch", "virtirq plan nobody"):
        assert run(words_of(text)) == 2


def test_there_are_many() -> None:
    assert len(OWN) > 60
