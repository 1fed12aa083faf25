"""What a person sees of guests that were found by their processes, and what is done for them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.guests.processes.test_find import DPDK, QEMU, A, C, Made, Scene
from tests.hostmaker import MadeFs, passthrough
from virtirq.control import sources
from virtirq.guests.libvirt.connection import LiveGuests
from virtirq.host import paths
from virtirq.ui import inputs
from virtirq.ui.cli import main

CLAIMANT = replace(QEMU, uid=107)
GROUPS = {A: (7, 100), C: (9, 120)}


@contextmanager
def no_guests(*_: object) -> Iterator[SimpleNamespace]:
    """A libvirt that has none."""
    yield SimpleNamespace(guests=lambda _: LiveGuests(()))


class Desk:
    """A machine with these processes, and virtirq's command line."""

    def __init__(
        self, patch: pytest.MonkeyPatch, capsys: Any, state: Path, *made: Made, **more: Any
    ) -> None:
        opened = [each for each in (A, C) if any(self._holds(one, each) for one in made)]
        host = Scene(made, opened=opened).host()
        devices = [
            passthrough(str(each), vectors=2, first_irq=irq, affinity="0-7", iommu_group=group)
            for each, (group, irq) in GROUPS.items()
        ]
        self.fs: MadeFs = replace(host, devices=devices).live()
        for pid in more.get("hidden", ()):
            self.fs.faults["listdir", f"/proc/{pid}/fd"] = 13
        self._capsys = capsys
        patch.setattr(sources, "open_fs", lambda _: self.fs)
        patch.setattr(sources, "state_dir", lambda _: state)
        patch.setattr(sources, "_this_machines", no_guests)
        patch.setattr(inputs, "daemon_of", lambda _: None)
        config = state / "virtirq.toml"
        config.write_text(more.get("config", ""))
        self._config = str(config)

    @staticmethod
    def _holds(made: Made, address: object) -> bool:
        return f"/dev/vfio/{GROUPS[address][0]}" in made.fds  # type: ignore[index]

    def run(self, line: str) -> tuple[int, str, str]:
        code = main(["--config", self._config, *shlex.split(line)])
        shown = self._capsys.readouterr()
        return code, shown.out, shown.err

    def places(self, first: int) -> Sequence[str]:
        return [self.fs.read(paths.IRQ_AFFINITY.at(first + each)) for each in (0, 1)]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> Any:
    return lambda *made, **more: Desk(monkeypatch, capsys, tmp_path, *made, **more)


RULE = '[[rule]]\nkind = "process"\ndirective = "auto"\n'
OFF = "[processes]\nfind = false\n"


class TestProcess:
    """One without vCPUs: what stands in for them are threads."""

    def test_status_by_default(self, desk: Any) -> None:
        shown = desk(DPDK).run("status")[1]
        assert "dpdk-testpmd-200  3 threads on CPUs 2-4 (node 0)\n" in shown
        assert "native (default for a process without vCPUs)" in shown
        assert "vCPUs on" not in shown

    def test_status_with_a_rule(self, desk: Any) -> None:
        shown = desk(DPDK, config=RULE).run("status")[1]
        assert "CPUs 2-4 of its threads" in shown
        assert "rule 1 of" in shown

    def test_plan(self, desk: Any) -> None:
        shown = desk(DPDK, config=RULE).run("plan")[1]
        assert "CPU 2 of thread 0" in shown
        assert "CPU 3 of thread 1" in shown

    def test_explain(self, desk: Any) -> None:
        shown = desk(DPDK).run("explain dpdk-testpmd-200")[1]
        assert "  thread 1 (thread 202) may run on CPU 3\n" in shown
        assert "native, from the default for a process without vCPUs" in shown

    def test_json_tells_its_kind(self, desk: Any) -> None:
        it = desk(DPDK, QEMU)
        guests = json.loads(it.run("status -J")[1])["guests"]
        assert {each["name"]: (each["kind"], each["source"]) for each in guests} == {
            "dpdk-testpmd-200": ("process", "vfio-process"),
            "web": ("machine", "vfio-process"),
        }

    def test_apply(self, desk: Any) -> None:
        it = desk(DPDK, QEMU)
        assert it.run("apply")[0] == 0
        assert (it.places(100), it.places(120)) == (["4", "5"], ["0-7", "0-7"])

    def test_off(self, desk: Any) -> None:
        it = desk(QEMU, config=OFF)
        assert "web" not in it.run("status")[1]
        it.run("apply")
        assert it.places(100) == ["0-7", "0-7"]


class TestClaim:
    """One of which only its own words say that it holds the device, and it is not root's."""

    def test_it_is_shown(self, desk: Any) -> None:
        it = desk(CLAIMANT, hidden=[100])
        for line in ("status", "plan", "explain web"):
            code, shown, error = it.run(line)
            assert (code, error) == (0, ""), line
            assert "web" in shown, line
            assert "its command line alone tells of it" in shown, line
        found = json.loads(it.run("check -J")[1])["findings"]
        assert {each["code"] for each in found} <= {"device-unclaimed"}
        assert all(each["subject"] != str(A) for each in found), "of others, whom nobody has"
        guests = json.loads(it.run("status -J")[1])["guests"]
        assert [each["name"] for each in guests] == ["web"]
        gap = f"not read: /proc/*/fd/*: Permission denied: whose {A} is cannot be told"
        assert gap in it.run("status")[1]

    @pytest.mark.parametrize("config", ["", '[[rule]]\nguest = "web"\ndirective = "auto"\n'])
    @pytest.mark.parametrize("line", ["apply", "apply web"])
    def test_it_is_not_acted_on(self, desk: Any, line: str, config: str) -> None:
        it = desk(CLAIMANT, hidden=[100], config=config)
        code, shown, error = it.run(line)
        assert (code, error) == (0, "")
        assert "its command line alone tells of it" in shown
        assert it.places(100) == ["0-7", "0-7"]
        assert not any(operation == "write" for operation, _ in it.fs.calls)

    def test_another_is(self, desk: Any) -> None:
        """The very same, started by root."""
        it = desk(QEMU, hidden=[100])
        assert it.run("apply")[0] == 0
        assert it.places(100) == ["4", "5"]
