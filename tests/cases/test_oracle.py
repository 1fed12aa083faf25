"""What the command says of a recorded host, held against the host's own files.

`Files` reads them by itself, and knows nothing of how virtirq does. Nothing that is said may be
contradicted by them: where interrupts are, what is online, near, isolated or full.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cases.room import guest
from tests.conftest import REPOSITORY
from virtirq.ui.cli import main

SHARED = REPOSITORY.parent / "shared"
DEMO = REPOSITORY / "src/virtirq/demo/two-node.tar.xz"
SINGLE = REPOSITORY / "tests/hosts/single-node.tar.xz"


def numbers(text: str) -> set[int]:
    """A list such as ``0-3,8``."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


class Files:
    """The files of a recorded tree, links followed."""

    def __init__(self, archive: Path) -> None:
        self._texts: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._below: dict[str, set[str]] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                match = re.search(r"(?:^|/)((?:proc|sys|run|virtirq)/.*)", member.name)
                if match is None:
                    continue
                path = "/" + match[1].rstrip("/")
                if member.issym():
                    self._links[path] = posixpath.join(posixpath.dirname(path), member.linkname)
                elif member.isfile() and member.size < 1 << 16:
                    data = tar.extractfile(member)
                    self._texts[path] = "" if data is None else data.read().decode(errors="replace")
                while (above := posixpath.dirname(path)) != path:
                    self._below.setdefault(above, set()).add(posixpath.basename(path))
                    path = above

    def real(self, path: str) -> str:
        done = ""
        for part in path.strip("/").split("/"):
            done = f"{done}/{part}"
            for _ in range(9):
                if done not in self._links:
                    break
                done = posixpath.normpath(self._links[done])
        return done

    def text(self, path: str) -> str | None:
        found = self._texts.get(self.real(path))
        return None if found is None else found.strip()

    def cpus(self, path: str) -> set[int] | None:
        text = self.text(path)
        return None if text is None or text == "(null)" else numbers(text)

    def names(self, path: str) -> set[str]:
        return self._below.get(self.real(path), set())

    # What they say.

    def online(self) -> set[int]:
        return self.cpus("/sys/devices/system/cpu/online") or set()

    def kept(self) -> set[int]:
        """CPUs that are isolated, or that the kernel does not tick."""
        files = (
            "/sys/devices/system/cpu/isolated",
            "/sys/devices/system/cpu/nohz_full",
            "/sys/fs/cgroup/cpuset.cpus.isolated",
        )
        return {cpu for each in files for cpu in self.cpus(each) or ()}

    def nodes(self) -> dict[int, set[int]]:
        base = "/sys/devices/system/node"
        found = (re.fullmatch(r"node(\d+)", name) for name in self.names(base))
        return {
            int(match[1]): self.cpus(f"{base}/{match[0]}/cpulist") or set()
            for match in found
            if match
        }

    def distance(self, one: int, other: int) -> int:
        row = (self.text(f"/sys/devices/system/node/node{one}/distance") or "").split()
        order = sorted(self.nodes())
        return int(row[order.index(other)]) if len(row) == len(order) else 20

    def node(self, address: str) -> int | None:
        text = self.text(f"/sys/bus/pci/devices/{address}/numa_node")
        return None if text is None else int(text)

    def on_cpu(self) -> Counter[int]:
        """How many interrupts each CPU has."""
        effective = (
            self.cpus(f"/proc/irq/{irq}/effective_affinity_list") for irq in self.names("/proc/irq")
        )
        return Counter(cpu for cpus in effective for cpu in cpus or ())


@cache
def files(archive: Path) -> Files:
    return Files(archive)


def made_for(name: str) -> list[str]:
    """A guest for devices of a tree that has none."""
    return [guest(["0000:82:00.0", "0000:02:00.0"], ["8", "9"], name=name)]


def hosts() -> Iterator[Any]:
    yield pytest.param(DEMO, (), id="demo")
    yield pytest.param(SINGLE, (), id="single")
    bare = [guest(["0000:41:00.0", "0000:22:00.0"], ["1", None, "6"], name="x")]
    yield pytest.param(DEMO, tuple(bare), id="demo-another")
    if SHARED.is_dir():
        (tree,) = (SHARED / "hosts").glob("32em64t*")
        yield pytest.param(tree, tuple(made_for("vm")), id="32em64t")
        for case in sorted((SHARED / "cases").glob("*/host.tar.xz")):
            for xml in sorted(case.parent.glob("*.xml")):
                yield pytest.param(case, (xml.read_text(),), id=f"{case.parent.name}-{xml.stem}")


class Told:
    """What the command says, in JSON."""

    def __init__(
        self, archive: Path, xml: tuple[str, ...], tmp: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._capsys = capsys
        self._words = ["-s", str(archive)]
        for number, text in enumerate(xml):
            (tmp / f"{number}.xml").write_text(text)
            self._words += ["--domain", str(tmp / f"{number}.xml")]

    def __call__(self, *words: str) -> Any:
        code = main([*self._words, *words, "--json"])
        out, err = self._capsys.readouterr()
        return json.loads(out) if code in (0, 3) else err


@pytest.mark.parametrize(("archive", "xml"), list(hosts()))
def test_nothing_is_said_that_the_files_contradict(
    archive: Path, xml: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = files(archive)
    tell = Told(archive, xml, tmp_path, capsys)
    status, plan = tell("status"), tell("plan")
    assert status["guests"] == plan["guests"]
    for each in plan["guests"]:
        for device in each["devices"]:
            _device(there, device)
    for finding in tell("check")["findings"]:
        _finding(there, plan, finding)
    for each in plan["guests"]:
        _place(there, tell("place", each["name"]))


def _device(there: Files, device: dict[str, Any]) -> None:
    base = f"/sys/bus/pci/devices/{device['address']}"
    if not there.names(base):
        assert device["interrupts"] == []
        return
    assert device["node"] in (there.node(device["address"]), None)
    if device["target"] is not None:
        assert numbers(device["target"]) & there.online()
    for each in device["interrupts"]:
        irq = each["irq"]
        if each["kind"] != "intx":
            assert str(irq) in there.names(f"{base}/msi_irqs")
        if each["before"] is not None:
            assert numbers(each["before"]) == there.cpus(f"/proc/irq/{irq}/smp_affinity_list")
        if each["effective"] is not None:
            assert numbers(each["effective"]) == there.cpus(
                f"/proc/irq/{irq}/effective_affinity_list"
            )
        actions = there.text(f"/sys/kernel/irq/{irq}/actions")
        if each["vector"] is not None and actions:
            assert f"vfio-{each['kind']}[{each['vector']}]({device['address']})" in actions
        if each["action"] != "pin":
            continue
        after = numbers(each["after"])
        assert after & there.online()
        assert after <= numbers(device["target"])
        on = set() if each["effective"] is None else numbers(each["effective"])
        if each["status"] == "in-place":
            assert on <= after
        elif each["status"] == "wrong-cpu":
            assert not on & after


def _finding(there: Files, plan: Any, finding: dict[str, str]) -> None:
    named = re.findall(r"CPUs? ([\d,-]+)", finding["message"])
    cpus = [numbers(each.strip(",-")) for each in named]
    device = re.search(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", finding["subject"])
    match finding["code"]:
        case "isolated-conflict" | "pool-on-isolated":
            assert cpus
            assert cpus[0] <= there.kept()
        case "target-offline":
            assert cpus
            assert not cpus[0] & there.online()
        case "node-mismatch":
            assert device is not None
            node, nodes = there.node(device[0]), there.nodes()
            assert node is not None
            on = {number for number, theirs in nodes.items() if theirs & cpus[0]}
            near = [other for other in on if there.distance(node, other) < 20]
            assert not near or not nodes[node]
        case "vectors-low":
            counted = there.on_cpu()
            assert all(counted[cpu] >= 180 for cpu in cpus[-1])
        case "device-unclaimed":
            assert device is not None
            held = {d["address"] for each in plan["guests"] for d in each["devices"]}
            assert device[0] not in held
            msi = there.names(f"/sys/bus/pci/devices/{device[0]}/msi_irqs")
            count = int(finding["message"].split()[0])
            assert count in (len(msi), 1)
        case "device-without-node":
            assert device is not None
            assert there.node(device[0]) == -1
            assert len([each for each in there.nodes().values() if each]) > 1


def _place(there: Files, told: Any) -> None:
    if isinstance(told, str):  # there is no room: then that is said
        assert told.startswith('{"schema": 1, "error": ')
        return
    cpus = [numbers(each["after"]) for each in told["vcpus"]]
    mine = set().union(*cpus)
    assert all(len(each) == 1 for each in cpus)
    assert len(mine) == len(cpus)
    assert mine <= there.online()
    if told["node"] is not None and told["node"] in there.nodes():
        assert mine <= there.nodes()[told["node"]]
    if told["emulator"]["after"] is not None:
        assert not numbers(told["emulator"]["after"]) & mine
    fast = there.cpus("/sys/devices/cpu_core/cpus")
    slow = there.cpus("/sys/devices/cpu_atom/cpus")
    if fast and slow and mine & slow and not told["notes"]:
        assert not mine & fast


def test_of_the_pins_in_a_definition_none_is_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `place` says is so now is what the recording's XML has."""
    there = files(DEMO)
    tell = Told(DEMO, (), tmp_path, capsys)
    for name in sorted(there.names("/virtirq/domains")):
        domain = ElementTree.fromstring(there.text(f"/virtirq/domains/{name}") or "")
        pins = {
            int(pin.get("vcpu", "")): numbers(pin.get("cpuset", ""))
            for pin in domain.iterfind("cputune/vcpupin")
        }
        told = tell("place", str(domain.findtext("name")))
        if isinstance(told, str):
            continue
        now = {each["vcpu"]: numbers(each["before"]) for each in told["vcpus"] if each["before"]}
        assert now == pins
