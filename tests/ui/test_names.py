"""Names and numbers as libvirt takes them, by whole command lines: UUIDs, addresses, large CPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost, passthrough
from virtirq.control import cycle
from virtirq.cpuset import CpuSet
from virtirq.errors import UnknownGuestError
from virtirq.model import Guest
from virtirq.ui.cli import main

U1 = "dcd9c436-4825-4fc0-8fa1-14444b0f0569"
U2 = "11111111-2222-4333-8444-555555555555"
CASES = REPOSITORY.parent / "shared/cases"
HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(
        passthrough("0000:82:00.0", vectors=2, first_irq=40, node=1),
        passthrough("0000:83:00.0", vectors=2, first_irq=50, node=0),
    ),
)


def guest(name: str, uuid: str | None, bus: int = 0x82, pins: tuple[str, ...] = ("4", "5")) -> str:
    tune = "".join(f"<vcpupin vcpu='{n}' cpuset='{cpus}'/>" for n, cpus in enumerate(pins))
    own = "" if uuid is None else f"<uuid>{uuid}</uuid>"
    return (
        f"<domain type='kvm'><name>{name}</name>{own}<vcpu>2</vcpu><cputune>{tune}</cputune>"
        "<devices><hostdev mode='subsystem' type='pci'><source>"
        f"<address domain='0' bus='{bus}' slot='0' function='0'/></source></hostdev></devices>"
        "</domain>"
    )


class Room:
    """A recorded host with these guests, and what the command says about it."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], *guests: str) -> None:
        self._capsys = capsys
        self._words = ["-s", str(HOST.write(tmp_path / "host"))]
        for number, text in enumerate(guests):
            file = tmp_path / f"{number}.xml"
            file.write_text(text)
            self._words += ["--domain", str(file)]

    def run(self, *words: str) -> tuple[int, str, str]:
        code = main([*self._words, *words])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def json(self, *words: str) -> Any:
        code, out, err = self.run(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *guests: Room(tmp_path, capsys, *guests)


class TestNamesLikeUuids:
    def test_its_own(self, room: Any) -> None:
        made = room(guest(U1, U1))
        assert [each["name"] for each in made.json("plan")["guests"]] == [U1]
        assert made.json("plan", U1) == made.json("plan")

    def test_anothers(self, room: Any) -> None:
        """As virsh has it, a UUID that somebody has comes before a name."""
        made = room(guest(U2, U1), guest("db", U2, 0x83, ("0", "1")))
        assert {each["uuid"] for each in made.json("plan")["guests"]} == {U1, U2}
        assert [each["name"] for each in made.json("plan", U2)["guests"]] == ["db"]
        assert [each["name"] for each in made.json("plan", U1)["guests"]] == [U2]
        assert [each["name"] for each in made.json("explain", U2)["guests"]] == ["db"]

    def test_each_others(self, room: Any) -> None:
        made = room(guest(U2, U1), guest(U1, U2, 0x83, ("0", "1")))
        assert [each["uuid"] for each in made.json("plan", U1)["guests"]] == [U1]
        assert [each["uuid"] for each in made.json("plan", U2)["guests"]] == [U2]

    def test_a_uuid_in_any_spelling(self, room: Any) -> None:
        made = room(guest("web", U1), guest("db", U2, 0x83, ("0", "1")))
        for spelt in (U1.upper(), U1.replace("-", "")):
            assert [each["name"] for each in made.json("plan", spelt)["guests"]] == ["web"]

    @pytest.mark.parametrize(
        ("one", "other", "told"),
        [
            (("web", U1), ("web", U2), "the name web"),
            (("web", U1), ("db", U1), f"the UUID {U1}"),
            ((U1, None), ("db", U1), f"the name or UUID {U1}"),
        ],
    )
    def test_what_is_one_guest_twice(
        self, room: Any, one: tuple[str, str], other: tuple[str, str], told: str
    ) -> None:
        code, _, err = room(guest(*one), guest(*other, 0x83)).run("plan")
        assert code == 2
        assert f"1.xml: there is already a guest with {told}\n" in err


def test_an_id_comes_first_and_a_name_last() -> None:
    """As virsh has it; a guest may be called 3."""
    named = Guest("3", "libvirt", uuid=U1, domain_id=7)
    other = Guest("web", "libvirt", uuid=U2, domain_id=3)
    assert cycle.called("3", [named, other]) == [other]
    assert cycle.called("3", [named]) == [named]
    assert cycle.called("7", [named, other]) == [named]
    with pytest.raises(UnknownGuestError):
        cycle.called("03", [named, other])


class TestNodeDeviceNames:
    """As ``virsh nodedev-list`` and ``nodedev-detach`` write a device."""

    def test_explain(self, room: Any) -> None:
        made = room(guest("web", U1))
        assert made.json("explain", "pci_0000_82_00_0") == made.json("explain", "82:00.0")

    def test_in_metadata(self, room: Any) -> None:
        setting = (
            "<metadata><v:irqs xmlns:v='urn:virtirq:1'>"
            "<v:device address='pci_0000_82_00_0' cpuset='6'/></v:irqs></metadata>"
        )
        made = room(guest("web", U1).replace("<vcpu>", f"{setting}<vcpu>"))
        (told,) = made.json("plan")["guests"]
        assert [each["target"] for each in told["devices"]] == ["6"]


class TestLargeCpuNumbers:
    """libvirt takes CPU numbers to 16383, whatever the host has."""

    @pytest.mark.parametrize("pins", [("4,16383", "5"), ("4,9000-10000", "5"), ("4,8192", "5")])
    def test_cpus_that_no_host_has_are_not_online(self, room: Any, pins: tuple[str, ...]) -> None:
        (told,) = room(guest("web", U1, pins=pins)).json("plan")["guests"]
        after = [each["after"] for each in told["devices"][0]["interrupts"]]
        assert after == ["4", "5"]

    def test_all_of_them_is_not_pinned(self, room: Any) -> None:
        text = guest("web", U1, pins=()).replace("<vcpu>", "<vcpu cpuset='0-16383'>")
        made = room(text)
        assert "web  2 vCPUs, not pinned" in made.run("status")[1]

    def test_none_that_is_there(self, room: Any) -> None:
        (told,) = room(guest("web", U1, pins=("16383", "16382"))).json("plan")["guests"]
        (status,) = {each["status"] for each in told["devices"][0]["interrupts"]}
        assert status == "target-offline"

    def test_the_last_is_the_last(self, room: Any) -> None:
        code, _, err = room(guest("web", U1, pins=("16384", "5"))).run("plan")
        assert code == 2
        assert "CPU 16384 is outside 0-16383" in err

    def test_lists_and_masks_hold_them(self) -> None:
        whole = CpuSet.parse("0-16383")
        assert CpuSet.parse_mask(whole.mask()) == whole
        assert (len(whole), str(CpuSet([16383]))) == (16384, "16383")


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
class TestShared:
    def test_a_name_that_is_a_uuid(self, room: Any) -> None:
        made = room((CASES / "c1-name-is-a-uuid/guest.xml").read_text())
        assert made.run("plan")[0] == 0

    @pytest.mark.parametrize(("file", "after"), [("spaces", {"5", "6", "7"}), ("invalid", {None})])
    def test_a_starlingx_mask(
        self, file: str, after: set[str | None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        case = CASES / "b09-stx-mask"
        words = ["-s", str(case / "host.tar.xz"), "--domain", str(case / f"{file}.xml")]
        assert main([*words, "plan", "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)["guests"]
        assert {each["after"] for d in told["devices"] for each in d["interrupts"]} == after
