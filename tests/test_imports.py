"""Who may import whom, and who may do what: the rooms of the house, by syntax tree.

Each rule is a function from a module's name and tree to complaints; each is fed something bad,
too, so that a rule which has gone blind is noticed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import virtirq
from tests.hostmaker import MadeHost, passthrough

SOURCE = Path(virtirq.__file__).parent
WORDS = {"virtirq", "virtirq.cpuset", "virtirq.model", "virtirq.errors", "virtirq.values"}
ROOMS = ("host", "guests", "policy", "control", "daemon", "ui")
MAY_IMPORT = {
    "words": {"words"},
    "host": {"words", "host"},
    "guests": {"words", "guests"},
    "policy": {"words", "policy"},
    "control": {"words", "host", "guests", "policy", "control"},
    "daemon": {"words", "host", "guests", "policy", "control", "daemon"},
    "ui": {"words", "host", "guests", "policy", "control", "daemon", "ui", "demo"},
    "demo": {"words"},
    "main": {"ui"},
}
ALSO = {
    "guests": {
        *("virtirq.host.fs", "virtirq.host.paths"),
        *("virtirq.host.kvm_routes", "virtirq.host.probed_routes"),
    }
}
LATE = {"rich", "cattrs", "shtab", "defusedxml", "libvirt", "textual", "prometheus_client", "qemu"}
LIBVIRT = {"libvirt", "libvirtaio", "libvirt_qemu", "libvirtmod"}
OPENERS = {
    *("open", "listdir", "scandir", "stat", "lstat", "readlink", "access", "walk"),
    *("exists", "isfile", "isdir", "glob", "iglob", "read_text", "Path", "FileIO"),
}


class Import(NamedTuple):
    """`target` is a module; `late`: inside a function, or only for the type checker."""

    target: str
    line: int
    late: bool


def module_name(path: Path) -> str:
    parts = ["virtirq", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def room_of(module: str) -> str:
    if module in WORDS:
        return "words"
    second = module.split(".")[1]
    return "main" if second == "__main__" else second


def imports_of(tree: ast.AST, late: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, late)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield Import(inner if inner in TREES else base, node.lineno, late)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for each in node.body:
                yield from imports_of(ast.Module([each], []), True)
            for each in node.orelse:
                yield from imports_of(ast.Module([each], []), late)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, late or inside)


def called(node: ast.Call) -> str:
    """The last name of what is called: ``open`` of ``os.open(…)``."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


Rule = Callable[[str, ast.AST], Iterator[str]]


def direction(module: str, tree: ast.AST) -> Iterator[str]:
    """Rooms import along the one way through the house; only ``__main__`` imports ui."""
    room = room_of(module)
    for target, line, _ in imports_of(tree):
        if target.startswith("."):
            yield f"{module}:{line} imports by a relative name: {target}"
        elif target.split(".")[0] == "virtirq":
            if target in ALSO.get(room, ()) or room_of(target) in MAY_IMPORT[room]:
                continue
            yield f"{module}:{line} is in {room} and imports {target}"


def plain_words(module: str, tree: ast.AST) -> Iterator[str]:
    """The words and the host room need nothing beyond Python itself."""
    if room_of(module) in ("words", "host"):
        for target, line, _ in imports_of(tree):
            top = target.split(".")[0]
            if top != "virtirq" and top not in sys.stdlib_module_names:
                yield f"{module}:{line} imports {target}"


def libvirt_behind_one_door(module: str, tree: ast.AST) -> Iterator[str]:
    """Only guests/libvirt/connection.py imports libvirt."""
    if module != "virtirq.guests.libvirt.connection":
        for target, line, _ in imports_of(tree):
            if target.split(".")[0] in LIBVIRT:
                yield f"{module}:{line} imports {target}"


def late_imports(module: str, tree: ast.AST) -> Iterator[str]:
    """What is heavy or optional is imported where it is used."""
    for target, line, late in imports_of(tree):
        if target.split(".")[0] in LATE | LIBVIRT and not late:
            yield f"{module}:{line} imports {target} outside a function"


def one_room_writes(module: str, tree: ast.AST) -> Iterator[str]:
    """Only control writes to a host; and who starts bpftrace, to that process of its own.

    What a scratch host's open file does is a write of the scratch host's.
    """
    if room_of(module) == "control" or module in (
        "virtirq.host.kvm_routes",
        "virtirq.host.scratch",
    ):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.func.attr in ("write", "open") and name in ("fs", "_fs"):
                yield f"{module}:{node.lineno} writes to a host"


def one_door_to_the_kernel(module: str, tree: ast.AST) -> Iterator[str]:
    """Kernel files are opened in host alone; everyone else asks a HostFs."""
    if room_of(module) == "host":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in OPENERS:
            for argument in [*node.args, *(each.value for each in node.keywords)]:
                first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
                text = first.value if isinstance(first, ast.Constant) else None
                if isinstance(text, str) and text.startswith(("/proc", "/sys")):
                    yield f"{module}:{node.lineno} opens {text}"


def asyncio_in_the_daemon(module: str, tree: ast.AST) -> Iterator[str]:
    """The daemon has a loop, and QEMU's monitor a short one of its own; nobody else has."""
    if room_of(module) == "daemon" or module == "virtirq.guests.processes.monitor":
        return
    for target, line, _ in imports_of(tree):
        if target.split(".")[0] == "asyncio":
            yield f"{module}:{line} imports {target}"


RULES: tuple[Rule, ...] = (
    asyncio_in_the_daemon,
    direction,
    plain_words,
    libvirt_behind_one_door,
    late_imports,
    one_room_writes,
    one_door_to_the_kernel,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    complaints = [each for module, tree in TREES.items() for each in rule(module, tree)]
    assert complaints == []


BAD = [
    (direction, "virtirq.cpuset", "from virtirq.host.fs import HostFs"),
    (direction, "virtirq.model", "from virtirq.policy import config"),
    (direction, "virtirq.errors", "import virtirq.ui.cli"),
    (direction, "virtirq.host.fs", "from virtirq.guests.libvirt.domainxml import parse_domain"),
    (direction, "virtirq.host.fs", "from virtirq.control.cycle import observe"),
    (direction, "virtirq.host.fs", "from virtirq.policy import target"),
    (direction, "virtirq.host.fs", "import virtirq.ui"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq.host.pci import read_devices"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq.host import pci"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq import host"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq.policy.config import Config"),
    (direction, "virtirq.policy.target", "from virtirq.host.fs import Reader"),
    (direction, "virtirq.policy.target", "from virtirq.host import paths"),
    (direction, "virtirq.policy.target", "def f():\n  from virtirq.control import journal"),
    (
        direction,
        "virtirq.policy.target",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from virtirq.guests import x",
    ),
    (direction, "virtirq.control.cycle", "from virtirq.ui.report import as_json"),
    (direction, "virtirq.control.cycle", "from ..ui import report"),
    (direction, "virtirq.control.cycle", "from . import journal"),
    (direction, "virtirq.control.cycle", "from virtirq.daemon.log import Log"),
    (direction, "virtirq.daemon.service", "from virtirq.ui.report import as_json"),
    (direction, "virtirq.guests.vectors.by_kvm_routes", "from virtirq.host.btf import Btf"),
    (direction, "virtirq.demo", "from virtirq.control import journal"),
    (direction, "virtirq.__main__", "from virtirq.control.cycle import apply"),
    (plain_words, "virtirq.cpuset", "import numpy"),
    (plain_words, "virtirq.host.fs", "def f():\n  import cattrs"),
    (libvirt_behind_one_door, "virtirq.control.cycle", "def f():\n  import libvirt"),
    (libvirt_behind_one_door, "virtirq.guests.libvirt.domainxml", "from libvirt import open"),
    (libvirt_behind_one_door, "virtirq.ui.verbs.get", "import libvirtaio"),
    (late_imports, "virtirq.guests.libvirt.connection", "import libvirt"),
    (late_imports, "virtirq.ui.screens", "from rich.table import Table"),
    (late_imports, "virtirq.ui.cli", "class C:\n  import shtab"),
    (late_imports, "virtirq.policy.config", "try:\n  import cattrs\nexcept ImportError: pass"),
    (
        late_imports,
        "virtirq.guests.libvirt.domainxml",
        "from defusedxml.ElementTree import fromstring",
    ),
    (late_imports, "virtirq.ui.top", "if True:\n  import textual"),
    (late_imports, "virtirq.ui.prometheus", "import prometheus_client as p"),
    (
        late_imports,
        "virtirq.ui.top",
        "if TYPE_CHECKING:\n  import textual\nelse:\n  import textual",
    ),
    (one_room_writes, "virtirq.ui.verbs.apply", "fs.write('/proc/irq/1/smp_affinity_list', '1')"),
    (one_room_writes, "virtirq.host.interrupts", "reader.fs.write(path, text)"),
    (one_room_writes, "virtirq.policy.target", "self._fs.write(path, text)"),
    (one_room_writes, "virtirq.daemon.reconciler", "self._fs.open(path).write(text)"),
    (one_door_to_the_kernel, "virtirq.control.executor", "open('/proc/irq/1/smp_affinity')"),
    (one_door_to_the_kernel, "virtirq.guests.vfio", "os.open(f'/proc/{pid}/status', 0)"),
    (one_door_to_the_kernel, "virtirq.ui.cli", "Path('/sys/bus/pci').iterdir()"),
    (one_door_to_the_kernel, "virtirq.cpuset", "io.open(file='/sys/x')"),
]
BAD += [
    (asyncio_in_the_daemon, "virtirq.control.executor", "import asyncio"),
    (asyncio_in_the_daemon, "virtirq.guests.libvirt.watch", "def f():\n  from asyncio import run"),
]
FINE = [
    (asyncio_in_the_daemon, "virtirq.daemon.service", "import asyncio"),
    (asyncio_in_the_daemon, "virtirq.guests.processes.monitor", "import asyncio"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq.host import paths"),
    (direction, "virtirq.guests.libvirt.domainxml", "from virtirq.host.fs import HostFs, Reader"),
    (direction, "virtirq.host.recording", "from virtirq import __version__"),
    (direction, "virtirq.ui.verbs.plan", "from virtirq.control import cycle, sources"),
    (direction, "virtirq.__main__", "from virtirq.ui.cli import main"),
    (libvirt_behind_one_door, "virtirq.guests.libvirt.connection", "def f():\n  import libvirt"),
    (late_imports, "virtirq.ui.screens", "def f():\n  from rich.table import Table"),
    (late_imports, "virtirq.ui.screens", "if TYPE_CHECKING:\n  from rich.table import Table"),
    (one_room_writes, "virtirq.control.executor", "self._fs.write(path, text)"),
    (one_room_writes, "virtirq.host.recording", "file.write(data)"),
    (one_door_to_the_kernel, "virtirq.host.fs", "open('/proc/irq')"),
    (one_door_to_the_kernel, "virtirq.control.cycle", "Path('/run/virtirq')"),
    (one_door_to_the_kernel, "virtirq.control.cycle", "fs.read('/proc/uptime')"),
]


@pytest.mark.parametrize(("rule", "module", "text"), BAD)
def test_the_rule_bites(rule: Rule, module: str, text: str) -> None:
    assert list(rule(module, ast.parse(text)))


@pytest.mark.parametrize(("rule", "module", "text"), FINE)
def test_the_rule_lets_be(rule: Rule, module: str, text: str) -> None:
    assert not list(rule(module, ast.parse(text)))


def test_every_rule_is_tried() -> None:
    assert {rule for rule, _, _ in BAD} == set(RULES)
    assert {room_of(module) for _, module, _ in BAD} >= {"words", *ROOMS}


def test_the_house_has_these_rooms() -> None:
    assert set(map(room_of, TREES)) == set(MAY_IMPORT)
    for room in ROOMS:
        assert f"virtirq.{room}" in TREES


# What a look at a host without guests has no use for.
NOT_NEEDED = {
    *("rich", "cattrs", "shtab", "xml", "defusedxml", "libvirt", "hypothesis", "asyncio"),
    *("inspect", "dataclasses", "shutil", "subprocess", "socket", "tomllib", "tempfile"),
    *("logging", "threading"),
    *("prometheus_client", "textual", "curses", "http", "socketserver", "email", "unittest"),
}


def imported(*arguments: str, whole: bool = False) -> set[str]:
    """The modules that a Python run imports: their top names, or their `whole` names."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=SOURCE.parent,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in told}
    return names if whole else {name.split(".")[0] for name in names}


def test_status_imports_what_it_needs(tmp_path: Path) -> None:
    host = MadeHost(devices=[passthrough("0000:82:00.0", vectors=2)]).write(tmp_path / "host")
    found = imported("-m", "virtirq", "-s", str(host), "status")
    assert "virtirq" in found
    assert found & NOT_NEEDED == set()


def test_the_version_needs_next_to_nothing() -> None:
    assert imported("-m", "virtirq", "--version") & (NOT_NEEDED | {"pathlib", "json"}) == set()


def test_a_look_imports_nothing_that_moves_interrupts(tmp_path: Path) -> None:
    host = MadeHost(devices=[passthrough("0000:82:00.0", vectors=2)]).write(tmp_path / "host")
    found = imported("-m", "virtirq", "-s", str(host), "status", whole=True)
    assert "virtirq.control.cycle" in found
    for name in ("executor", "journal", "irqbalance", "libvirt_pinning", "libvirt_settings"):
        assert f"virtirq.control.{name}" not in found
    assert not [each for each in found if each.startswith("virtirq.daemon")]


def test_a_move_needs_nothing_of_the_daemons_log() -> None:
    """Which journald is told of in its own protocol, with one socket."""
    assert "logging" not in imported("-c", "import virtirq.ui.events.own")


@pytest.mark.parametrize("name", ["xml.dom", "dataclasses", "asyncio", "cattrs", "rich"])
def test_an_import_would_be_seen(name: str) -> None:
    assert imported("-c", f"def f():\n  import {name}\nf()") & NOT_NEEDED
